"""The field's classification figures, as pure functions of a table of truths and scores.

All figures come from the confusion matrix of whole predictions, which is gathered once, so that no figure depends on
the number of ranks or on the order of batches. Rejected: a mean of the means per rank, which does. Intervals are
Wilson's, which are sane at 0 and 1, unlike sqrt(e(1-e)/N).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, PlainSerializer, TypeAdapter

__all__ = [
    "Evaluation",
    "Interval",
    "confusion_matrix",
    "of_confusion",
    "of_scores",
    "wilson",
]

_Z = 1.959964  # 95 %, two-sided

Fraction = Annotated[
    float,
    BeforeValidator(lambda value: nan if value is None else value),
    PlainSerializer(lambda value: None if isnan(value) else value),
]
"""A number that may be NaN; JSON has no NaN, so there it is null."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A fraction with its 95 % interval; NaN where nothing was counted."""

    value: Fraction
    low: Fraction
    high: Fraction

    def __str__(self) -> str:
        return "-" if isnan(self.value) else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The figures of one evaluation.

    `confusion` has true classes in rows, and counts what `counted` says: events or pixels.
    """

    classes: tuple[str, ...]
    events: int
    loss: float
    accuracy: Interval
    balanced_accuracy: Interval
    confusion: tuple[tuple[int, ...], ...]
    efficiency: tuple[Interval, ...]
    purity: tuple[Interval, ...]
    counted: str = "events"

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain data for JSON."""
        tree: dict[str, Any] = TypeAdapter(Evaluation).dump_python(self, mode="json")
        return tree

    @classmethod
    def from_dict(cls, tree: Any) -> "Evaluation":
        """The inverse of `as_dict`; raises ValueError if the tree is not an evaluation."""
        return TypeAdapter(Evaluation).validate_python(tree)

    @property
    def absent_classes(self) -> tuple[str, ...]:
        """The classes of which nothing was counted."""
        return tuple(name for name, counts in zip(self.classes, self.confusion, strict=True) if sum(counts) == 0)

    def balanced_text(self, on: str) -> str:
        """Balanced accuracy with its chance: 1 / classes that occur, which a constant prediction reaches.

        Args:
            on: what was counted, such as "100 events".
        """
        text = f"{self.balanced_accuracy} on {on}"
        absent = self.absent_classes
        present = [name for name in self.classes if name not in absent]
        if not present:
            return text
        among = f" among {', '.join(present)}: there are no {self.counted} of {', '.join(absent)}" if absent else ""
        return f"{text} (chance {1 / len(present):.3f}{among})"


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's score interval (J. Am. Stat. Assoc. 22, 209 (1927)), 95 %."""
    if trials == 0:
        return Interval(nan, nan, nan)
    share, z2 = successes / trials, _Z**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z / (1 + z2 / trials) * np.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    # rounding may put an end beyond 0, 1 or the share itself
    return Interval(share, max(0.0, min(share, float(centre - half))), min(1.0, max(share, float(centre + half))))


def confusion_matrix(truths: NDArray[np.int64], predictions: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Counts by (true class, predicted class)."""
    flat = np.bincount(truths * num_classes + predictions, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def of_scores(logits: NDArray[np.float32], truths: NDArray[np.int64], classes: Sequence[str]) -> Evaluation:
    """All figures of (events, classes) logits.

    Balanced accuracy is the mean efficiency of the classes that occur. Its interval adds their binomial variances,
    taken at Wilson's centre, so that a class whose events are all right still has a variance.
    """
    scores = logits.astype(np.float64)
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    counts = confusion_matrix(truths, scores.argmax(axis=1), len(classes))
    loss = float(-log_probability[np.arange(len(truths)), truths].mean())
    return of_confusion(counts, loss, classes, events=len(truths))


def of_confusion(
    counts: NDArray[np.int64], loss: float, classes: Sequence[str], *, events: int, counted: str = "events"
) -> Evaluation:
    """All figures from counts of `counted` by (true class, predicted class); a share of nothing is NaN."""
    right, true, chosen = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    return Evaluation(
        classes=tuple(classes),
        events=events,
        loss=loss,
        accuracy=wilson(int(right.sum()), int(true.sum())),
        balanced_accuracy=_balanced(right, true),
        confusion=tuple(tuple(int(n) for n in row) for row in counts),
        efficiency=tuple(wilson(int(k), int(n)) for k, n in zip(right, true, strict=True)),
        purity=tuple(wilson(int(k), int(n)) for k, n in zip(right, chosen, strict=True)),
        counted=counted,
    )


def _balanced(right: NDArray[np.int64], true: NDArray[np.int64]) -> Interval:
    present = true > 0
    if not present.any():
        return wilson(0, 0)
    trials, share = true[present], right[present] / true[present]
    centre = (right[present] + _Z**2 / 2) / (trials + _Z**2)
    half = _Z * float(np.sqrt((centre * (1 - centre) / (trials + _Z**2)).sum())) / len(trials)
    mean = float(share.mean())
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))
