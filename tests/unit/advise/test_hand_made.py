from pathlib import Path

import numpy as np
import pytest

from lartpc_ds.advise.bench.hand_made import bench, classify, image_moments, truth_quantities
from lartpc_ds.data.detectors import detector
from lartpc_ds.data.event import EventId
from lartpc_ds.errors import UserError
from lartpc_ds.simulation.generate import Aim, simulate_event

CLASSES = ("a", "b")


def plane_of(*pixels: tuple[int, int, float]) -> np.ndarray:
    plane = np.zeros((40, 60), np.float32)
    for row, col, charge in pixels:
        plane[row, col] = charge
    return plane


def test_an_event_without_charge_has_no_moments() -> None:
    assert not image_moments(plane_of()).any()
    assert not image_moments(plane_of((3, 4, 9.0))).any()


def test_moments_say_where_charge_is_how_much_and_how_it_lies() -> None:
    track = plane_of(*((5 + k, 20, 10.0) for k in range(0, 21, 2)))
    moments = image_moments(track)
    assert np.exp(moments[:2]) == pytest.approx([110.0, 11])
    assert moments[2:8] == pytest.approx([15, 20, 5, 20, 20, 0])
    assert moments[8] == pytest.approx(np.std(np.arange(0, 21, 2)))
    assert moments[18] == pytest.approx(11 / 21), "every second wire is empty"
    assert moments[19:].sum() == pytest.approx(1)


def test_moments_know_the_bright_end_of_a_track() -> None:
    ends = [plane_of(*((5 + k, 20, 10.0 + 40 * (k == bright)) for k in range(20))) for bright in (0, 19)]
    first, last = (image_moments(plane) for plane in ends)
    assert first[19] > first[26] and last[19] < last[26]
    assert first[11] == pytest.approx(-last[11]) and abs(first[11]) > 0.1


def test_truth_quantities_hold_no_name_and_no_momentum() -> None:
    rng, middle = np.random.default_rng(3), Aim(((0.5, 0.5),) * 3)
    particles = simulate_event(detector("argoneut"), "kaon", 0.3, rng, EventId("made.h5", 0, 1, 1, 0), middle).particles
    assert len(particles) > 1
    before = truth_quantities(particles)
    for field, value in (("pdg", 13), ("parent_pdg", 13), ("ancestor_pdg", 13), ("process", b"none"), ("px", 9.0)):
        particles[field] = value
    particles["energy_init"] = 1.0
    np.testing.assert_array_equal(truth_quantities(particles), before)
    particles["energy_deposit"][0] *= 2
    assert not np.array_equal(truth_quantities(particles), before)


def test_the_classifier_finds_what_is_there_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(1200) % 2
    held_out = np.arange(1200) >= 800
    noise = rng.standard_normal((1200, 4))
    features = noise.copy()
    features[:, 1] += 6 * labels
    found = classify(features, labels, ~held_out, held_out, CLASSES)
    assert found.balanced_accuracy.value > 0.97
    assert found == classify(features, labels, ~held_out, held_out, CLASSES), "the same at every call"
    nothing = classify(noise, labels, ~held_out, held_out, CLASSES)
    assert nothing.balanced_accuracy.value == pytest.approx(0.5, abs=0.1)
    assert nothing.events == 400


@pytest.fixture
def run(tmp_path: Path) -> str:
    path = tmp_path / "run.toml"
    path.write_text(
        '[data]\ndetector = "argoneut"\nclasses = ["gamma", "muon"]\n'
        "split = { train = 0.6, validation = 0.4 }\n[data.simulate]\nevents = 60\n[train]\nmax_steps = 1\n"
    )
    return str(path)


@pytest.mark.slow
def test_a_runs_own_events_and_splits_are_classified(run: str) -> None:
    result = bench(run, ["data.simulate.angle=10.0", "data.simulate.vertex=[[0.5,0.5],[0.5,0.5],[0.0,0.0]]"])
    assert result["events"] == 60 and 0 < result["held_out"] < 60
    assert result["with_charge"]["muon"] == 1.0 and result["with_charge"]["gamma"] > 0.8
    for kind in ("moments", "truth"):
        assert result[kind]["events"] == result["held_out"]
        assert 0.5 < result[kind]["balanced_accuracy"]["value"] <= 1.0


def test_what_cannot_be_classified_is_refused(run: str) -> None:
    with pytest.raises(UserError, match=r"data\.split\.validation"):
        bench(run, ["data.split={train=1.0,validation=0.0}"])
