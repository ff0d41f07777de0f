"""Files that survive a crash while they are written, and that are checked for damage when they are read.

A disk, a copy or a person may change a file without an error: a flipped byte of a weight is still a weight. So code
that writes a file that shapes numbers also notes its size and checksum (`FileRecord`), and code that reads the file
compares them. The notes are kept in JSON files that carry a checksum of their own content (`seal`, `unseal`).

BLAKE2b is in the standard library, is twice as fast as SHA-256 where the processor has no instructions for the latter,
and `b2sum -l 256 FILE` prints the same digits. Rejected: xxhash, which is one more dependency for time that nobody
notices beside a training step; checksums inside each format, which neither TOML, CSV nor DeepSpeed's files have.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from lartpc_ds.errors import UserError

__all__ = ["Damage", "FileRecord", "fault", "seal", "sync", "unseal", "write_atomically", "write_csv"]

_SEAL = "blake2b"
_blake2b = partial(hashlib.blake2b, digest_size=32)


class Damage(UserError):
    """Says that a file is not what was written there; the message names the file and says how it differs."""


def write_atomically(path: Path, text: str) -> None:
    """Write another file, wait for the disk, and rename it, so that neither a reader nor a crash meets half a file."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file with a line of column names, as `write_atomically` does."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    write_atomically(path, text.getvalue())


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file was when it was written; plain data."""

    size_bytes: int
    blake2b: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """The record of a file, made in one pass that keeps none of it in memory."""
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, _blake2b).hexdigest()
            return cls(stream.tell(), digest)

    @classmethod
    def of_text(cls, text: str) -> Self:
        """The record of a file with this content."""
        content = text.encode()
        return cls(len(content), _digest(content))


def _digest(content: bytes) -> str:
    return _blake2b(content).hexdigest()


def fault(path: Path, *accepted: FileRecord) -> str | None:
    """A clause that says how the file differs from all of `accepted`; None if it equals one of them."""
    try:
        size = path.stat().st_size
        if any(record.size_bytes == size for record in accepted):
            if FileRecord.of(path) in accepted:
                return None
            return f"{path.name} has another content than was written (its checksum differs)"
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        return f"{path.name} is missing" if missing else f"{path.name} cannot be read ({error.strerror})"
    if size == 0:
        return f"{path.name} is empty"
    return f"{path.name} has {size} bytes where {accepted[0].size_bytes} were written"


def seal(tree: Mapping[str, Any]) -> str:
    """A JSON text of `tree`, with a checksum of its content."""
    return json.dumps({**tree, _SEAL: _content_digest(tree)}, indent=2) + "\n"


def unseal(path: Path) -> dict[str, Any]:
    """The tree of a file that holds a text of `seal`.

    Raises:
        Damage: the file is missing, cannot be read, is not such a file, or has changed.
    """
    try:
        tree = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Damage(f"{path.name} is missing") from None
    except OSError as error:
        raise Damage(f"{path.name} cannot be read ({error.strerror})") from None
    except ValueError:  # not JSON, or not UTF-8
        empty = path.stat().st_size == 0
        raise Damage(f"{path.name} is {'empty' if empty else 'no JSON: cut short or overwritten'}") from None
    if not isinstance(tree, dict):
        raise Damage(f"{path.name} holds no JSON object")
    written = tree.pop(_SEAL, None)
    if written is None:
        raise Damage(f"{path.name} has no checksums: an earlier version of lartpc-ds wrote it")
    if written != _content_digest(tree):
        raise Damage(f"{path.name} has another content than was written (its checksum differs)")
    return tree


def _content_digest(tree: Mapping[str, Any]) -> str:
    return _digest(json.dumps(tree, sort_keys=True).encode())
