"""Class labels from truth: the species of a single particle, or the interaction of a neutrino.

The neutrino rule is CosmicTagger's (github.com/coreyjadams/CosmicTagger): the primary of the truth is the neutrino;
neutral current comes before flavour, and an event without truth particle is cosmic rays alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.truth import NEUTRINOS, Primaries
from lartpc_ds.errors import UserError

__all__ = ["SCHEMES", "SPECIES", "check_labels", "class_names", "label_classes", "label_counts", "truth_names"]

SCHEMES = ("particle", "neutrino")
NEUTRINO_CLASSES = ("nue", "numu", "nc", "cosmic")
# Monte Carlo numbers of the Particle Data Group; both charges are one species, because the detector has no magnet
SPECIES: Mapping[str, tuple[int, ...]] = {
    "electron": (11, -11),
    "gamma": (22,),
    "muon": (13, -13),
    "pion": (211, -211),
    "pi0": (111,),
    "kaon": (321, -321),
    "proton": (2212, -2212),
    "neutron": (2112, -2112),
}

Classes = Sequence[str] | Mapping[str, Sequence[int]]


def class_names(scheme: str, classes: Classes) -> tuple[str, ...]:
    """The names in the order of `classes`, which is the order of the labels.

    Raises:
        UserError: they are not classes of `scheme`.
    """
    names = tuple(classes)
    if scheme not in SCHEMES:
        raise UserError(f"data.labels: {scheme!r} is unknown; expected one of: {', '.join(SCHEMES)}")
    if not names:
        raise UserError("data.classes: is empty; name the classes to tell apart")
    if len(set(names)) != len(names):
        raise UserError(f"data.classes: a name occurs twice in {list(names)}")
    if scheme == "neutrino":
        if isinstance(classes, Mapping):
            raise UserError(f"data.classes: labels = 'neutrino' takes a list out of: {', '.join(NEUTRINO_CLASSES)}")
        _known(names, NEUTRINO_CLASSES, "neutrino")
    else:
        _pdg_codes(classes)
    return names


def label_classes(primaries: Primaries, scheme: str, classes: Classes) -> NDArray[np.int64]:
    """The label of each event: its place in `class_names(scheme, classes)`, or -1 where it belongs to no class."""
    names = class_names(scheme, classes)
    labels = np.full(len(primaries), -1, np.int64)
    if scheme == "neutrino":
        masks = _neutrino_masks(primaries)
        for label, name in enumerate(names):
            labels[masks[name]] = label
    else:
        for label, (name, codes) in enumerate(_pdg_codes(classes).items()):
            _refuse_neutral_currents(primaries, name, codes)
            labels[primaries.has_particle & np.isin(primaries.pdg, codes)] = label
    return labels


def truth_names(primaries: Primaries) -> list[str]:
    """A name for each event under any scheme: its neutrino class, else its primary's species, else its pdg code."""
    species = {code: name for name, codes in SPECIES.items() for code in codes}
    names = [species.get(code, f"pdg {code}") for code in primaries.pdg.tolist()]
    for name, mask in _neutrino_masks(primaries).items():
        for position in np.flatnonzero(mask):
            names[position] = name
    return names


def label_counts(labels: NDArray[np.int64], names: Sequence[str]) -> dict[str, int]:
    """The number of events of each class."""
    counts = np.bincount(labels[labels >= 0], minlength=len(names))
    return dict(zip(names, counts.tolist(), strict=True))


def check_labels(labels: NDArray[np.int64], names: Sequence[str]) -> None:
    """Raise UserError if a class has no events."""
    counts = label_counts(labels, names)
    empty = [name for name, count in counts.items() if count == 0]
    if empty:
        numbers = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(
            f"data.classes: no events of {', '.join(empty)}; found {numbers} and {int(np.sum(labels < 0))} of no "
            "class; remove the class or add files that have it"
        )


def _neutrino_masks(primaries: Primaries) -> dict[str, NDArray[np.bool_]]:
    flavour = np.abs(primaries.pdg)
    neutrino = primaries.has_particle & np.isin(flavour, NEUTRINOS)
    charged = neutrino & (primaries.current_type == 0)
    return {
        "nue": charged & (flavour == 12),
        "numu": charged & (flavour == 14),
        "nc": neutrino & (primaries.current_type == 1),
        "cosmic": ~primaries.has_particle,
    }


def _refuse_neutral_currents(primaries: Primaries, name: str, codes: Sequence[int]) -> None:
    """Refuse neutral currents, which show no flavour, in a class that does not hold both flavours.

    The pdg codes that make the class say nothing about the current.
    """
    flavours = {abs(code) for code in codes}
    chosen = primaries.has_particle & np.isin(primaries.pdg, codes)
    neutral = chosen & (primaries.current_type == 1) & np.isin(np.abs(primaries.pdg), NEUTRINOS)
    if flavours >= {12, 14} or not neutral.any():
        return
    raise UserError(
        f"data.classes.{name}: {int(neutral.sum())} of its {int(chosen.sum())} events are neutral-current interactions "
        "in which no flavour of a neutrino shows; set data.labels = 'neutrino' and data.classes to a list out of "
        f"{', '.join(NEUTRINO_CLASSES)}, or give all neutrinos one class, with the codes of every flavour"
    )


def _pdg_codes(classes: Classes) -> dict[str, tuple[int, ...]]:
    """The codes of each class; a name without codes must be a species, and no code may be in two classes."""
    if isinstance(classes, Mapping):
        codes = {name: tuple(given) for name, given in classes.items()}
    else:
        _known(classes, tuple(SPECIES), "particle")
        codes = {name: SPECIES[name] for name in classes}
    owner: dict[int, str] = {}
    for name, given in codes.items():
        if not given:
            raise UserError(f"data.classes.{name}: is empty; give its pdg codes")
        for code in given:
            if owner.setdefault(code, name) != name:
                raise UserError(f"data.classes: pdg {code} is in {owner[code]} and in {name}; expected one class")
    return codes


def _known(names: Sequence[str], allowed: Sequence[str], scheme: str) -> None:
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise UserError(
            f"data.classes: {', '.join(unknown)} unknown to labels = {scheme!r}; expected some of: {', '.join(allowed)}"
        )
