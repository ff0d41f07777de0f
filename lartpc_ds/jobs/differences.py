"""How two configurations differ, key by key, for a command that goes on with what an earlier one began."""

import json
from collections.abc import Iterator
from typing import Any

__all__ = ["differences", "shortly"]


def shortly(value: object) -> str:
    """A leaf in a message."""
    return json.dumps(value, default=str)[:80]


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Leaves of two trees of plain data that differ: (dotted key, old, new)."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{prefix}{key}.")
    elif json.dumps(old) != json.dumps(new):
        yield prefix.removesuffix("."), old, new
