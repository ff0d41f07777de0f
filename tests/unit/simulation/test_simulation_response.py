from dataclasses import replace

import numpy as np
import pytest

from lartpc_ds.data.detectors import detector
from lartpc_ds.simulation import argon
from lartpc_ds.simulation.drift import Clouds, drift
from lartpc_ds.simulation.rays import Deposits
from lartpc_ds.simulation.response import charge_blocks, plane_pixels

MIP = 2.1


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture(params=["argoneut", "microboone", "sbnd"])
def known(request):
    return detector(request.param)


def deposits_at(position: np.ndarray, energy_mev: float, time_us: float = 0.0) -> Deposits:
    count = len(position)
    return Deposits(
        position, np.full(count, energy_mev), np.full(count, MIP), np.full(count, time_us), np.zeros(count, np.int64)
    )


def middle(known, x_cm: float) -> np.ndarray:
    return np.array([[x_cm, np.mean(known.y_cm) + 0.01, np.mean(known.z_cm) + 0.02]])


def test_charge_survives_recombination_lifetime_and_nothing_else(known):
    clouds = drift(deposits_at(middle(known, np.ptp(known.x_cm) / 2), 2.0), known)
    drift_ms = np.ptp(known.x_cm) / 2 / known.drift_velocity_cm_per_us / 1e3
    beta = 0.212 / (argon.DENSITY * known.field_kv_per_cm) * MIP
    survives = np.log(0.93 + beta) / beta * np.exp(-drift_ms / known.electron_lifetime_ms)
    assert clouds.electrons[0] == pytest.approx(2.0 / 23.6e-6 * survives)
    assert clouds.sigma_cm[0] == pytest.approx(
        np.sqrt(2 * known.transverse_diffusion_cm2_per_s * drift_ms / 1e3), rel=1e-9
    )


def test_charge_outside_the_volume_is_lost(known):
    positions = np.concatenate([middle(known, -0.1), middle(known, np.ptp(known.x_cm) + 0.1), middle(known, 1.0)])
    assert len(drift(deposits_at(positions, 1.0), known).electrons) == 1


def test_charge_is_conserved_before_zero_suppression(known, rng):
    low, high = np.array([known.x_cm, known.y_cm, known.z_cm]).T
    centre, half = (low + high) / 2, (high - low) / 2
    positions = centre + rng.uniform(-0.6, 0.6, (500, 3)) * half
    clouds = drift(deposits_at(positions, 0.3), known)
    for plane in known.planes:
        _, ticks, values = charge_blocks(clouds, plane, known)
        assert ((ticks >= 0) & (ticks < known.ticks))[values > 1e-9].all()
        assert values.sum() * known.electrons_per_unit == pytest.approx(clouds.electrons.sum(), rel=2e-3)


@pytest.mark.parametrize("time_us", [0.0, 5.0])
def test_a_point_lands_on_its_wire_and_tick(known, time_us):
    x_cm = 0.37 * np.ptp(known.x_cm)
    point = middle(known, x_cm)
    clouds = drift(deposits_at(point, 1.0, time_us), known)
    for plane in known.planes:
        wires, ticks, values = charge_blocks(clouds, plane, known)
        at_wire = np.average(np.broadcast_to(wires[:, None], values.shape), weights=values)
        at_tick = np.average(ticks, weights=values)
        wire = plane.wire_coordinate(point[:, 1], point[:, 2])[0]
        tick = known.trigger_tick - known.first_tick
        tick += (x_cm / known.drift_velocity_cm_per_us + time_us) / known.tick_us
        assert at_wire == pytest.approx(wire, abs=0.5)
        assert at_tick == pytest.approx(tick, abs=0.05)


def test_a_minimum_ionizing_track_peaks_at_10_to_20_units(known):
    # across the collection wires, near the anode
    collection = known.planes[-1]
    angle = np.radians(collection.angle_deg)
    along = np.arange(-15, 15, 0.05)
    points = middle(known, 0.1 * np.ptp(known.x_cm)) + along[:, None] * np.array([0, -np.sin(angle), np.cos(angle)])
    clouds = drift(deposits_at(points, MIP * 0.05), known)
    wires, _, values = charge_blocks(clouds, collection, known)
    peaks = [values[wires == wire].max() for wire in np.unique(wires)[10:-10]]
    assert 10 < np.median(peaks) < 20


def test_charge_at_the_edges_of_window_and_plane_is_lost_not_moved(rng):
    known = replace(detector("argoneut"), threshold=0.5, planes=detector("argoneut").planes[:1])
    plane = replace(known.planes[0], wires=50, noise_electrons=1.0)
    known = replace(known, planes=(plane,))
    wire_of = {wire: (wire - plane.offset) * plane.pitch_cm / np.cos(np.radians(30)) for wire in (0, 49, 60)}
    for wire, tick, share in [(0, 0, 0.5), (49, known.ticks - 0.5, 0.5), (60, 100, 0.0), (0, -100, 0.0)]:
        clouds = Clouds(
            np.array([1e5]),
            np.array([tick - 0.5]),
            np.array([5.0]),
            np.zeros(1),
            np.array([wire_of[wire]]),
            np.zeros(1),
        )
        pixels = plane_pixels(clouds, 0, known, rng)
        total = pixels.values.sum() * known.electrons_per_unit / 1e5
        assert total == pytest.approx(share, abs=0.06)
        if share:
            assert set(pixels.ids // known.ticks) == {wire}


def test_noise_is_that_of_every_pixel(rng):
    """The short cut (noise near charge, and a binomial number of lone pixels) against what a Gaussian gives."""
    known = replace(detector("argoneut"), threshold=3.0)
    noise = 1.5
    known = replace(
        known, planes=tuple(replace(plane, noise_electrons=noise * known.electrons_per_unit) for plane in known.planes)
    )
    clouds = drift(deposits_at(middle(known, 20.0), 1e-4), known)
    found = [plane_pixels(clouds, 0, known, rng) for _ in range(5)]
    values = np.concatenate([pixels.values for pixels in found])
    pixels = 5 * 240 * 2048
    # survival of a standard normal above 2 and 3: 0.02275, 0.00135
    assert len(values) == pytest.approx(pixels * 0.02275, rel=0.02)
    assert np.sum(values > 2 * 1.5 * 1.5) == pytest.approx(pixels * 0.00135, rel=0.1)
    ids = found[0].ids
    assert (np.diff(ids) > 0).all()
    rows = np.bincount(ids // 2048, minlength=240)
    assert rows.std() == pytest.approx(np.sqrt(rows.mean()), rel=0.25)


def test_an_empty_event_has_only_noise(known, rng):
    clouds = drift(deposits_at(np.empty((0, 3)), 1.0), known)
    for number in range(len(known.planes)):
        pixels = plane_pixels(clouds, number, known, rng)
        assert len(pixels.ids) < 1e-3 * pixels.shape[0] * pixels.shape[1]
        assert (pixels.values >= known.threshold).all()
