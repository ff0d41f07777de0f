"""What the slowest of many ranks costs: known values of order statistics, and limits that a hand can check."""

import math

import pytest

from lartpc_ds.costs.stragglers import late_share, shared_read_seconds, slowest_delay_seconds, slowest_of_normals


@pytest.mark.parametrize(
    ("ranks", "known"),
    [(1, 0.0), (2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi)), (10, 1.538753), (100, 2.507594)],
)
def test_the_largest_of_normals_has_the_values_of_tables(ranks: int, known: float) -> None:
    assert slowest_of_normals(ranks) == pytest.approx(known, abs=1e-6)


def test_if_all_ranks_are_late_the_slowest_is_a_harmonic_number() -> None:
    assert slowest_delay_seconds(4, 1.0, 0.5) == pytest.approx(0.5 * (1 + 1 / 2 + 1 / 3 + 1 / 4))


def test_rare_delays_add_up_while_no_two_meet() -> None:
    assert slowest_delay_seconds(10, 1e-6, 2.0) == pytest.approx(10 * 1e-6 * 2.0, rel=1e-4)


def test_two_ranks_by_hand() -> None:
    share, mean = 0.3, 2.0
    one_late, both_late = 2 * share * (1 - share), share**2
    assert slowest_delay_seconds(2, share, mean) == pytest.approx(mean * (one_late + 1.5 * both_late))


def test_no_delays_cost_exactly_nothing() -> None:
    assert late_share(0.0, 3.0) == 0.0
    assert slowest_delay_seconds(1700, late_share(0.0, 3.0), 0.0) == 0.0


def test_the_longer_a_step_the_more_of_them_are_delayed() -> None:
    assert late_share(0.01, 1.0) == pytest.approx(1 - math.exp(-0.01))
    assert late_share(0.01, 1e6) == 1.0


def test_reading_grows_with_the_ranks() -> None:
    assert shared_read_seconds(100, 2e7, 1e9) == pytest.approx(2.0)
