"""How a rank tells the user why it failed, and how the first cause is found among its echoes.

When one rank fails the others fail too, later and for a worse reason ("connection closed by peer"). So each rank writes
its own failure to `logs/failures/rank<N>.json`, and holds `logs/rank<N>.pid` while it lives: a pid file whose process
is gone means that the rank was killed, which is the cause of all the rest.
"""

import json
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from lartpc_ds.errors import UserError

__all__ = [
    "Failure",
    "alive",
    "clear",
    "first_failure",
    "forget",
    "living_ranks",
    "rank_pids",
    "record_failure",
    "record_lost_ranks",
]


@dataclass(frozen=True, slots=True)
class Failure:
    """What to print, and whether the user's input is at fault."""

    report: str
    by_user: bool


def clear(logs: Path) -> None:
    """Forget an earlier job of the same run folder."""
    (logs / "failures").mkdir(exist_ok=True)
    for old in [*logs.glob("rank*.pid"), *(logs / "failures").glob("*.json")]:
        old.unlink()


@contextmanager
def alive(logs: Path, rank: int) -> Iterator[None]:
    """In a rank: hold the pid file while inside, however the inside ends."""
    path = logs / f"rank{rank}.pid"
    _write(path, str(os.getpid()))
    try:
        yield
    finally:
        forget(logs, rank)


def forget(logs: Path, rank: int) -> None:
    """In a rank that ends on purpose: nobody need ask what killed it."""
    (logs / f"rank{rank}.pid").unlink(missing_ok=True)


def rank_pids(logs: Path) -> dict[int, int]:
    """Process ids of the ranks that live, or were killed, by rank."""
    pids = {}
    for path in logs.glob("rank*.pid"):
        with suppress(FileNotFoundError):  # it ended between the look and the reading
            pids[int(path.stem.removeprefix("rank"))] = int(path.read_text())
    return pids


def living_ranks(logs: Path) -> list[int]:
    """Ranks that are at work."""
    return [rank for rank, pid in rank_pids(logs).items() if _lives(pid)]


def record_failure(logs: Path, rank: int, error: BaseException) -> None:
    """In a failing rank: what happened."""
    trace = "".join(traceback.format_exception(error))
    _record(logs, rank, {"by_user": isinstance(error, UserError), "message": str(error), "trace": trace, "lost": False})


def record_lost_ranks(logs: Path) -> bool:
    """In the parent: ranks that were killed; is any rank known to have failed?"""
    for rank, pid in rank_pids(logs).items():
        # a rank that ends on purpose removes its pid file first, maybe since we read it
        killed = not _lives(pid) and (logs / f"rank{rank}.pid").exists()
        if killed and not (logs / "failures" / f"rank{rank}.json").exists():
            message = (
                f"rank {rank} (process {pid}) was killed: out of memory, or from outside; see {logs}/rank{rank}.log"
            )
            _record(logs, rank, {"by_user": False, "message": message, "trace": "", "lost": True})
    return any((logs / "failures").glob("*.json"))


def first_failure(logs: Path) -> Failure | None:
    """The failure to show: a killed rank before a raised error, an earlier before a later; None if all is well."""
    records = [json.loads(path.read_text()) for path in (logs / "failures").glob("rank*.json")]
    if not records:
        return None
    first = min(records, key=lambda record: (not record["lost"], record["time"]))
    if first["by_user"] or first["lost"]:
        return Failure(first["message"], first["by_user"])
    return Failure(f"{first['trace']}rank {first['rank']} failed first; the logs of all ranks are in {logs}", False)


def _record(logs: Path, rank: int, record: dict[str, Any]) -> None:
    text = json.dumps({"rank": rank, "time": time.time(), **record})
    _write(logs / "failures" / f"rank{rank}.json", text)


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
