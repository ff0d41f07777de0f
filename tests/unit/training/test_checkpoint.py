"""A kill at any point of `checkpoint.save` leaves a folder from which the run goes on; the engine is a stand-in."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lartpc_ds.training.checkpoint import Progress, save
from lartpc_ds.training.checkpoint_files import go_back, newest_whole
from lartpc_ds.training.loss_scale import LossScale

RUN = "this run"


class Writer:
    def save(self, state_dict: object, path: str) -> None:
        torch.save(state_dict, path)


class Engine:
    """What `save` asks of an engine of one rank; its weights are the number of its step."""

    def __init__(self, step: int) -> None:
        self.module = nn.BatchNorm2d(1)
        self.groups = SimpleNamespace(rank=0)
        self.loss_scale = LossScale(1.0)
        self.deepspeed = SimpleNamespace(checkpoint_engine=Writer(), save_checkpoint=self._save)
        self._weights = {"weight": torch.full((4,), float(step))}

    def _save(self, folder: str, tag: str, client_state: dict[str, Any], save_latest: bool) -> None:
        Path(folder, tag).mkdir(exist_ok=True)
        for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
            self.deepspeed.checkpoint_engine.save({**self._weights, **client_state}, str(Path(folder, tag, name)))

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        return self._weights


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def saved(folder: Path, step: int) -> None:
    engine: Any = Engine(step)
    save(engine, folder, Progress(step, step), RUN, {"versions": {}}, best=step % 2 == 1)


def killed_before(patch: pytest.MonkeyPatch, number: int) -> list[str]:
    """The process dies before its `number`th change of the disk; the changes that it has made."""
    done: list[str] = []

    def counted(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            if len(done) == number:
                raise KeyboardInterrupt
            done.append(name)
            return change(*arguments, **options)

        return wrapper

    for owner, names in (
        (Path, ("rename", "replace", "symlink_to", "unlink", "write_text")),
        (shutil, ("rmtree",)),
        (torch, ("save",)),
        (os, ("fsync",)),
    ):
        for name in names:
            patch.setattr(owner, name, counted(name, getattr(owner, name)))
    return done


def test_a_kill_at_any_change_of_the_disk(tmp_path: Path) -> None:
    number, finished = 0, False
    while not finished:
        folder = tmp_path / f"{number}"
        folder.mkdir()
        for step in (1, 2):
            saved(folder, step)
        with pytest.MonkeyPatch.context() as patch:
            done = killed_before(patch, number)
            try:
                saved(folder, 3)
                finished = True
            except KeyboardInterrupt:
                pass
        start, damaged = newest_whole(folder, RUN)
        renamed = "rename" in done
        assert start == folder / ("step_0000003" if renamed else "step_0000002") and damaged == {}, done
        go_back(start, [])
        if not renamed:
            saved(folder, 3)
        assert newest_whole(folder, RUN) == (folder / "step_0000003", {})
        for link in ("last", "best"):
            assert (folder / link).resolve() == folder / "step_0000003", done
        number += 1
    assert number > 20 and done.index("rename") > done.index("fsync")


def test_every_file_is_on_the_disk_before_the_checkpoint_has_its_name(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        done = killed_before(patch, 1000)
        saved(tmp_path, 1)
    before = done[: done.index("rename")]
    files = len(list((tmp_path / "step_0000001").iterdir()))
    assert before.count("fsync") == files + 2  # the manifest's folder after its own rename, and again at the end
