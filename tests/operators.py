"""Writes docs/operators.md, the list of torch functions that are exact on tiles, strips and patches.

Call it as `python -m tests.operators` after a change of `lartpc_ds/exact/ops/`.
"""

from pathlib import Path
from types import ModuleType

from lartpc_ds.exact.ops.norms import statistics_on_strips
from lartpc_ds.exact.ops.operator import Operator
from lartpc_ds.exact.ops.table import FAMILIES

__all__ = ["written"]

PAGE = Path(__file__).parents[1] / "docs" / "operators.md"
HEAD = """# Torch functions that are exact on tiles, on strips and on patches

This page is written from the table in `lartpc_ds/exact/ops/table.py` by `python -m tests.operators`; one module of that
folder per family says what happens to each function. Names are those of the function that torch calls: `x + y` is
`add`, `nn.Conv2d` is `conv2d`, and a function that changes its input in place counts as the one that does not. Any
other function is refused where it meets a map that is cut, with its layer and line.

"On tiles" means that a network may use the function on maps that are cut into tiles (`layout.rows`, `layout.cols`), "on
strips" that it may use it in the streamed front (`memory.stream_strips`). There a call that takes statistics over rows
(batch norm in training, a sum over rows) or draws random numbers (dropout in training) is refused, because each strip
would need the others.

"On patches" means that a network may use it in the part of it that computes only what is lit, where equal patches of a
map are computed once. There sums and means over rows and columns run over the whole of both, strides must divide the
patches, and what draws random numbers is refused, because each copy of a patch would get numbers of its own.
"""


WAYS = {
    "on tiles, strips and patches": (True, True, True),
    "on tiles and patches": (True, False, True),
    "on tiles and strips": (True, True, False),
    "on tiles only": (True, False, False),
}
"""The columns of the table: whether a function has a rule on tiles, on strips and on patches."""


def _ways(operator: Operator) -> tuple[bool, bool, bool]:
    on_strips = operator.on_strips not in (None, statistics_on_strips)
    return operator.on_tiles is not None, on_strips, operator.on_patches is not None


def _names(family: ModuleType, ways: tuple[bool, bool, bool]) -> str:
    operators: dict[str, Operator] = family.OPERATORS
    return ", ".join(f"`{name}`" for name, operator in operators.items() if _ways(operator) == ways) or "-"


def page() -> str:
    """The page's text."""
    rows = [HEAD, f"| family | {' | '.join(WAYS)} |", "|---" * (1 + len(WAYS)) + "|"]
    for family in FAMILIES:
        name = family.__name__.rpartition(".")[2].replace("_", " ")
        rows.append(f"| {name} | {' | '.join(_names(family, ways) for ways in WAYS.values())} |")
    return "\n".join(rows) + "\n"


def written() -> bool:
    """Is the page on disk the one that the table gives?"""
    return PAGE.read_text() == page()


if __name__ == "__main__":
    PAGE.write_text(page())
