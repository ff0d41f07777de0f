"""The rule of the loss scale alone; what it does to weights is in tests/multirank/test_loss_scale.py."""

import pytest

from lartpc_ds.training.loss_scale import LossScale


def test_it_grows_after_2000_clean_steps_in_a_row_and_not_before() -> None:
    scale = LossScale.of("fp16")
    for _ in range(1999):
        assert scale.update(overflowed=False, dynamic=True)
    assert scale.update(overflowed=True, dynamic=True)
    assert scale == LossScale(2.0**15, 0)
    values = [scale.value for _ in range(2000) if scale.update(overflowed=False, dynamic=True)]
    assert values == [2.0**15] * 1999 + [2.0**16]


def test_below_one_it_does_not_fall() -> None:
    scale = LossScale(2.0, 7)
    assert scale.update(overflowed=True, dynamic=True)
    assert not scale.update(overflowed=True, dynamic=True)
    assert scale == LossScale(1.0, 0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_float16_there_is_none(precision: str) -> None:
    scale = LossScale.of(precision)
    for _ in range(4001):
        scale.update(overflowed=False, dynamic=False)
    assert scale.value == 1
