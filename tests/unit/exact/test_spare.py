"""What a rank may still take of a host's memory."""

import types
from pathlib import Path

import pytest
import torch

from lartpc_ds.exact.kernels import host_memory
from lartpc_ds.exact.memory import spare
from lartpc_ds.exact.memory.spare import Spare, free_bytes

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("limit", "used", "ranks", "free"), [("max", 0, "1", 1000), ("max", 0, "4", 250), ("600", 500, "2", 50)]
)
def test_ranks_share_what_the_host_or_its_container_has_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, used: int, ranks: str, free: int
) -> None:
    (tmp_path / "limit").write_text(f"{limit}\n")
    (tmp_path / "use").write_text(f"{used}\n")
    monkeypatch.setattr(host_memory, "_CONTAINER_LIMIT", tmp_path / "limit")
    monkeypatch.setattr(spare, "CONTAINER_USE", tmp_path / "use")
    monkeypatch.setattr(spare.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=1000))
    monkeypatch.setenv("LOCAL_SIZE", ranks)
    assert free_bytes(CPU) == free
    step = Spare()
    step.look(free / 1.5, CPU)
    assert step.fits, "a step needs half as much again as the maps that it keeps"
    step.look(free / 1.5 + 1, CPU)
    assert not step.fits
