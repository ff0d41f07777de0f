import itertools

import matplotlib.image
import numpy as np
import pytest

from lartpc_ds.data.event import Event, EventId, Plane
from lartpc_ds.data.files import make_reader
from lartpc_ds.data.schema import PARTICLE
from lartpc_ds.errors import UserError
from lartpc_ds.report import display
from lartpc_ds.report.display import display_event, draw_event, truth_text
from lartpc_ds.simulation.generate import simulate_file


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


def of_planes(*planes: Plane) -> Event:
    return Event(EventId("sim.h5", 0, 1, 0, 7), planes, np.zeros(0, PARTICLE))


def plane_of(pixels: dict[tuple[int, int], float], shape: tuple[int, int] = (3456, 6048)) -> Plane:
    found = sorted((wire * shape[1] + tick, value) for (wire, tick), value in pixels.items())
    ids, values = zip(*found, strict=True)
    return Plane(0, shape, np.array(ids, np.int64), np.array(values, np.float32))


def titles(event: Event) -> list[str]:
    wires, ticks = display._charge_view(event)
    return [display._plane_title(plane, at, ticks) for plane, at in zip(event.planes, wires, strict=True)]


def test_view_is_the_charge_with_a_margin_and_ignores_noise():
    # a pulse of 9 ticks on each of 800 wires, and noise of 3 ticks in two corners
    wire, tick = np.divmod(np.arange(800 * 9), 9)
    pulse = (wire + 1000) * 6048 + 3001 + tick
    ids = np.r_[0, 1, 2, pulse, 3456 * 6048 - 3 + np.arange(3)]
    event = track((3456, 6048), 0, 0, 1)
    plane = Plane(0, (3456, 6048), ids, np.ones(len(ids), np.float32))
    event = Event(event.id, (plane, plane), event.particles)
    # 0.5 % of 7206 pixels are 36: three wires at each end, which the margin, 6 % of the others and 2, brings back
    assert display._charge_view(event) == ([(1003 - 49, 1797 + 49)] * 2, (2999, 3012))
    assert display._full_view(event) == ([(0, 3456)] * 2, (0, 6048))


def test_a_long_run_of_ticks_does_not_hide_the_shorter_ones():
    # what summing ticks leaves of a shallow track: a tick or two a wire; and one steep piece
    shallow = {(1000 + step, 3000 + step // 3): 50.0 for step in range(600)}
    steep = {(400, tick): 50.0 for tick in range(500, 520)}
    event = of_planes(plane_of({**shallow, **steep}), plane_of(shallow))
    wires, ticks = display._charge_view(event)
    assert wires[0][0] < 400 and wires[0][1] >= 1600 and ticks[0] < 500 and ticks[1] >= 3200
    assert titles(event) == ["plane 0: 620 pixels", "plane 0: 600 pixels"]


def test_a_track_with_gaps_is_no_noise_because_it_is_as_bright_as_the_rest():
    gaps = {(500 + 3 * step, 3000 + 2 * step): 40.0 + step % 5 for step in range(300)}
    delta = {(2000, tick): 40.0 for tick in range(100, 110)}
    event = of_planes(plane_of({**gaps, **delta}))
    (wires,), ticks = display._charge_view(event)
    assert display._shown(event.planes[0], wires, ticks) == 1


def test_what_is_not_in_view_is_said_where_it_is_not_little():
    rng = np.random.default_rng(0)
    pulse = {(1000 + step // 10, 3000 + step % 10): 50.0 for step in range(1000)}
    scatter = {(wire, 10 + 3 * tick): 5.0 for wire, tick in rng.integers(0, (3456, 1900), (1000, 2)).tolist()}
    few = dict(list(scatter.items())[:100])
    assert titles(of_planes(plane_of({**scatter, **pulse}))) == [
        f"plane 0: {len(scatter | pulse):,} pixels\n9% of the charge, faint single pixels, is not in view"
    ]
    assert titles(of_planes(plane_of({**few, **pulse}))) == ["plane 0: 1,100 pixels"]


def test_real_planes_show_their_charge(real_events):
    reader = make_reader(real_events / "sbnd_2events_larcv3.h5")
    for index in range(2):
        event = reader.read(index)
        wires, ticks = display._charge_view(event)
        for plane, at in zip(event.planes, wires, strict=True):
            assert display._shown(plane, at, ticks) > 0.98


def summed(plane: Plane, ticks: int) -> Plane:
    wire, tick = np.divmod(plane.ids, plane.shape[1])
    size = -(-plane.shape[1] // ticks)
    ids, position = np.unique(wire * size + tick // ticks, return_inverse=True)
    values = np.bincount(position, plane.values).astype(np.float32)
    return Plane(plane.plane, (plane.shape[0], size), ids, values)


def test_simulated_events_summed_by_six_ticks_show_what_is_no_noise(tmp_path):
    simulate_file(
        tmp_path / "a.h5",
        "argoneut",
        num_events=12,
        classes=("electron", "muon"),
        momentum_gev=(0.2, 0.4),
        seed=3,
        workers=1,
    )
    reader = make_reader(tmp_path / "a.h5")
    for index in range(12):
        event = of_planes(*(summed(plane, 6) for plane in reader.read(index).planes))
        wires, ticks = display._charge_view(event)
        for plane, at, title in zip(event.planes, wires, titles(event), strict=True):
            shown = display._shown(plane, at, ticks)
            assert shown >= 0.95 or f"{1 - shown:.0%} of the charge" in title
            # by another way than the code's: pixels with a neighbour are those that stand next to one in the image
            image = np.zeros(plane.shape)
            image.flat[plane.ids] = np.abs(plane.values)
            padded = np.pad(image > 0, 1).astype(int)
            around = sum(np.roll(padded, by, (0, 1)) for by in itertools.product((-1, 0, 1), repeat=2)) - padded
            image[around[1:-1, 1:-1] == 0] = 0
            assert image[slice(*at), slice(*ticks)].sum() >= 0.95 * image.sum()


def test_view_without_any_pulse_holds_all_pixels():
    # a track along the wires, one tick wide; and pixels that do not touch
    assert display._charge_view(track((3456, 6048), 1000, 3001, 800)) == ([(1004 - 49, 1796 + 49)] * 2, (2999, 3004))
    apart = of_planes(plane_of({(100 * step, 50 * step): 1.0 for step in range(30)}))
    assert display._charge_view(apart) == ([(0, 3077)], (0, 1540))


def test_negative_pixels_are_drawn_on_a_diverging_scale(tmp_path):
    signs = {(10 + step, 20 + row): (-1.0) ** row * 30 for step in range(40) for row in range(2)}
    event = of_planes(plane_of(signs, (60, 60)))
    assert titles(event) == ["plane 0: 80 pixels, 40 negative"]
    draw_event(event, tmp_path / "event.png")
    picture = matplotlib.image.imread(tmp_path / "event.png")[..., :3]
    panel = picture[picture.shape[0] // 4 :, : int(0.8 * picture.shape[1])]
    red, green, blue = panel[..., 0], panel[..., 1], panel[..., 2]
    bright = (panel.max(-1) > 0.5) & (np.abs(red - blue) > 0.2)
    assert (bright & (red > blue) & (green < 0.9)).sum() > 1000, "positive pixels are red"
    assert (bright & (blue > red)).sum() > 1000, "and negative ones blue"


def test_pooling_keeps_the_value_of_largest_magnitude_of_each_block():
    rng = np.random.default_rng(0)
    shape = (1500, 2101)
    ids = np.sort(rng.choice(shape[0] * shape[1], 5000, replace=False))
    values = rng.normal(0, 10, 5000).astype(np.float32)
    image, extent = display._pooled(Plane(0, shape, ids, values), (0, 1500), (0, 2101))
    assert image.shape == (500, 526) and extent == (0, 1500, 0, 2104)
    for block in np.argwhere(~np.isnan(image))[::97]:
        inside = values[((ids // 2101) // 3 == block[0]) & ((ids % 2101) // 4 == block[1])]
        assert image[tuple(block)] == inside[np.abs(inside).argmax()]
    assert np.isnan(image).sum() == image.size - len(set(zip(ids // 2101 // 3, ids % 2101 // 4, strict=True)))
    assert (image < 0).any()


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
