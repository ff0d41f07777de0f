"""The section "Every file" of docs/design.md: each room from the top floor down, and one line per module.

`python -m tests.rooms` writes it from the first lines of the docstrings; a test compares.
"""

import ast
from pathlib import Path

__all__ = ["DESIGN", "HEADING", "section"]

_PACKAGE = Path(__file__).parents[1] / "lartpc_ds"
_FLOORS = (
    *("commands", "advise", "jobs", "report", "training", "costs", "exact"),
    *("config", "simulation", "data", "models", ""),
)
"""From what users call down to what everything uses; the import contract in pyproject.toml has the same order."""
DESIGN = Path(__file__).parents[1] / "docs" / "design.md"
HEADING = "## Every file\n"


def _says(module: Path) -> str:
    """The first line of its docstring."""
    docstring = ast.get_docstring(ast.parse(module.read_text()))
    assert docstring, f"{module} has no docstring"
    return docstring.splitlines()[0]


def _lines(folder: Path) -> list[str]:
    name = "lartpc_ds/" + "".join(f"{part}/" for part in folder.relative_to(_PACKAGE).parts)
    lines = ["", f"{name}  {_says(folder / '__init__.py')}"]
    modules = sorted(one for one in folder.glob("*.py") if one.stem != "__init__")
    width = max((len(one.name) for one in modules), default=0)
    lines += [f"  {one.name:{width}}  {_says(one)}" for one in modules]
    inner = sorted(one.parent for one in folder.glob("*/__init__.py")) if folder != _PACKAGE else []
    return lines + [line for one in inner for line in _lines(one)]


def section() -> str:
    """The text after the heading."""
    rooms = {one.parent.name for one in _PACKAGE.glob("*/__init__.py")}
    assert rooms == set(_FLOORS) - {""}, "a new room needs its floor"
    lines = [line for room in _FLOORS for line in _lines(_PACKAGE / room)]
    return "\n".join(["", "```text", *lines[1:], "```", ""])


def main() -> None:
    """Replace the section, which ends the file."""
    text = DESIGN.read_text()
    before = text.split(HEADING)[0]
    DESIGN.write_text(before + HEADING + section())


if __name__ == "__main__":
    main()
