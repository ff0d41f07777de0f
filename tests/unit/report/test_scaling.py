"""The results of a scaling study: what is derived from samples, the table, the CSV file and the picture."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from lartpc_ds.layout import Layout
from lartpc_ds.report.scaling import (
    PHASES,
    Mode,
    Point,
    Row,
    Sample,
    Scaling,
    print_rows,
    rows_of,
    write_ranks,
    write_rows,
)
from lartpc_ds.report.scaling_plot import draw_rows


def point(ranks: int, mode: Mode = "data", scaling: Scaling = "weak", accumulate: int = 1) -> Point:
    layout = {"data": Layout(data=ranks), "tiles": Layout(rows=ranks), "pipe": Layout(pipe=ranks)}[mode]
    return Point("resnet18", mode, scaling, ranks, layout, 2, accumulate, 1)


def sample(step_seconds: float, repeat: int = 1, peak_bytes: int = 2**30) -> Sample:
    phases = {f"{phase}_seconds": step_seconds / 8 for phase in PHASES}
    figures = {"step_seconds": step_seconds, **phases, "straggler_factor": 1.1, "peak_bytes": peak_bytes}
    return Sample("a job", repeat, figures)


WEAK = [point(1), point(2), point(4)]
STRONG = [point(1, scaling="strong", accumulate=4), point(4, scaling="strong")]
LOST = point(2, "pipe", "strong", 4)
SAMPLES = {
    WEAK[0]: [sample(1.0), sample(1.2, 2, 2**31), sample(0.9, 3)],  # 2 events/s
    WEAK[1]: [sample(1.25)],  # 3.2 events/s
    STRONG[0]: [sample(4.0)],  # 2 events/s
    STRONG[1]: [sample(2.0)],  # 4 events/s
    LOST: [Sample("a job", 1, {}, "out of memory: a rank")],
}
ROWS = rows_of([*WEAK, *STRONG, LOST], SAMPLES)


def figure(row: Row, name: str) -> float:
    return row.figures[name]


def test_figures_are_medians_over_repeats_with_their_range() -> None:
    first = ROWS[0]
    assert first.repeats == 3
    assert [figure(first, f"step_seconds{end}") for end in ("", "_low", "_high")] == [1.0, 0.9, 1.2]
    assert (figure(first, "peak_bytes"), figure(first, "events_per_second")) == (2**31, 2.0)


def test_efficiency_is_relative_to_the_smallest_size_of_the_same_series() -> None:
    assert [figure(row, "efficiency") for row in (ROWS[0], ROWS[3])] == [1.0, 1.0]
    assert figure(ROWS[1], "speedup") == pytest.approx(1.6) and figure(ROWS[1], "efficiency") == pytest.approx(0.8)
    assert figure(ROWS[4], "speedup") == pytest.approx(2.0) and figure(ROWS[4], "efficiency") == pytest.approx(0.5)


def test_where_the_smallest_size_has_not_trained_the_next_one_is_the_base() -> None:
    rows = rows_of(WEAK, {WEAK[0]: [Sample("a job", 1, {}, "no")], WEAK[1]: [sample(1.0)], WEAK[2]: [sample(1.0)]})
    assert rows[0].figures == {} and rows[0].failure == "no"
    assert [figure(row, "efficiency") for row in rows[1:]] == [1.0, 1.0]


def test_a_point_keeps_what_it_had_before_it_failed() -> None:
    (row,) = rows_of(WEAK[:1], {WEAK[0]: [sample(1.0), Sample("a job", 2, {}, "killed")]})
    assert (row.repeats, row.failure, figure(row, "step_seconds")) == (1, "killed", 1.0)


def test_csv(tmp_path: Path) -> None:
    write_rows(tmp_path / "scale.csv", ROWS)
    with (tmp_path / "scale.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == len(ROWS)
    assert [lines[3][name] for name in ("scaling", "data", "batch", "accumulate", "global_batch")] == [
        *("strong", "1", "2", "4", "8")
    ]
    assert (float(lines[1]["efficiency"]), lines[1]["threads_per_rank"]) == (pytest.approx(0.8), "1")
    assert (lines[2]["step_seconds"], lines[2]["repeats"]) == ("", "0")
    assert (lines[5]["pipe"], lines[5]["failure"]) == ("2", "out of memory: a rank")


def test_csv_of_ranks_has_a_line_for_each_rank_step_and_repeat(tmp_path: Path) -> None:
    repeats = [
        replace(sample(1.0), busy_seconds=[[0.5, 0.75], [0.6, 0.7]]),
        replace(sample(1.0, 2), busy_seconds=[[0.9, 0.8]]),
    ]
    write_ranks(tmp_path / "ranks.csv", [WEAK[1], LOST], {WEAK[1]: repeats, LOST: SAMPLES[LOST]})
    with (tmp_path / "ranks.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert {(line["model"], line["mode"], line["scaling"], line["ranks"]) for line in lines} == {
        ("resnet18", "data", "weak", "2")
    }
    assert [tuple(line[name] for name in ("repeat", "step", "rank", "busy_seconds")) for line in lines] == [
        *(("1", "1", "0", "0.5"), ("1", "1", "1", "0.75"), ("1", "2", "0", "0.6"), ("1", "2", "1", "0.7")),
        *(("2", "1", "0", "0.9"), ("2", "1", "1", "0.8")),
    ]


def test_the_table_fits_a_terminal_and_has_the_reasons_below() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    print_rows(console, ROWS)
    lines = console.export_text().splitlines()
    assert ["data,", "weak", "2", "4", "1.25", "1.2-1.2", "3.2", "80%", "1.00", "1.10"] in [
        line.split() for line in lines
    ]
    assert lines[-1] == "pipe, strong, 2 rank(s): out of memory: a rank"


def test_the_picture_has_every_series_and_phase(tmp_path: Path) -> None:
    draw_rows(tmp_path / "scale.png", "mine", ROWS, ["threads per rank: 1"])
    with Image.open(tmp_path / "scale.png") as image:
        found = image.convert("RGB").getcolors(2**24)
    assert found is not None
    counts = {colour: number for number, colour in found}
    forward, optimizer, stages = (0x56, 0xB4, 0xE9), (0x00, 0x9E, 0x73), (0xF0, 0xE4, 0x42)
    weak, strong = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)
    assert all(counts[colour] > 500 for colour in (forward, optimizer, stages, weak, strong))  # type: ignore[index]
