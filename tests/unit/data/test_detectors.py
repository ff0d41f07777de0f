import numpy as np
import pytest

from lartpc_ds.data.detectors import DETECTORS, detector
from lartpc_ds.errors import UserError


def test_microboone_maps_reproduce_the_published_event():
    y, z = np.array([-8.86]), np.array([2.26])
    wires = [round(float(plane.wire_coordinate(y, z)[0])) for plane in detector("microboone").planes]
    assert wires == [367, 311, 7]


@pytest.mark.parametrize(
    ("name", "planes", "shape"),
    [
        ("microboone", 3, (3456, 6048)),
        ("microboone_raw", 3, (3600, 9600)),
        ("argoneut", 2, (240, 2048)),
        ("sbnd", 3, (2048, 3400)),
    ],
)
def test_image_shapes(name, planes, shape):
    known = detector(name)
    assert len(known.planes) == planes
    assert known.image_shape == shape
    assert all(plane.wires <= known.image_wires for plane in known.planes)


@pytest.mark.parametrize("known", DETECTORS.values(), ids=lambda known: known.name)
def test_every_plane_covers_nearly_the_whole_volume(known):
    low, high = np.array([known.y_cm, known.z_cm]).T
    y, z = (low + (high - low) * np.random.default_rng(0).random((10000, 2))).T
    for plane in known.planes:
        wires = np.rint(plane.wire_coordinate(y, z))
        assert np.mean((wires >= 0) & (wires < plane.wires)) > 0.98
        assert np.ptp(wires) > 0.95 * plane.wires


@pytest.mark.parametrize("known", DETECTORS.values(), ids=lambda known: known.name)
def test_a_whole_drift_lies_in_the_stored_window(known):
    ticks = known.tick(np.array(known.x_cm), np.zeros(2))
    assert 0 <= ticks[0] < ticks[1] < known.ticks


def test_microboone_ticks_count_from_the_stored_window():
    # a neutrino's charge occupies stored ticks 800 (anode) to 5470 (cathode) of the window that starts at raw 2400
    stored, raw = detector("microboone"), detector("microboone_raw")
    x, late = np.array([0.0, 256.0]), np.array([0.0, 10.0])
    np.testing.assert_allclose(stored.tick(x, np.zeros(2)), [800, 5463], atol=1)
    np.testing.assert_allclose(raw.tick(x, np.zeros(2)) - stored.tick(x, np.zeros(2)), 2400)
    np.testing.assert_allclose(stored.tick(x, late) - stored.tick(x, np.zeros(2)), [0, 20])


def test_an_unknown_detector_names_those_known():
    with pytest.raises(UserError, match=r"'dune'.*microboone.*argoneut"):
        detector("dune")


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_mirrored_wires_are_a_half_turn_about_the_drift_axis(name: str) -> None:
    """What docs/events.md says of `data.flip`: beam and vertical turn round together, in all planes alike."""
    known = DETECTORS[name]
    rng = np.random.default_rng(3)
    y, z = (rng.uniform(*bounds, 100) for bounds in (known.y_cm, known.z_cm))
    turned_y, turned_z = sum(known.y_cm) - y, sum(known.z_cm) - z
    beam_alone = []
    for plane in known.planes:
        mirrored = plane.wires - 1 - plane.wire_coordinate(y, z)
        assert np.abs(mirrored - plane.wire_coordinate(turned_y, turned_z)).max() < 0.2, plane.name
        beam_alone.append(np.abs(mirrored - plane.wire_coordinate(y, turned_z)).max())
    assert max(beam_alone) > 20, "a reflection of the beam alone is another image"
