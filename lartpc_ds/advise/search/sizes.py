"""Sizes of memory as people write them."""

import re

from lartpc_ds.errors import UserError

__all__ = ["gib", "parse_bytes"]

_UNITS = {
    f"{prefix}{kind}": base**power
    for power, prefix in enumerate("KMGT", 1)
    for kind, base in (("iB", 1024), ("B", 1000))
}


def parse_bytes(text: str, option: str) -> int:
    """The bytes of a size such as 40GiB (1024-based) or 40GB (1000-based).

    Raises:
        UserError: naming `option`, for anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B)\s*", text)
    if found is None or float(found[1]) == 0:
        raise UserError(f"{option} {text!r}: must be a number above 0 with a unit: {', '.join(_UNITS)}; such as 40GiB")
    return int(float(found[1]) * _UNITS[found[2]])


def gib(size: int) -> str:
    """With the digits that matter: 0.004, 0.42, 8.3, 51."""
    value = size / 2**30
    return (
        f"{value:.3f}"
        if 0 < value < 0.1
        else f"{value:.2f}"
        if value < 1
        else f"{value:.1f}"
        if value < 20
        else f"{value:.0f}"
    )
