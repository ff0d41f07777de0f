import os
import sys
import time

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_ranks


def _sum_of_ranks(factor: torch.Tensor) -> tuple[int, torch.Tensor]:
    total = factor * (dist.get_rank() + 1)
    dist.all_reduce(total)
    return dist.get_rank(), total


def _environment() -> dict[str, str]:
    return {key: os.environ[key] for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "RANKS_SMOKE")}


def _fail_on_last_rank() -> None:
    if dist.get_rank() == dist.get_world_size() - 1:
        raise ValueError("the halo is too wide")
    dist.barrier()


def _exit_on_rank_1(code: int, politely: bool) -> None:
    if dist.get_rank() == 1:
        sys.exit(code) if politely else os._exit(code)
    dist.barrier()


def _hang_on_rank_1() -> None:
    if dist.get_rank() == 1:
        time.sleep(600)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_results_come_in_rank_order(world_size: int) -> None:
    results = run_ranks(world_size, _sum_of_ranks, torch.tensor([2.0, 3.0], dtype=torch.float64))
    assert [rank for rank, _ in results] == list(range(world_size))
    expected = torch.tensor([2.0, 3.0], dtype=torch.float64) * sum(range(1, world_size + 1))
    assert all(torch.equal(total, expected) for _, total in results)


def test_ranks_see_the_callers_environment_and_a_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKS_SMOKE", "seen")
    shared = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "RANKS_SMOKE": "seen"}
    assert run_ranks(2, _environment) == [{**shared, "RANK": r, "LOCAL_RANK": r} for r in ("0", "1")]


def test_a_failing_rank_fails_the_test_with_its_traceback() -> None:
    with pytest.raises(AssertionError, match=r"rank 2 of 3:(.|\n)*_fail_on_last_rank(.|\n)*the halo is too wide"):
        run_ranks(3, _fail_on_last_rank)


def test_a_rank_that_exits_is_a_failure() -> None:
    with pytest.raises(AssertionError, match=r"rank 1 of 2:(.|\n)*SystemExit: 0"):
        run_ranks(2, _exit_on_rank_1, 0, True)


def test_a_rank_that_dies_is_a_failure() -> None:
    with pytest.raises(AssertionError, match=r"rank 1 died"):
        run_ranks(2, _exit_on_rank_1, 0, False)


def test_a_hanging_rank_is_named() -> None:
    with pytest.raises(AssertionError, match=r"_hang_on_rank_1 timed out; ranks still running: \[(0, )?1\]"):
        run_ranks(2, _hang_on_rank_1, timeout_seconds=5)
