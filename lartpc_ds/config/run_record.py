"""`files.json` of a run folder: size and checksum of every file in it that shapes numbers.

While a resumed run replaces its configurations both the old and the new ones count as whole, so that a kill in between
locks nobody out; they differ in nothing that shapes a number. Rejected: the record inside each checkpoint's manifest
alone, because the configurations may change after a checkpoint is written, and are read before there is one.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from lartpc_ds.data.integrity import FileRecord, fault, seal, unseal, write_atomically

__all__ = ["RunRecord"]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What `files.json` says of a run's folder."""

    run: str
    """Which run this is: a digest of the files that it began with. Its checkpoints carry it, too."""
    files: Mapping[str, FileRecord]
    replaced: Mapping[str, FileRecord]
    """What files were before a rewriting that has not come to its end."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """From `files.json`; `Damage` if it is missing or changed."""
        tree = unseal(path)
        both = ({name: FileRecord(**one) for name, one in tree[key].items()} for key in ("files", "replaced"))
        return cls(tree["run"], *both)

    def write(self, path: Path) -> None:
        """The inverse."""
        write_atomically(path, seal(asdict(self)))

    def faults(self, folder: Path, *names: str) -> list[str]:
        """How the files called `names`, or all of them, differ from what was written."""
        found = []
        for name in names or self.files:
            accepted = [record[name] for record in (self.files, self.replaced) if name in record]
            if accepted and (told := fault(folder / name, *accepted)) is not None:
                found.append(told)
        return found
