"""Sizes of memory as people write them."""

import re

from pydantic import ByteSize, TypeAdapter

from lartpc_ds.errors import UserError

__all__ = ["gib", "parse_bytes"]


def parse_bytes(text: str, option: str) -> int:
    """The bytes of a size such as 40GiB (1024-based) or 40GB (1000-based).

    `ByteSize` also takes a bare number and a bare G, which leave the unit or its base to a guess: they are refused.

    Raises:
        UserError: naming `option`, for anything else.
    """
    stripped = text.strip()
    is_size = re.fullmatch(r"\d+(\.\d+)?\s*[KMGT]i?B", stripped)
    size = TypeAdapter(ByteSize).validate_python(stripped) if is_size else 0
    if size == 0:
        raise UserError(
            f"{option} {text!r}: must be a number above 0 with a unit, KiB, KB, MiB, MB, GiB, GB, TiB or TB; "
            "such as 40GiB"
        )
    return size


def gib(size_bytes: int) -> str:
    """The size in GiB with the digits that matter: 0.004, 0.42, 8.3, 51."""
    value = size_bytes / 2**30
    digits = 3 if 0 < value < 0.1 else 2 if value < 1 else 1 if value < 20 else 0
    return f"{value:.{digits}f}"
