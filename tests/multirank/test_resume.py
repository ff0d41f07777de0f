"""10 steps straight equal 5 + resume + 5, bit for bit: weights, buffers, losses; every ZeRO stage, 1 to 4 ranks."""

from pathlib import Path

import pytest
import torch

from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.training import session
from lartpc_ds.training.checkpoint_files import latest, newest_whole
from tests.ranks import run_ranks
from tests.small_runs import prepared, write_events, write_run_toml

STEPS = 10


def train(path: Path, resume: bool, stop_after: int | None) -> bool:
    asked = 0

    def stop_requested() -> bool:
        nonlocal asked
        asked += 1
        return asked == stop_after

    return session.train(RunFolder(path), resume=resume, stop_requested=stop_requested)


@pytest.mark.parametrize(
    ("ds_config", "ranks"),
    [("zero0_bf16", 2), ("zero1_bf16", 2), ("zero2_bf16", 1), ("zero2_fp32", 2), ("zero3_bf16", 2)],
)
def test_resume_is_exact(tmp_path: Path, ds_config: str, ranks: int) -> None:
    check_resume(tmp_path, ds_config, ranks, [])


@pytest.mark.parametrize(("ds_config", "ranks"), [("zero0_bf16", 2), ("zero1_bf16", 4)])
def test_resume_of_pipeline_stages_is_exact(tmp_path: Path, ds_config: str, ranks: int) -> None:
    check_resume(tmp_path, ds_config, ranks, ["layout.pipe=2", "train.accumulate=2"])


def check_resume(tmp_path: Path, ds_config: str, ranks: int, more: list[str]) -> None:
    toml = write_run_toml(tmp_path / "run.toml", write_events(tmp_path / "events.h5", 40))
    overrides = [f"train.max_steps={STEPS}", f'train.ds_config="{ds_config}"', "train.eval_every=3", *more]
    straight = prepared(tmp_path / "straight", toml, overrides, ranks)
    parted = prepared(tmp_path / "parted", toml, overrides, ranks)

    assert run_ranks(ranks, train, straight.path, False, None) == [False] * ranks
    assert run_ranks(ranks, train, parted.path, False, 5) == [True] * ranks
    stopped_at = latest(parted.checkpoints)
    assert stopped_at is not None and stopped_at.name == "step_0000005"
    assert not parted.done_file.exists()
    assert run_ranks(ranks, train, parted.path, True, None) == [False] * ranks

    assert parted.done_file.exists()
    # every file that a rank has written is in the manifest, and none of it is changed by the loading
    assert newest_whole(parted.checkpoints, parted.verified().run) == (latest(parted.checkpoints), {})
    one, other = ([line for line in run.metrics() if "loss" in line] for run in (straight, parted))
    assert [line["loss"] for line in one] == [line["loss"] for line in other]
    assert [line["lr"] for line in one] == [line["lr"] for line in other]
    for name in ["model.pt", *(f"rank{rank}.pt" for rank in range(ranks))]:
        first, second = (torch.load(run.checkpoints / "last" / name) for run in (straight, parted))
        for (key, value), (other_key, other_value) in zip(flat(first), flat(second), strict=True):
            assert key == other_key
            assert torch.equal(value, other_value), key


def flat(tree: object, prefix: str = "") -> list[tuple[str, torch.Tensor]]:
    if isinstance(tree, torch.Tensor):
        return [(prefix, tree)]
    assert isinstance(tree, dict)
    return [leaf for key, value in tree.items() for leaf in flat(value, f"{prefix}.{key}")]
