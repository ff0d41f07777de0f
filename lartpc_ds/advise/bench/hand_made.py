"""`lartpc-ds bench handmade`: what a network has to beat on a recipe's events, and how far the truth itself reaches.

Two small classifiers on the recipe's own splits. One sees hand-made moments of the images that the network sees; the
other sees truth quantities that a perfect reconstruction would measure: lengths, energies, gaps and delays, never a
particle's name. Both are the same multilayer perceptron, because a stronger one (boosted trees) would ask every user
for one more package.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from lartpc_ds.config import recipes
from lartpc_ds.data.images import densify
from lartpc_ds.data.source import EventSource
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.embedded import simulated_events
from lartpc_ds.training import metrics
from lartpc_ds.training.sources import index_events, open_source

__all__ = ["bench", "classify", "image_moments", "truth_quantities"]

_EPOCHS, _BATCH, _WIDTH = 60, 128, 64
_CHARGE_GEV = 0.001
"""An event with less has noise alone: hardly a pixel above threshold."""
_VISIBLE_GEV = 0.003
"""Below, a descendant is a blob of a wire or two."""


def bench(recipe: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Measure the balanced accuracy of both, with its interval, and the share of events with charge in each class."""
    progress = Console(stderr=True)
    config, _ = recipes.load(recipe, overrides)
    if config.data.target is not None:
        raise UserError(f"data.target = {config.data.target!r}: images of your own have no truth; give event files")
    if config.data.split.validation == 0:
        raise UserError("data.split.validation = 0: nothing is held out to classify; give it a share")
    with TemporaryDirectory() as scratch:
        if not config.data.files:
            config = simulated_events(config, Path(scratch) / "simulated.h5", progress)
        source = open_source(config)
        assert isinstance(source, EventSource)
        index = index_events(config, source)
        used = np.flatnonzero(index.split != "")
        moments, truth, charged = _features(source, used)
    train, held_out = index.split[used] == "train", index.split[used] == "validation"
    labels = source.labels[used]
    return {
        "bench": "handmade",
        "recipe": recipe,
        "events": len(used),
        "held_out": int(held_out.sum()),
        "with_charge": {name: float(charged[labels == k].mean()) for k, name in enumerate(source.classes)},
        "moments": classify(moments, labels, train, held_out, source.classes).as_dict(),
        "truth": classify(truth, labels, train, held_out, source.classes).as_dict(),
    }


def _features(
    source: EventSource, used: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """The moments of all planes of each event, its truth quantities, and whether any particle left charge."""
    moments, truth, charged = [], [], []
    for position in used.tolist():
        event = source.files.read(position)
        moments.append(np.concatenate([image_moments(plane) for plane in densify(event, source.pre)]))
        truth.append(truth_quantities(event.particles))
        charged.append(event.particles["energy_deposit"].sum() > _CHARGE_GEV)
    return np.array(moments), np.array(truth), np.array(charged)


def image_moments(plane: NDArray[np.float32]) -> NDArray[np.float64]:
    """The charge, extent, shape and profile of one plane (rows, columns); zeros where it has no charge."""
    at = np.argwhere(plane > 0).astype(np.float64)
    charge = plane[plane > 0].astype(np.float64)
    if len(charge) < 2:
        return np.zeros(27)
    total, share = charge.sum(), charge / charge.sum()
    middle = share @ at
    away = at - middle
    axes, directions = np.linalg.eigh((away * share[:, None]).T @ away)
    along = away @ directions[:, 1] * np.sign(directions[0, 1] or 1.0)  # towards higher wires
    length = np.sqrt(max(axes[1], 1e-9))
    edges = np.linspace(along.min(), along.max() + 1e-9, 9)
    profile = np.histogram(along, edges, weights=share)[0]
    filled = np.unique(at[:, 0])
    return np.array(
        [
            *(np.log(total), np.log(len(charge)), *middle, *at.min(0), *np.ptp(at, axis=0)),
            *(length, np.sqrt(max(axes[0], 1e-9)), np.arctan2(directions[1, 1], directions[0, 1])),
            *(share @ along**3 / length**3, share @ along**4 / length**4),
            *np.log1p(np.quantile(charge, [0.5, 0.75, 0.9, 0.99, 1.0])),
            len(filled) / (np.ptp(filled) + 1),  # the rest are wires inside the event without charge
            *profile,
        ]
    )


def truth_quantities(particles: NDArray[np.void]) -> NDArray[np.float64]:
    """Lengths in cm, energies in GeV and delays in us of the primary and of what it made; no momentum and no name."""
    first, others = particles[0], particles[1:]
    seen = others[others["energy_deposit"] > _VISIBLE_GEV]
    gap = _distance(first["first_step"], first["vtx"]) if first["energy_deposit"] > 0 else -1.0
    path = max(float(first["dist_travel"]), 0.0)
    tracks, showers = seen[seen["shape"] == 1], seen[seen["shape"] == 0]
    delays = (seen["vtx"]["t"] - first["vtx"]["t"]) / 1e3
    lengths = np.sort(tracks["dist_travel"])[::-1]
    return np.array(
        [
            *(gap, np.log1p(path), first["energy_deposit"], first["energy_deposit"] / (path + 0.3)),
            float(first["shape"]),  # a shower or a track
            _distance(first["last_step"], first["first_step"]) / (path + 0.3),  # how straight
            *(len(tracks), len(showers), tracks["energy_deposit"].sum(), showers["energy_deposit"].sum()),
            np.log1p(lengths[0]) if len(lengths) else 0.0,
            showers["energy_deposit"].max(initial=0.0),
            *((delays > 0.2).sum(), np.log1p(max(delays.max(initial=0.0), 0.0))),
        ],
        np.float64,
    )


def _distance(a: np.void, b: np.void) -> float:
    return float(np.sqrt(sum((a[axis] - b[axis]) ** 2 for axis in "xyz")))


def classify(
    features: NDArray[np.float64],
    labels: NDArray[np.int64],
    train: NDArray[np.bool_],
    held_out: NDArray[np.bool_],
    classes: Sequence[str],
) -> metrics.Evaluation:
    """Train a multilayer perceptron on `train` and evaluate it on `held_out`; every call gives the same figures."""
    spread = features[train].std(axis=0)
    scaled = (features - features[train].mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    inputs = torch.from_numpy(scaled.clip(-10, 10).astype(np.float32))
    with torch.random.fork_rng(), _one_thread():
        torch.manual_seed(0)
        network = _trained(inputs[train], torch.from_numpy(labels[train]), len(classes))
        with torch.no_grad():
            logits = network(inputs[held_out]).numpy()
    return metrics.of_scores(logits, labels[held_out], classes)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Inside, torch has one thread: matrices as small as these only lose by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _trained(inputs: torch.Tensor, targets: torch.Tensor, num_classes: int) -> Callable[[torch.Tensor], torch.Tensor]:
    network = nn.Sequential(
        *(nn.Linear(inputs.shape[1], _WIDTH), nn.ReLU(), nn.Dropout(0.1)),
        *(nn.Linear(_WIDTH, _WIDTH), nn.ReLU(), nn.Dropout(0.1)),
        nn.Linear(_WIDTH, num_classes),
    )
    steps = _EPOCHS * -(-len(inputs) // _BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(_EPOCHS):
        for chosen in torch.split(torch.randperm(len(inputs)), _BATCH):
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(network(inputs[chosen]), targets[chosen]))
            optimizer.step()
            schedule.step()
    return network.eval()
