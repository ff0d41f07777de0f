"""The one table of torch functions that are known on maps that are cut, by canonical name.

Tiles, strips, lean norms, the lists in docs/ (`python -m tests.operators`) and the tests' generators read it. A
function that is not in it never runs on a tile or a strip: it is refused, with its layer and line. Rejected: a table of
module types, which misses functions and runs unknown subclasses unseen.

To cover another function, add it to the module of its family, or add a module and name it here.
"""

from types import ModuleType

from lartpc_ds.exact.ops import (
    adaptive_pools,
    convolution,
    norms,
    padding,
    pointwise,
    pooling,
    products,
    randomness,
    reductions,
    resampling,
    shapes,
)
from lartpc_ds.exact.ops.operator import Operator

__all__ = ["FAMILIES", "OPERATORS"]

FAMILIES: tuple[ModuleType, ...] = (
    convolution,
    pooling,
    padding,
    resampling,
    norms,
    pointwise,
    reductions,
    adaptive_pools,
    products,
    shapes,
    randomness,
)

OPERATORS: dict[str, Operator] = {}
for family in FAMILIES:
    assert not OPERATORS.keys() & family.OPERATORS.keys(), family.__name__
    OPERATORS |= family.OPERATORS
