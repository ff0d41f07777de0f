"""`--set KEY=VALUE`: changes to a run TOML, and to the DeepSpeed JSON that it names where KEY begins with `ds.`.

VALUE is TOML. Text that is not TOML is a string, so that a name or a path needs no quotes inside those of the shell.
Text that was meant as something else is refused, and the message has the right spelling: a list, table or string that
does not end, or a number or boolean in the spelling of another language. As strings these mistakes would be found late,
or not at all. Every wrong `--set` is reported, not only the first.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Override", "parse", "put"]

_BOOLEANS = ("true", "false")
_NOTHING = ("None", "null", "nil")  # but "none" is a value of several keys
_OPENS = {"[": "a list", "{": "a table", '"': "a quoted string", "'": "a quoted string", "(": "a list, in [ ],"}


@dataclass(frozen=True, slots=True)
class Override:
    """The key and the value of one `--set`."""

    path: tuple[str, ...]
    """Names from the outermost section to the key, without the `ds` of the DeepSpeed JSON."""
    value: Any
    in_json: bool
    """Whether it is a key of the DeepSpeed JSON."""


def parse(texts: Iterable[str]) -> tuple[list[Override], list[str]]:
    """Read the texts; returns the overrides, and a sentence for every text that cannot be read."""
    parsed = [_parse(text) for text in texts]
    overrides = [result for result in parsed if isinstance(result, Override)]
    return overrides, [result for result in parsed if isinstance(result, str)]


def _parse(text: str) -> Override | str:
    key, equals, value = (part.strip() for part in text.partition("="))
    path = tuple(key.split("."))
    if not equals or not all(path) or path == ("ds",):
        return f"--set {text!r}: must be KEY=VALUE, such as train.max_steps=10"
    try:
        tree = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError as error:
        problem = _not_a_string(key, value, str(error))
        if problem is not None:
            return f"--set {text!r}: {problem}"
        tree = {"value": value}
    if len(tree) > 1:
        return f"--set {text!r}: holds more than one key; give each its own --set"
    in_json = path[0] == "ds"
    return Override(path[1:] if in_json else path, tree["value"], in_json)


def _not_a_string(key: str, value: str, error: str) -> str | None:
    """Say why text that is not TOML cannot be meant as a string; None if it can."""
    quoted = f"for the text: --set '{key}={json.dumps(value)}'"
    if not value:
        return f"VALUE is empty; {quoted}"
    if value[0] in _OPENS:
        # the column would be that of the line given to tomllib
        where = re.sub(r" \(at .*\)$", "", error)
        return f"VALUE begins like {_OPENS[value[0]]} but is not TOML: {where}; {quoted}"
    if (word := value.lower()) in _BOOLEANS:
        return f"TOML writes {word}: --set {key}={word}; {quoted}"
    if value in _NOTHING:
        return f"TOML has no {value}; leave the key out for its default; {quoted}"
    try:
        number = float(value)
    except ValueError:
        return None
    spelling = repr(int(number)) if re.fullmatch(r"[+-]?\d+", value) else repr(number)
    return f"TOML writes {spelling}: --set {key}={spelling}; {quoted}"


def put(tree: dict[str, Any], overrides: Sequence[Override]) -> list[str]:
    """Change `tree`; returns a sentence for every override whose section is a value."""
    return [problem for override in overrides if (problem := _put(tree, override)) is not None]


def _put(tree: dict[str, Any], override: Override) -> str | None:
    for part in override.path[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            key = ".".join(["ds"] * override.in_json + list(override.path))
            return f"--set {key}: {part} is a value, not a section"
    tree[override.path[-1]] = override.value
    return None
