"""The differences between two configurations, key by key, for a command that continues an earlier one."""

import json
from collections.abc import Iterator
from typing import Any

__all__ = ["differences", "shortly"]


def shortly(value: object) -> str:
    """A value as text that is short enough for a message."""
    return json.dumps(value, default=str)[:80]


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The leaves in which two trees of plain data differ, each as (dotted key, old, new)."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{prefix}{key}.")
    elif json.dumps(old) != json.dumps(new):
        yield prefix.removesuffix("."), old, new
