"""Public rates of up to 1700 GPUs, predicted from those of 4 and 8."""

import json

import pytest

from lartpc_ds.advise.bench.cosmictagger import IMAGES_PER_SECOND, bench, fit, predicted_images_per_second


def test_the_two_points_that_fix_the_model_come_out() -> None:
    known = fit()
    for gpus in (4, 8):
        assert predicted_images_per_second(gpus, known) == pytest.approx(IMAGES_PER_SECOND[gpus])


def test_within_a_tenth_up_to_64_gpus_and_too_fast_beyond() -> None:
    known = fit()
    ratios = {gpus: predicted_images_per_second(gpus, known) / rate for gpus, rate in IMAGES_PER_SECOND.items()}
    assert all(abs(ratio - 1) < 0.1 for gpus, ratio in ratios.items() if gpus <= 64)
    assert all(ratio > 1.1 for gpus, ratio in ratios.items() if gpus > 64), "the docs say so"


def test_the_bench_says_where_it_ran_and_what_it_found() -> None:
    result = json.loads(json.dumps(bench()))
    assert {"bench", "recipe", "device", "threads", "versions", "commit", "repeats"} <= result.keys()
    assert [point["gpus"] for point in result["points"]] == list(IMAGES_PER_SECOND)
    assert 0 < result["error_max_to_64_gpus"] < 0.1
