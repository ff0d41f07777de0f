"""Facts that the physics must reproduce. Reference figures come from tables and textbooks, not from this code."""

from dataclasses import replace

import numpy as np
import pytest

from lartpc_ds.data.detectors import detector
from lartpc_ds.simulation import argon
from lartpc_ds.simulation.ionization import recombination, stopping_table
from lartpc_ds.simulation.kinematics import across, boost, isotropic, phase_space
from lartpc_ds.simulation.particles import SPECIES, Flight
from lartpc_ds.simulation.photons import brem_photon, pair_share, photon_table
from lartpc_ds.simulation.processes import at_rest, decay
from lartpc_ds.simulation.rays import Rays
from lartpc_ds.simulation.showers import cascade
from lartpc_ds.simulation.tracks import walk
from lartpc_ds.simulation.transport import transport

MUON = SPECIES[13].mass_mev


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def boundless():
    wide = (-3000.0, 3000.0)
    return replace(detector("microboone"), x_cm=wide, y_cm=wide, z_cm=wide)


def forward(pdg: int, momentum_mev: float) -> Flight:
    return Flight(pdg, np.array([0.0, 0.0, momentum_mev]), np.zeros(3), 0.0)


@pytest.mark.parametrize(
    ("kinetic", "loss", "range_"),
    # liquid argon table of PUMAS (niess/pumas-materials): MeV, ionization MeV cm2/g, range g/cm2
    [(10, 5.697, 0.9913), (100, 1.670, 42.47), (250, 1.508, 139.3), (1000, 1.644, 616.2), (3000, 1.824, 1759)],
)
def test_muon_loss_and_range_agree_with_the_published_table(kinetic, loss, range_):
    table = stopping_table(MUON)
    energy = np.array([float(kinetic)])
    assert table.ionization(energy)[0] / argon.DENSITY == pytest.approx(loss, rel=0.005)
    assert table.range(energy)[0] * argon.DENSITY == pytest.approx(range_, rel=0.005)
    assert table.kinetic(table.range(energy))[0] == pytest.approx(kinetic, rel=1e-4)


def test_minimum_ionization_is_2_1_mev_per_cm():
    kinetic = np.geomspace(50, 2000, 200)
    assert stopping_table(MUON).ionization(kinetic).min() == pytest.approx(2.1, rel=0.01)


def test_a_stopping_proton_is_shorter_and_denser_than_a_muon_of_the_same_momentum():
    kinetic = {mass: np.hypot(500.0, mass) - mass for mass in (MUON, SPECIES[2212].mass_mev)}
    muon, proton = (stopping_table(mass).range(np.array([energy]))[0] for mass, energy in kinetic.items())
    assert proton < muon / 8
    proton_loss = stopping_table(SPECIES[2212].mass_mev).ionization(np.array([kinetic[SPECIES[2212].mass_mev]]))[0]
    assert proton_loss > 2.5 * 2.1


@pytest.mark.parametrize(("field", "expected"), [(0.273, 0.633), (0.5, 0.70)])
def test_recombination_of_a_minimum_ionizing_particle(field, expected):
    assert recombination(np.array([2.1]), field)[0] == pytest.approx(expected, abs=0.01)
    assert recombination(np.array([20.0]), field)[0] < 0.5 * expected


def test_a_stopping_muon_ends_near_its_range_with_all_its_energy_and_a_bragg_rise(rng):
    count, kinetic = 60, 200.0
    table = stopping_table(MUON)
    ray = Rays(np.zeros((count, 3)), isotropic(count, rng), np.full(count, kinetic), np.zeros(count), np.arange(count))
    full_range = table.range(ray.kinetic_mev)
    walked = walk(ray, table, full_range, rng)
    origin, energy = walked.deposits.origin, walked.deposits.energy_mev
    spent = np.bincount(origin, energy) + np.bincount(walked.deltas.origin, walked.deltas.kinetic_mev, count)
    np.testing.assert_allclose(spent, kinetic)
    straight = np.linalg.norm(walked.ends.position, axis=1)
    assert 0.85 * full_range[0] < straight.mean() < full_range[0]
    along = np.linalg.norm(walked.deposits.position - walked.ends.position[origin], axis=1)
    last, early = energy[along < 1].sum() / count, energy[(along > 30) & (along < 31)].sum() / count
    assert last > 2.5 * early


def test_energy_loss_in_3_mm_has_the_mean_of_bethe_and_the_peak_of_landau(rng):
    count = 300
    table = stopping_table(MUON)
    ray = Rays(
        np.zeros((count, 3)), np.tile([0, 0, 1.0], (count, 1)), np.full(count, 270.0), np.zeros(count), np.arange(count)
    )
    walked = walk(ray, table, np.full(count, 15.0), rng)
    energy = walked.deposits.energy_mev
    mean = (energy.sum() + walked.deltas.kinetic_mev.sum()) / count / 15
    assert mean == pytest.approx(2.11, rel=0.02)
    counts, edges = np.histogram(energy.reshape(count, -1, 2).sum(axis=2) / 0.3, np.arange(1.0, 4.0, 0.1))
    peak = edges[counts.argmax()] + 0.05
    # Landau-Vavilov most probable value of PDG 34 for 3 mm: 1.61 MeV/cm
    assert peak == pytest.approx(1.61, abs=0.11)


def test_multiple_scattering_follows_highland(rng):
    count, momentum, length = 2000, 400.0, 14.0
    kinetic = np.hypot(momentum, MUON) - MUON
    ray = Rays(
        np.zeros((count, 3)),
        np.tile([0, 0, 1.0], (count, 1)),
        np.full(count, kinetic),
        np.zeros(count),
        np.arange(count),
    )
    walked = walk(ray, stopping_table(MUON), np.full(count, length), rng)
    # momentum falls by 8 % on the way: compare at its middle
    middle = momentum - 15.5
    expected = 13.6 / (middle**2 / np.hypot(middle, MUON))
    assert np.std(walked.ends.direction[:, 0]) == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize(
    ("energy", "per_gram"),
    # NIST standard reference database 126 (without coherent scattering these differ below 1 %)
    [(1.0, 5.762e-2), (2.0, 4.074e-2), (5.0, 2.802e-2), (10.0, 2.451e-2), (20.0, 2.453e-2)],
)
def test_photon_attenuation_agrees_with_nist(energy, per_gram):
    table = photon_table()
    attenuation = np.interp(energy, table.energy_mev, table.attenuation_per_cm)
    assert attenuation / argon.DENSITY == pytest.approx(per_gram, rel=0.03)


def test_spectra_have_the_means_of_their_formulae(rng):
    energy = np.full(20000, 500.0)
    # PDG 34, complete screening, above 1 MeV: mean of k, and mean and variance of x, integrated by hand
    y = 1 / 500
    mean = (4 / 3 * (1 - y) - 2 / 3 * (1 - y**2) + (1 - y**3) / 3) / (
        -4 / 3 * np.log(y) - 4 / 3 * (1 - y) + (1 - y**2) / 2
    )
    assert brem_photon(energy, rng).mean() == pytest.approx(500 * mean, rel=0.03)
    share = pair_share(energy, rng)
    assert share.mean() == pytest.approx(0.5, abs=0.01)
    assert share.var() == pytest.approx((1 / 12 - 4 / 3 / 120) / (7 / 9), rel=0.03)


def test_photons_convert_after_nine_sevenths_radiation_lengths(rng):
    count = 400
    start = Rays(
        np.zeros((count, 3)), np.tile([0, 0, 1.0], (count, 1)), np.full(count, 300.0), np.zeros(count), np.arange(count)
    )
    deposits = cascade(start[:0], start, lambda position: np.ones(len(position), bool), rng)
    _, first = np.unique(deposits.origin, return_index=True)
    gaps = deposits.position[first, 2]
    # at 300 MeV screening is not complete: pair production is near 0.87 of its high-energy limit, Compton adds 0.03
    assert np.mean(gaps) == pytest.approx(9 / 7 * argon.RADIATION_LENGTH_CM / 0.9, rel=0.12)
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.15)


@pytest.mark.slow
def test_a_gamma_starts_with_twice_the_ionization_of_an_electron(rng, boundless):
    start = {}
    for pdg in (11, 22):
        losses = []
        for _ in range(80):
            deposits, _ = transport(forward(pdg, 500.0), boundless, rng)
            along = deposits.position - deposits.position[0]
            near = (np.abs(along[:, 2]) < 2) & (np.hypot(along[:, 0], along[:, 1]) < 1)
            losses.append(deposits.energy_mev[near].sum() / 2)
        start[pdg] = np.median(losses)
    assert start[11] == pytest.approx(2.2, rel=0.15)
    assert start[22] / start[11] == pytest.approx(2.0, rel=0.2)


def test_a_shower_deposits_nearly_all_its_energy_some_radiation_lengths_deep(rng, boundless):
    shares, depths = [], []
    for _ in range(40):
        deposits, _ = transport(forward(11, 500.0), boundless, rng)
        shares.append(deposits.energy_mev.sum() / 500)
        depths.append(np.average(deposits.position[:, 2], weights=deposits.energy_mev) / argon.RADIATION_LENGTH_CM)
    # photons below 1 MeV from bremsstrahlung and below 0.3 MeV from scattering are not followed
    assert 0.90 < np.mean(shares) < 1.0
    # PDG 34: maximum at ln(E / Ec) - 0.5 = 2.2, the mean of the gamma profile about 1.5 deeper
    assert np.mean(depths) == pytest.approx(3.7, abs=0.6)


def test_a_kaon_at_rest_decays_mostly_to_a_muon_of_236_mev(rng):
    momenta = []
    for _ in range(400):
        process, delay_us, products = at_rest(321, rng)
        assert process == "Decay"
        assert delay_us > 0
        if [pdg for pdg, _ in products] == [-13]:
            momenta.append(np.linalg.norm(products[0][1]))
    assert len(momenta) / 400 == pytest.approx(0.636, abs=0.07)
    np.testing.assert_allclose(momenta, 235.5, atol=0.2)


def test_a_stopped_positive_pion_ends_in_a_muon_and_then_a_positron(rng, boundless):
    for _ in range(50):
        deposits, truth = transport(forward(211, 150.0), boundless, rng)
        rows = truth.rows(deposits)
        # those that neither interact nor decay on the way
        if rows[1]["pdg"] == -13 and np.linalg.norm([rows[1]["px"], rows[1]["py"], rows[1]["pz"]]) < 0.0299:
            break
    assert list(rows["pdg"]) == [211, -13, -11]
    assert list(rows["parent_pdg"]) == [211, 211, -13]
    assert rows[1]["energy_init"] * 1e3 - MUON == pytest.approx(4.12, abs=0.02)
    assert rows[2]["energy_init"] < 0.0529
    assert rows[2]["vtx"]["t"] > rows[1]["vtx"]["t"]


def test_a_negative_muon_is_mostly_captured_and_a_positive_one_never(rng):
    electrons = {pdg: sum(bool(at_rest(pdg, rng)[2]) for _ in range(300)) for pdg in (13, -13)}
    assert electrons[-13] == 300
    assert electrons[13] / 300 == pytest.approx(0.24, abs=0.08)


def test_pions_interact_and_muons_do_not(rng, boundless):
    inelastic = {211: 0, -13: 0}
    for pdg in inelastic:
        for _ in range(60):
            _, truth = transport(forward(pdg, 500.0), boundless, rng)
            inelastic[pdg] += any("Inelastic" in flight.process for flight in truth.flights)
    assert inelastic[-13] == 0
    # range 150 cm over an interaction length of about a metre
    assert inelastic[211] > 35


@pytest.mark.parametrize("momentum", [0.0, 800.0])
def test_decays_conserve_energy_and_momentum(momentum, rng):
    parent = np.array([0.0, momentum, 0.0])
    mass = SPECIES[111].mass_mev
    photons = np.array([p for _, p in decay(111, parent, rng)])
    np.testing.assert_allclose(photons.sum(axis=0), parent, atol=1e-6)
    assert np.linalg.norm(photons, axis=1).sum() == pytest.approx(np.hypot(momentum, mass))


def test_three_body_phase_space_conserves_energy_and_momentum(rng):
    masses = [139.57, 139.57, 139.57]
    momenta = phase_space(493.677, masses, rng)
    np.testing.assert_allclose(momenta.sum(axis=0), 0, atol=1e-9)
    assert np.hypot(np.linalg.norm(momenta, axis=1), masses).sum() == pytest.approx(493.677)


def test_a_boost_keeps_the_mass_and_adds_the_parents_velocity():
    momenta, masses = np.zeros((1, 3)), np.array([938.0])
    boosted = boost(momenta, masses, np.array([1.0, 0, 0]), gamma=1.5)
    np.testing.assert_allclose(boosted, [[938.0 * np.sqrt(1.25), 0, 0]])


def test_frames_are_orthonormal(rng):
    directions = np.concatenate([isotropic(50, rng), [[0, 0, 1.0], [0, 0, -1.0]]])
    first, second = across(directions)
    frames = np.stack([first, second, directions], axis=1)
    np.testing.assert_allclose(frames @ frames.transpose(0, 2, 1), np.tile(np.eye(3), (52, 1, 1)), atol=1e-12)
