import json
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lartpc_ds.training.metrics import (
    Evaluation,
    Interval,
    confusion_matrix,
    of_confusion,
    of_scores,
    wilson,
)

CLASSES = ("electron", "gamma", "muon")


def logits_of(predictions: list[int], num_classes: int = 3) -> NDArray[np.float32]:
    return np.eye(num_classes, dtype=np.float32)[predictions] * 4


def evaluated(truths: list[int], predictions: list[int]) -> Evaluation:
    return of_scores(logits_of(predictions), np.array(truths, np.int64), CLASSES)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe, Statistics in Medicine 17, 857 (1998), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_published_intervals(successes: int, trials: int, low: float, high: float) -> None:
    found = wilson(successes, trials)
    assert found.value == successes / trials
    assert (found.low, found.high) == pytest.approx((low, high), abs=5.1e-5)
    mirrored = wilson(trials - successes, trials)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low))


@pytest.mark.parametrize("trials", [1, 2, 7, 100, 12345])
def test_wilson_stays_within_zero_and_one_and_holds_the_share(trials: int) -> None:
    for successes in {0, 1, trials // 2, trials - 1, trials}:
        found = wilson(successes, trials)
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert found.low < found.high


def test_nothing_counted_is_not_a_number() -> None:
    nothing = wilson(0, 0)
    assert all(math.isnan(end) for end in (nothing.value, nothing.low, nothing.high))


def test_rows_of_the_confusion_matrix_are_true_classes() -> None:
    truths, predictions = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 1, 1, 0, 2])
    assert confusion_matrix(truths, predictions, 3).tolist() == [[1, 2, 0], [0, 1, 0], [1, 0, 1]]


def test_perfect_predictions() -> None:
    found = evaluated([0, 1, 2, 2], [0, 1, 2, 2])
    assert found.accuracy.value == found.balanced_accuracy.value == found.accuracy.high == 1
    assert found.confusion == ((1, 0, 0), (0, 1, 0), (0, 0, 2))
    assert [interval.value for interval in (*found.efficiency, *found.purity)] == [1] * 6
    assert found.balanced_accuracy.low < 1, "four events do not prove perfection"


def test_predictions_that_are_all_wrong() -> None:
    found = evaluated([0, 1, 2, 2], [1, 2, 0, 0])
    assert found.accuracy.value == found.balanced_accuracy.value == found.accuracy.low == 0
    assert [interval.value for interval in (*found.efficiency, *found.purity)] == [0] * 6
    assert found.balanced_accuracy.high > 0


def test_figures_of_an_unbalanced_case_by_hand() -> None:
    # 8 electrons: 6 right, 2 called muon; 2 gammas: 1 right, 1 called electron; no muons
    found = evaluated([0] * 8 + [1] * 2, [0] * 6 + [2] * 2 + [1, 0])
    assert found.events == 10
    assert found.confusion == ((6, 0, 2), (1, 1, 0), (0, 0, 0))
    assert found.accuracy.value == 0.7
    assert found.balanced_accuracy.value == (6 / 8 + 1 / 2) / 2  # over the classes that occur
    assert [found.efficiency[0].value, found.efficiency[1].value] == [6 / 8, 1 / 2]
    assert math.isnan(found.efficiency[2].value)
    assert [interval.value for interval in found.purity] == [6 / 7, 1.0, 0.0]
    assert found.efficiency[0] == wilson(6, 8) and found.purity[0] == wilson(6, 7)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_loss_is_the_cross_entropy(scale: float) -> None:
    rng = np.random.default_rng(0)
    logits, truths = (scale * rng.standard_normal((50, 3))).astype(np.float32), rng.integers(0, 3, 50)
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(truths))
    assert of_scores(logits, truths, CLASSES).loss == pytest.approx(float(expected), rel=1e-12)


def test_figures_do_not_depend_on_the_order_of_events() -> None:
    rng = np.random.default_rng(1)
    logits, truths = rng.standard_normal((40, 3)).astype(np.float32), rng.integers(0, 3, 40)
    order = rng.permutation(40)
    one, other = (of_scores(*pair, CLASSES) for pair in ((logits, truths), (logits[order], truths[order])))
    assert one.confusion == other.confusion and one.balanced_accuracy == other.balanced_accuracy
    assert one.loss == pytest.approx(other.loss, rel=1e-12)


def test_the_balanced_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Unequal classes, one of them small and nearly always right, where a plain sqrt(e(1-e)/N) covers too rarely."""
    rng = np.random.default_rng(2)
    events, efficiency = (150, 60, 25), np.array([0.4, 0.7, 0.96])
    truths = np.repeat(np.arange(3), events)
    repeats, covered, wilson_covered = 1000, 0, 0
    for _ in range(repeats):
        right = rng.random(len(truths)) < efficiency[truths]
        found = of_scores(logits_of(np.where(right, truths, (truths + 1) % 3).tolist()), truths, CLASSES)
        covered += found.balanced_accuracy.low <= efficiency.mean() <= found.balanced_accuracy.high
        wilson_covered += found.efficiency[0].low <= efficiency[0] <= found.efficiency[0].high
    assert 0.93 <= covered / repeats <= 0.99
    assert 0.93 <= wilson_covered / repeats <= 0.97


def test_pixels_have_the_figures_of_events() -> None:
    counts = confusion_matrix(np.array([0] * 8 + [1] * 2), np.array([0] * 6 + [2] * 2 + [1, 0]), 3)
    events = evaluated([0] * 8 + [1] * 2, [0] * 6 + [2] * 2 + [1, 0])
    pixels = of_confusion(counts, 0.25, CLASSES, events=2, counted="pixels")
    assert (pixels.events, pixels.loss, pixels.counted) == (2, 0.25, "pixels")
    for name in ("accuracy", "balanced_accuracy", "confusion"):
        assert getattr(pixels, name) == getattr(events, name)
    assert str(pixels.efficiency) == str(events.efficiency) and str(pixels.purity) == str(events.purity)


def test_where_nothing_is_counted_only_the_loss_is_a_number() -> None:
    found = of_confusion(np.zeros((3, 3), np.int64), 0.25, CLASSES, events=4)
    tree = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert tree["balanced_accuracy"]["value"] is None and tree["loss"] == 0.25
    assert math.isnan(found.accuracy.value)


def test_an_evaluation_goes_through_json() -> None:
    found = evaluated([0, 1, 2], [0, 1, 1])
    tree = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    read = Evaluation.from_dict(tree)
    assert read.balanced_accuracy == found.balanced_accuracy and read.efficiency == found.efficiency
    assert tree["purity"][2] == {"value": None, "low": None, "high": None}, "nothing was called muon; JSON has no NaN"
    assert math.isnan(read.purity[2].value)
    assert tree["confusion"] == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert str(read) == str(found)


@pytest.mark.parametrize("lost", ["classes", "confusion", "balanced_accuracy"])
def test_half_an_evaluation_is_none(lost: str) -> None:
    tree = evaluated([0, 1, 2], [0, 1, 1]).as_dict()
    del tree[lost]
    with pytest.raises(ValueError, match=lost):
        Evaluation.from_dict(tree)


def test_an_interval_reads_as_its_value_and_ends() -> None:
    assert str(Interval(0.5, 0.41234, 0.6)) == "0.500 [0.412, 0.600]"
    assert str(wilson(0, 0)) == "-"
    assert str(wilson(0, 2)) == "0.000 [0.000, 0.658]"


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([[3, 1], [0, 4]], "0.875 [{}] on 8 events (chance 0.500)"),
        ([[4, 0], [0, 0]], "1.000 [{}] on 8 events (chance 1.000 among nue: there are no events of numu)"),
        ([[0, 0], [4, 0]], "0.000 [{}] on 8 events (chance 1.000 among numu: there are no events of nue)"),
        ([[0, 0], [0, 0]], "- on 8 events"),
    ],
)
def test_chance_is_that_of_the_classes_that_occur(counts: list[list[int]], text: str) -> None:
    found = of_confusion(np.array(counts), 0.5, ("nue", "numu"), events=8)
    interval = f"{found.balanced_accuracy.low:.3f}, {found.balanced_accuracy.high:.3f}"
    assert found.balanced_text("8 events") == text.format(interval)


def test_three_classes_of_which_two_occur() -> None:
    counts = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 2]])
    text = of_confusion(counts, 0.5, ("a", "b", "c"), events=8, counted="pixels").balanced_text("8 pixels")
    assert text.endswith("on 8 pixels (chance 0.500 among a, c: there are no pixels of b)")
