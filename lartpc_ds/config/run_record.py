"""The record `files.json` of a run folder: the size and checksum of every file in it that shapes numbers.

While a resumed run replaces its configurations, both the old and the new ones count as undamaged, so that a kill in
between locks nobody out; the two differ in nothing that shapes a number. Rejected: keeping the record only in the
manifest of each checkpoint, because the configurations may change after a checkpoint is written, and are read before
there is one.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from lartpc_ds.data.integrity import FileRecord, fault, seal, unseal, write_atomically

__all__ = ["RunRecord"]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The content of `files.json` in a run folder."""

    run: str
    """The identity of the run: a digest of the files that it began with. Its checkpoints carry it, too."""
    files: Mapping[str, FileRecord]
    replaced: Mapping[str, FileRecord]
    """The records of files before a rewriting that has not come to its end."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read `files.json`; raises `Damage` if it is missing or was changed."""
        tree = unseal(path)
        both = ({name: FileRecord(**one) for name, one in tree[key].items()} for key in ("files", "replaced"))
        return cls(tree["run"], *both)

    def write(self, path: Path) -> None:
        """Write `files.json`; the inverse of `read`."""
        write_atomically(path, seal(asdict(self)))

    def faults(self, folder: Path, *names: str) -> list[str]:
        """Describe how the files called `names`, or all files of the record, differ from what was written."""
        faults = []
        for name in names or self.files:
            accepted = [record[name] for record in (self.files, self.replaced) if name in record]
            if accepted and (difference := fault(folder / name, *accepted)) is not None:
                faults.append(difference)
        return faults
