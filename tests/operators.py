"""Writes docs/operators.md, the list of torch functions that are exact on tiles and strips.

Call it as `python -m tests.operators` after a change of `lartpc_ds/exact/ops/`.
"""

from pathlib import Path
from types import ModuleType

from lartpc_ds.exact.ops.norms import statistics_on_strips
from lartpc_ds.exact.ops.operator import Operator
from lartpc_ds.exact.ops.table import FAMILIES

__all__ = ["written"]

PAGE = Path(__file__).parents[1] / "docs" / "operators.md"
HEAD = """# Torch functions that are exact on tiles and on strips

This page is written from the table in `lartpc_ds/exact/ops/table.py` by `python -m tests.operators`; one module of that
folder per family says what happens to each function. Names are those of the function that torch calls: `x + y` is
`add`, `nn.Conv2d` is `conv2d`, and a function that changes its input in place counts as the one that does not. Any
other function is refused where it meets a map that is cut, with its layer and line.

"On tiles" means that a network may use the function on maps that are cut into tiles (`layout.rows`, `layout.cols`), "on
strips" that it may use it in the streamed front (`memory.stream_strips`). There a call that takes statistics over rows
(batch norm in training, a sum over rows) or draws random numbers (dropout in training) is refused, because each strip
would need the others.
"""


def _names(family: ModuleType, *, on_tiles: bool, on_strips: bool) -> str:
    operators: dict[str, Operator] = family.OPERATORS
    names = [
        f"`{name}`"
        for name, operator in operators.items()
        if (operator.on_tiles is not None, operator.on_strips not in (None, statistics_on_strips))
        == (on_tiles, on_strips)
    ]
    return ", ".join(names) or "-"


def page() -> str:
    """The page's text."""
    rows = [HEAD, "| family | on tiles and on strips | on tiles only |", "|---|---|---|"]
    for family in FAMILIES:
        name = family.__name__.rpartition(".")[2]
        both, tiles = _names(family, on_tiles=True, on_strips=True), _names(family, on_tiles=True, on_strips=False)
        rows.append(f"| {name.replace('_', ' ')} | {both} | {tiles} |")
    return "\n".join(rows) + "\n"


def written() -> bool:
    """Is the page on disk the one that the table gives?"""
    return PAGE.read_text() == page()


if __name__ == "__main__":
    PAGE.write_text(page())
