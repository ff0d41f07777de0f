"""Public rates of up to 1700 GPUs: fitted on half of them, and predicted on the others."""

import json

import pytest

from lartpc_ds.advise.bench.cosmictagger import (
    FITTED_GPUS,
    FORMS,
    IMAGES_PER_SECOND,
    Fit,
    bench,
    fit,
    predicted_images_per_second,
)
from lartpc_ds.costs import hardware

DELAYS = "rare delays, shared reading"
SPREAD = "normal spread, shared reading"


@pytest.fixture(scope="module")
def result() -> dict:
    return json.loads(json.dumps(bench()))


@pytest.mark.parametrize(
    ("form", "known"),
    [
        (DELAYS, Fit({"compute": 0.25, "delay": 0.1, "read": 1e-4}, 1e-2, 0.0)),
        (SPREAD, Fit({"compute": 0.25, "spread": 0.02, "read": 1e-4}, 0.0, 0.0)),
    ],
)
def test_a_fit_finds_the_unknowns_of_rates_that_it_made(form: str, known: Fit) -> None:
    found = fit({gpus: predicted_images_per_second(gpus, known) for gpus in FITTED_GPUS}, form)
    assert found.late_share == pytest.approx(known.late_share)
    assert dict(found.seconds) == pytest.approx(dict(known.seconds), rel=1e-6)
    assert found.error_rms < 1e-9


def test_no_unknown_is_negative() -> None:
    faster_and_faster = {gpus: gpus / (0.3 - gpus * 1e-4) for gpus in FITTED_GPUS}
    for form in FORMS:
        assert min(fit(faster_and_faster, form).seconds.values()) >= 0


def test_half_of_the_points_are_held_out_and_predicted_within_a_tenth(result: dict) -> None:
    held_out = [point for point in result["points"] if not point["fitted"]]
    assert [point["gpus"] for point in held_out] == [16, 32, 128, 512, 1700]
    assert result["error_max_held_out"] == max(abs(point["ratio"] - 1) for point in held_out) < 0.1
    assert result["error_max_fitted"] < 0.03


def test_the_form_is_chosen_by_the_fitted_points_alone(result: dict) -> None:
    errors = {one["form"]: one["error_rms_fitted"] for one in result["forms"]}
    assert errors.keys() == FORMS.keys()
    assert result["form"] == min(errors, key=lambda form: errors[form]) == DELAYS


def test_what_the_docs_say_of_the_other_forms(result: dict) -> None:
    held_out = {one["form"]: one["error_max_held_out"] for one in result["forms"]}
    assert held_out["messages alone"] > 0.6
    assert 0.15 < held_out[SPREAD] < 0.2
    assert result["read_seconds"] == 0, "the docs say that nothing is left for reading"


def test_without_a_large_point_reading_explains_as_much(result: dict) -> None:
    without = {one["gpus"]: one for one in result["without"]}
    assert without.keys() == set(FITTED_GPUS)
    assert {gpus for gpus, one in without.items() if one["read_seconds"] > 0} == {64, 256, 1024}


def test_the_preset_has_the_fitted_delays(result: dict) -> None:
    polaris = hardware.load("polaris")
    assert polaris.delays_per_second == pytest.approx(result["delays_per_second"], rel=0.01)
    assert polaris.delay_seconds == pytest.approx(result["delay_seconds"], rel=0.01)


def test_the_bench_says_where_it_ran_and_what_it_found(result: dict) -> None:
    assert {"bench", "recipe", "device", "threads", "versions", "commit", "repeats"} <= result.keys()
    assert [point["gpus"] for point in result["points"]] == list(IMAGES_PER_SECOND)
