"""README.md, CONTRIBUTING.md and docs/: whatever they point at exists."""

import importlib
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from matplotlib.image import imread
from pydantic import BaseModel

from lartpc_ds.commands.cli import app
from lartpc_ds.config import recipes
from lartpc_ds.config.run import RunConfig

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lartpc_ds"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_OURS = {"my_images.py", "utils.py"}
RUN_ARGUMENTS = {("run", "argument"), ("recipe", "argument")}
PLACEHOLDERS = {"COMMAND", "NAME", "..."}
OTHER_PROGRAMS_OPTIONS = {"--first", "--launcher_args", "--module", "--requeue", "--signal", "--with"}
COMMANDS: Any = typer.main.get_command(app)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def words(page: Path) -> str:
    """The page without the families' refusals, which name files of other projects."""
    return re.sub(r"^\| .* refused: .*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", words(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@each_page
def test_files_and_folders_exist(page: Path) -> None:
    text = words(page)
    roots = r"(?<![\w/.])(?:docs|scripts|tests|lartpc_ds|hostfiles|ds_configs|\.ci)/[\w./-]*[\w/]"
    assert not [path for path in re.findall(roots, text) if not (ROOT / path).exists()]
    modules = [str(path) for folder in ("lartpc_ds", "tests", "scripts") for path in (ROOT / folder).rglob("*.py")]
    named = set(re.findall(r"`([\w/]+\.py)`", text)) - NOT_OURS
    assert not [name for name in named if not any(path.endswith(f"/{name}") for path in modules)]


@each_page
def test_modules_and_names_can_be_imported(page: Path) -> None:
    for dotted in set(re.findall(r"\b(?:lartpc_ds|tests)(?:\.\w+)+", words(page))):
        module, _, name = dotted.rpartition(".")
        if not (ROOT / dotted.replace(".", "/")).is_dir() and not (ROOT / (dotted.replace(".", "/") + ".py")).exists():
            assert hasattr(importlib.import_module(module), name), dotted
    for module, names in re.findall(r"^from (lartpc_ds[\w.]*) import (.+)$", words(page), re.MULTILINE):
        missing = [name for name in names.split(", ") if not hasattr(importlib.import_module(module), name)]
        assert not missing, missing


def command_lines(page: Path) -> Iterator[list[str]]:
    """The arguments of every `lartpc-ds` in an indented line, and of every command between back-quotes."""
    text = words(page)
    indented = re.findall(r"^ {4,}(?:PYTHONPATH=\. )?lartpc-ds (.+)$", text, re.MULTILINE)
    names = "|".join(COMMANDS.commands)
    quoted = re.findall(rf"`(?:lartpc-ds\s|(?=(?:{names})\s))([^`]+)`", text)
    for line in indented + quoted:
        yield shlex.split(line, comments=True)


@each_page
def test_commands_exist_with_their_options(page: Path) -> None:
    for arguments in command_lines(page):
        command, rest = COMMANDS, arguments
        while subcommands := getattr(command, "commands", None):
            if not rest or rest[0] in PLACEHOLDERS:
                break
            assert rest[0] in subcommands, arguments
            command, rest = subcommands[rest[0]], rest[1:]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert not [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known], arguments
        takes_a_run = any((one.name, one.param_type_name) in RUN_ARGUMENTS for one in command.params)
        if takes_a_run and rest and re.fullmatch(r"[a-z][\w-]*", rest[0]):
            assert rest[0] in recipes.names(), arguments


@each_page
def test_keys_of_the_run_exist(page: Path) -> None:
    sections = "|".join(RunConfig.model_fields)
    for section, rest in set(re.findall(rf"(?<![\w./-])({sections})((?:\.[a-z_]+)+)\b(?![/(.])", words(page))):
        if rest in (".md", ".pt", ".py"):
            continue
        fields: type[BaseModel] | None = RunConfig
        for name in (section, *rest[1:].split(".")):
            if fields is None:
                break
            assert name in fields.model_fields, f"{section}{rest}"
            annotation = fields.model_fields[name].annotation
            fields = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def options_of(command: Any) -> set[str]:
    """The options of a command and of all commands below it."""
    own = {option for parameter in command.params for option in parameter.opts}
    return own.union(*(options_of(below) for below in getattr(command, "commands", {}).values()))


@each_page
def test_options_between_back_quotes_exist(page: Path) -> None:
    named = set(re.findall(r"`(--[a-z][\w-]*)", words(page)))
    assert not named - options_of(COMMANDS) - OTHER_PROGRAMS_OPTIONS


def test_there_is_something_to_check() -> None:
    assert sum(len(list(command_lines(page))) for page in PAGES) > 60


def test_the_tour_has_every_folder_and_names_what_exists() -> None:
    section = PAGES[0].read_text(encoding="utf-8").split("\n## Find your way\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`\w+/`.*?) \| (.+) \|$", section, re.MULTILINE)
    assert len(rows) == 7
    stops = [folder for stop, _ in rows for folder in re.findall(r"`(\w+)/`", stop)]
    assert sorted(stops) == sorted(one.parent.name for one in PACKAGE.glob("*/__init__.py"))
    named = [place for _, places in rows for place in re.findall(r"`([\w/]+(?:\.py|/))`", places)]
    assert not [place for place in named if not (PACKAGE / place).exists()]


@pytest.mark.parametrize("picture", ["tiles", "lit"])
def test_pictures_are_small_and_can_be_drawn_again(tmp_path: Path, picture: str) -> None:
    written = ROOT / f"docs/{picture}.png"
    drawing = runpy.run_path(str(ROOT / f"scripts/draw_{picture}.py"))
    drawing["main"](tmp_path / "again.png")
    assert written.stat().st_size <= 300_000
    assert imread(tmp_path / "again.png").shape == imread(written).shape
