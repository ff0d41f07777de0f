import h5py
import numpy as np
import pytest

from lartpc_ds.data.detectors import DETECTORS, detector
from lartpc_ds.data.event import EventId
from lartpc_ds.data.schema import PARTICLE
from lartpc_ds.errors import UserError
from lartpc_ds.simulation.generate import Aim, simulate_event, simulate_file
from lartpc_ds.simulation.particles import PRIMARIES

CLASSES = ("electron", "gamma", "muon", "pion", "kaon")


def simulate(out, **changes):
    options = {"num_events": 10, "classes": CLASSES, "momentum_gev": (0.2, 1.0), "seed": 4, "workers": 1}
    return simulate_file(out, "argoneut", **(options | changes))


def event_of(species, index=0, name="argoneut", momentum_gev=0.5):
    rng = np.random.default_rng([11, index])
    return simulate_event(detector(name), species, momentum_gev, rng, EventId("made.h5", index, 1, 11, index))


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("species", PRIMARIES)
def test_events_are_well_formed(name, species):
    event = event_of(species, name=name)
    known = detector(name)
    assert event.id == EventId("made.h5", 0, 1, 11, 0)
    assert [plane.plane for plane in event.planes] == list(range(len(known.planes)))
    for plane, geometry in zip(event.planes, known.planes, strict=True):
        assert plane.shape == (geometry.wires, known.ticks)
        assert (plane.ids.dtype, plane.values.dtype) == (np.int64, np.float32)
        assert (np.diff(plane.ids) > 0).all()
        assert plane.ids.min(initial=0) >= 0
        assert plane.ids.max(initial=0) < plane.shape[0] * plane.shape[1]
        assert np.isfinite(plane.values).all()
        assert (plane.values >= known.threshold).all()


@pytest.mark.parametrize("species", PRIMARIES)
def test_the_primary_leads_the_truth(species):
    event = event_of(species)
    primary = event.particles[0]
    assert event.particles.dtype == PARTICLE
    assert primary["pdg"] in PRIMARIES[species]
    assert primary["process"] == b"primary"
    assert np.linalg.norm([primary["px"], primary["py"], primary["pz"]]) == pytest.approx(0.5)
    assert primary["energy_init"] > 0.4999
    known = detector("argoneut")
    assert known.x_cm[0] < primary["vtx"]["x"] < known.x_cm[1]
    assert list(event.particles["trackid"]) == list(range(1, len(event.particles) + 1))
    assert (event.particles["parent_trackid"][1:] < event.particles["trackid"][1:]).all()
    for name in PARTICLE.names:
        if event.particles[name].dtype.kind == "f":
            assert np.isfinite(event.particles[name]).all()


def test_both_charges_of_muons_appear():
    assert {event_of("muon", index).particles[0]["pdg"] for index in range(12)} == {13, -13}


def test_kaons_leave_a_muon():
    found = [row["pdg"] for index in range(8) for row in event_of("kaon", index, "microboone", 0.4).particles[1:]]
    assert found.count(-13) >= 3


def test_the_recorded_charge_follows_the_deposited_energy():
    for index in range(4):
        event = event_of("muon", index, "microboone", 0.4)
        visible_mev = 1e3 * event.particles["energy_deposit"].sum()
        collected = event.planes[2].values.sum() * 200 * 23.6e-6 / 0.63
        # electron lifetime, the Bragg peak's recombination and the threshold take up to a third
        assert 0.6 * visible_mev - 5 < collected < 1.1 * visible_mev + 5


def contents(path):
    with h5py.File(path) as file:
        tables = {}
        file.visititems(lambda name, item: tables.update({name: item[...]}) if isinstance(item, h5py.Dataset) else None)
    return tables


def test_a_file_is_the_same_whatever_the_worker_count(tmp_path):
    seen: list[int] = []
    summary = simulate(tmp_path / "one.h5", on_event=seen.append)
    simulate(tmp_path / "two.h5", workers=2)
    one, two = contents(tmp_path / "one.h5"), contents(tmp_path / "two.h5")
    assert one.keys() == two.keys()
    for name, table in one.items():
        for field in table.dtype.names:
            np.testing.assert_array_equal(table[field], two[name][field], err_msg=f"{name} {field}")
    assert seen == list(range(1, 11))
    assert summary.events == 10
    assert summary.events_per_second == pytest.approx(10 / summary.seconds)
    particles, extents = (one[f"Data/particle_mctruth_group/{name}"] for name in ("particles", "extents"))
    for index, pdg in enumerate(particles["pdg"][extents["first"]]):
        assert pdg in PRIMARIES[CLASSES[index % len(CLASSES)]], "the classes take turns"
    assert one["Events/event_id"].tolist() == [(1, 4, index) for index in range(10)]


def test_seeds_change_events_and_more_events_keep_the_first(tmp_path):
    few, more, other = (
        contents_of(tmp_path / f"{i}.h5", **o) for i, o in enumerate(({}, {"num_events": 12}, {"seed": 5}))
    )
    np.testing.assert_array_equal(few["px"], more["px"][: len(few)])
    assert not np.array_equal(few["px"][:2], other["px"][:2])


def contents_of(path, **changes):
    simulate(path, **changes)
    return contents(path)["Data/particle_mctruth_group/particles"]


def test_momenta_are_in_the_range_asked_for(tmp_path):
    particles = contents_of(tmp_path / "a.h5", momentum_gev=(0.3, 0.4))
    first = particles[particles["process"] == b"primary"]
    momenta = np.sqrt(first["px"] ** 2 + first["py"] ** 2 + first["pz"] ** 2)
    assert ((momenta >= 0.3) & (momenta <= 0.4)).all()
    assert len(momenta) == 10


def test_particles_start_and_fly_where_they_are_aimed(tmp_path):
    aim = Aim(((0.25, 0.75), (0.5, 0.5), (0.0, 0.2)), 20.0)
    particles = contents_of(tmp_path / "a.h5", num_events=40, classes=("proton",), aim=aim)
    first = particles[particles["process"] == b"primary"]
    known = detector("argoneut")
    for axis, (low, high), (least, most) in zip("xyz", aim.vertex, (known.x_cm, known.y_cm, known.z_cm), strict=True):
        share = (first["vtx"][axis] - least) / (most - least)
        assert share.min() >= low - 1e-9 and share.max() <= high + 1e-9
        assert np.ptp(share) > 0.8 * (high - low) or low == high
    cosines = first["pz"] / np.sqrt(first["px"] ** 2 + first["py"] ** 2 + first["pz"] ** 2)
    least = np.cos(np.radians(20))
    assert cosines.min() >= least
    # uniform in solid angle is uniform in the cosine
    assert cosines.mean() == pytest.approx((1 + least) / 2, abs=4 * (1 - least) / np.sqrt(12 * len(first)))
    assert np.ptp(np.arctan2(first["py"], first["px"])) > np.pi


def test_particles_start_anywhere_and_fly_in_any_direction_alike_by_default(tmp_path):
    particles = contents_of(tmp_path / "a.h5", num_events=200, classes=("proton",), momentum_gev=(0.1, 0.1))
    first = particles[particles["process"] == b"primary"]
    directions = np.stack([first["px"], first["py"], first["pz"]]) / 0.1
    np.testing.assert_allclose(directions.mean(axis=1), 0.0, atol=4 / np.sqrt(3 * len(first)))
    np.testing.assert_allclose((directions**2).mean(axis=1), 1 / 3, atol=4 * np.sqrt(4 / 45 / len(first)))
    z = detector("argoneut").z_cm
    assert np.ptp(first["vtx"]["z"]) > 0.9 * (z[1] - z[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("electron", "neutron")}, "neutron.*electron, gamma, muon"),
        ({"classes": ()}, "one at least"),
        ({"classes": ("muon", "muon")}, "at most once"),
        ({"momentum_gev": (1.0, 0.2)}, "momentum = 1.0:0.2"),
        ({"momentum_gev": (0.0, 0.2)}, "momentum = 0.0:0.2"),
        ({"momentum_gev": (1.0, 50.0)}, "<= 20.0"),
        ({"momentum_gev": (0.2, float("nan"))}, "momentum"),
        ({"num_events": 0}, "events = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"workers": 0}, "workers = 0"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        simulate(tmp_path / "out.h5", **changes)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_class_of_one_event_is_refused():
    with pytest.raises(UserError, match="'tau' cannot be simulated"):
        event_of("tau")
