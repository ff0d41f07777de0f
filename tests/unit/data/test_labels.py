import numpy as np
import pytest

from lartpc_ds.data.labels import check_labels, class_names, label_classes, label_counts, truth_names
from lartpc_ds.data.truth import Primaries
from lartpc_ds.errors import UserError


def primaries(*rows: tuple[int, int] | None) -> Primaries:
    """One (pdg, current_type) for each event, None for an event without particle."""
    has_particle = np.array([row is not None for row in rows])
    pdg, current = np.array([row or (0, -1) for row in rows], np.int64).T
    energy = np.where(has_particle, 1.0, np.nan)
    return Primaries(pdg, current, energy, energy, has_particle)


PARTICLES = primaries((11, -1), (-11, -1), (22, -1), (13, -1), (-211, -1), (321, -1), (2212, -1), (111, -1), None)
NEUTRINOS = primaries((12, 0), (-12, 0), (14, 0), (-14, 1), (12, 1), (16, 0), (16, 1), (13, -1), (14, -1), None)


def test_species_of_both_charges():
    names = ["electron", "gamma", "muon", "pion", "kaon"]
    assert label_classes(PARTICLES, "particle", names).tolist() == [0, 0, 1, 2, 3, 4, -1, -1, -1]
    assert class_names("particle", names) == tuple(names)


def test_classes_by_exact_code():
    classes = {"positron": [-11], "shower": [11, 22, 111]}
    assert label_classes(PARTICLES, "particle", classes).tolist() == [1, 0, 1, -1, -1, -1, -1, 1, -1]
    # the place of an event without particle holds pdg 0, which is nobody's
    assert label_classes(PARTICLES, "particle", {"zero": [0]}).tolist() == [-1] * 9


def test_neutrino_rule():
    names = ["nue", "numu", "nc", "cosmic"]
    # nu_tau CC, a muon and a neutrino of unknown current are of no class
    assert label_classes(NEUTRINOS, "neutrino", names).tolist() == [0, 0, 1, 2, 2, -1, 2, -1, -1, 3]
    assert label_classes(NEUTRINOS, "neutrino", ["cosmic", "nue"]).tolist() == [1, 1, -1, -1, -1, -1, -1, -1, -1, 0]


def test_names_of_any_truth():
    expected = ["nue", "nue", "numu", "nc", "nc", "pdg 16", "nc", "muon", "pdg 14", "cosmic"]
    assert truth_names(NEUTRINOS) == expected
    assert truth_names(PARTICLES)[:5] == ["electron", "electron", "gamma", "muon", "pion"]


@pytest.mark.parametrize(
    ("scheme", "classes", "message"),
    [
        ("species", ["muon"], r"data\.labels: 'species' is unknown; expected one of: particle, neutrino"),
        ("particle", ["muon", "tau"], r"data\.classes: tau unknown to labels = 'particle'; .*electron, gamma"),
        ("neutrino", ["nue", "muon"], r"data\.classes: muon unknown to labels = 'neutrino'; .*nue, numu, nc, cosmic"),
        ("neutrino", {"nue": [12]}, r"data\.classes: labels = 'neutrino' takes a list"),
        ("particle", [], r"data\.classes: is empty"),
        ("particle", ["muon", "muon"], r"data\.classes: a name occurs twice"),
        ("particle", {"a": [11], "b": [13, 11]}, r"pdg 11 is in a and in b"),
        ("particle", {"a": []}, r"data\.classes\.a: is empty"),
    ],
)
def test_wrong_classes(scheme, classes, message):
    with pytest.raises(UserError, match=message):
        class_names(scheme, classes)


def test_class_without_events():
    labels = np.array([0, 2, 2, -1])
    assert label_counts(labels, ("e", "mu", "pi")) == {"e": 1, "mu": 0, "pi": 2}
    with pytest.raises(UserError, match=r"data\.classes: no events of mu; found e 1, mu 0, pi 2 and 1 of no class"):
        check_labels(labels, ("e", "mu", "pi"))
    check_labels(labels[labels != 2], ("e",))
