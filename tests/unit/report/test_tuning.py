"""The results of a tuning as a sentence, a table, a CSV file and a plot."""

import csv
import io
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from lartpc_ds.report.tuning import TrialResult, draw_results, fastest, print_results, reason, write_table

GIB = 2**30
SLOW = TrialResult("rows 2, zero 0", 1, 2.0, 2 * GIB, 2.5, 3 * GIB)
FAST = TrialResult("data 2, zero 1", 2, 3.0, 4 * GIB, 4.0, 5 * GIB)  # 0.5 events/s against 0.4
DEAD = TrialResult("1 rank, zero 3", 1, 1.0, GIB, failure="out of memory, or killed from outside")


def test_the_fastest_trains_the_most_events_a_second() -> None:
    assert fastest([SLOW, DEAD, FAST]) is FAST
    assert fastest([DEAD]) is None


@pytest.mark.parametrize(
    ("results", "told"),
    [
        (
            [SLOW, FAST, DEAD],
            "trains 0.5 events/s with 5.00 GiB per rank, 25% more than the next one, rows 2, zero 0",
        ),
        ([FAST, DEAD], "the only one of 2 trials that ran to its end"),
        ([FAST], "the only trial that ran to its end"),
        ([FAST, TrialResult("other", 2, 3.0, GIB, 4.001, GIB)], "as fast as the next one, other"),
    ],
)
def test_the_reason(results: list[TrialResult], told: str) -> None:
    assert told in reason(FAST, results)


def test_the_table_has_every_trial_with_both_figures() -> None:
    console = Console(width=150, record=True, file=io.StringIO())
    print_results(console, [DEAD, SLOW, FAST])
    lines = [line for line in console.export_text().splitlines() if "zero" in line]
    assert [("3.00 / 4.00" in lines[0], "4.00 / 5.00" in lines[0], "fastest" in lines[0])] == [(True, True, True)]
    assert "2.00 / 2.50" in lines[1] and "2.00 / 3.00" in lines[1]
    assert "1.00 / -" in lines[2] and DEAD.failure in lines[2]


def test_csv(tmp_path: Path) -> None:
    write_table(tmp_path / "tune.csv", [DEAD, SLOW, FAST])
    with (tmp_path / "tune.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == [FAST.name, SLOW.name, DEAD.name]
    assert float(rows[0]["events_per_second"]) == 0.5
    assert (rows[2]["measured_step_seconds"], rows[2]["failure"]) == ("", DEAD.failure)


def test_the_plot_has_bars_of_both_kinds_and_marks_failures(tmp_path: Path) -> None:
    def colours(results: list[TrialResult]) -> dict[tuple[int, int, int], int]:
        path = tmp_path / "tune.png"
        draw_results(path, "mine", results)
        with Image.open(path) as image:
            counts = image.convert("RGB").getcolors(2**24)
        assert counts is not None
        return {colour: number for number, colour in counts}  # type: ignore[misc]

    predicted, measured, red = (0x9E, 0xCA, 0xE1), (0x08, 0x51, 0x9C), (0xCB, 0x18, 0x1D)
    whole, failed = colours([SLOW, FAST]), colours([SLOW, DEAD])
    assert whole[predicted] > 1000 and whole[measured] > 1000 and red not in whole
    assert failed[measured] < whole[measured] and failed[red] > 20
