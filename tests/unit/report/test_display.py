import matplotlib.image
import numpy as np
import pytest

from lartpc_ds.data.event import Event, EventId, Plane
from lartpc_ds.data.schema import PARTICLE
from lartpc_ds.errors import UserError
from lartpc_ds.report import display
from lartpc_ds.report.display import display_event, draw_event, truth_text


def track(shape: tuple[int, int], wire: int, tick: int, length: int) -> Event:
    """A track along the wires, one tick wide."""
    ids = np.arange(wire, wire + length) * shape[1] + tick
    values = np.full(length, 50, np.float32)
    particles = np.zeros(1, PARTICLE)
    particles["pdg"], particles["pz"], particles["current_type"] = -321, 0.45, -1
    return Event(
        EventId("dir/sim.h5", 3, 1, 0, 7), (Plane(0, shape, ids, values), Plane(1, shape, ids, values)), particles
    )


def test_real_event_is_drawn(real_events, tmp_path):
    display_event(real_events / "sbnd_2events_larcv3.h5", 0, tmp_path / "event.png")
    picture = matplotlib.image.imread(tmp_path / "event.png")[..., :3]
    height, width, _ = picture.shape
    assert width > 2 * height > 1000
    # each of the three panels is dark with bright tracks in it
    for panel in np.array_split(picture[height // 4 : -height // 4, : int(0.93 * width)], 3, axis=1):
        assert 0.5 < np.mean(panel.max(axis=-1) < 0.1)
        assert np.sum((panel[..., 0] > 0.8) & (panel[..., 2] < 0.8)) > 100


def test_thin_track_stays_visible_in_the_full_view(tmp_path):
    # one tick in 6048: sampling 700 of them would miss it
    draw_event(track((3456, 6048), 1000, 3001, 800), tmp_path / "event.png", full=True)
    picture = matplotlib.image.imread(tmp_path / "event.png")[..., :3]
    lit = (picture[..., 0] > 0.8) & (picture[..., 2] < 0.8)
    assert lit[:, : int(0.9 * picture.shape[1])].sum() > 200


def test_view_is_the_charge_with_a_margin_and_ignores_noise():
    # a pulse of 9 ticks on each of 800 wires, and noise of 3 ticks in two corners
    wire, tick = np.divmod(np.arange(800 * 9), 9)
    pulse = (wire + 1000) * 6048 + 3001 + tick
    ids = np.r_[0, 1, 2, pulse, 3456 * 6048 - 3 + np.arange(3)]
    event = track((3456, 6048), 0, 0, 1)
    plane = Plane(0, (3456, 6048), ids, np.ones(len(ids), np.float32))
    event = Event(event.id, (plane, plane), event.particles)
    assert display._charge_view(event) == ([(950, 1850)] * 2, (2999, 3012))
    assert display._full_view(event) == ([(0, 3456)] * 2, (0, 6048))


def test_view_without_any_pulse_holds_all_pixels():
    assert display._charge_view(track((3456, 6048), 1000, 3001, 800)) == ([(950, 1850)] * 2, (2999, 3004))


def test_pooling_keeps_the_largest_value_of_each_block():
    rng = np.random.default_rng(0)
    shape = (1500, 2101)
    ids = np.sort(rng.choice(shape[0] * shape[1], 5000, replace=False))
    values = rng.normal(0, 10, 5000).astype(np.float32)
    image, extent = display._pooled(Plane(0, shape, ids, values), (0, 1500), (0, 2101))
    assert image.shape == (500, 526) and extent == (0, 1500, 0, 2104)
    for block in np.argwhere(~np.isnan(image))[::97]:
        inside = ((ids // 2101) // 3 == block[0]) & ((ids % 2101) // 4 == block[1])
        assert image[tuple(block)] == values[inside].max()
    assert np.isnan(image).sum() == image.size - len(set(zip(ids // 2101 // 3, ids % 2101 // 4, strict=True)))


@pytest.mark.parametrize("index", [-1, 2])
def test_event_that_is_not_there(real_events, tmp_path, index):
    with pytest.raises(UserError, match=rf"no event {index}; it has 2, 0 to 1"):
        display_event(real_events / "sbnd_2events_larcv3.h5", index, tmp_path / "event.png")


def test_titles():
    event = track((100, 100), 10, 10, 5)
    assert truth_text(event) == "kaon, 0.45 GeV/c"
    assert display._title(event) == "kaon, 0.45 GeV/c\nrun 1, subrun 0, event 7   (sim.h5, event 3)"
    anonymous = Event(EventId("sim.h5", 3, -1, -1, -1), event.planes, event.particles[:0])
    assert display._title(anonymous) == "sim.h5, event 3"


@pytest.mark.parametrize(
    ("pdg", "current", "text"),
    [(14, 0, "numu CC, neutrino of 1.39 GeV"), (-12, 1, "nc, neutrino of 1.39 GeV"), (2112, -1, "neutron, 0.00 GeV/c")],
)
def test_truth_in_words(pdg, current, text):
    event = track((100, 100), 10, 10, 5)
    particles = np.zeros(1, PARTICLE)
    particles["pdg"], particles["current_type"], particles["energy_init"] = pdg, current, 1.39
    assert truth_text(Event(event.id, event.planes, particles)) == text


def test_empty_event_is_drawn(tmp_path):
    plane = Plane(0, (20, 30), np.zeros(0, np.int64), np.zeros(0, np.float32))
    draw_event(Event(EventId("a.h5", 0, -1, -1, -1), (plane,), np.zeros(0, PARTICLE)), tmp_path / "event.png")
    assert (tmp_path / "event.png").stat().st_size > 1000


def test_nothing_is_overwritten(tmp_path):
    out = tmp_path / "event.png"
    out.write_text("precious")
    with pytest.raises(UserError, match="exists and is not overwritten"):
        draw_event(track((100, 100), 10, 10, 5), out)
    assert out.read_text() == "precious"
    with pytest.raises(UserError, match=r"folder .* does not exist"):
        draw_event(track((100, 100), 10, 10, 5), tmp_path / "absent" / "event.png")
