"""`followers` finds, in the program of a model, what may be made again instead of kept: who reads what.

A norm whose result only a ReLU reads can apply the ReLU itself and keep one map instead of two. Where one layer alone
reads that, and answers with a gradient of its own making, the norm may write its own gradient over it. And where a
convolution makes a large map of a small one, for such a norm only, its result need not be kept either: a stem's image
is a tenth of its first map. Rejected: a pattern of modules, because following tensors holds for any `forward`.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lartpc_ds.exact.grid.cuts import Call
from lartpc_ds.exact.ops.table import OPERATORS
from lartpc_ds.exact.trace.trace import GATHERED

__all__ = ["Followers", "followers"]

Where = tuple[str, str]
"""The (module, function) of a call."""

_NORMS = frozenset(name for name, operator in OPERATORS.items() if operator.with_relu is not None)
_FRESH_GRADIENT = frozenset(name for name, operator in OPERATORS.items() if operator.fresh_gradient)
_SAME_MAP = frozenset("permute transpose movedim to float half bfloat16 type type_as contiguous detach".split())
_SMALL = 4
"""A convolution is made again if its result has at least this many times its input's elements."""


class Followers(NamedTuple):
    """Calls that may be made in another way, each time that they are made in a step."""

    norms: frozenset[Where] = frozenset()
    """Norms that only a ReLU reads."""
    owners: frozenset[Where] = frozenset()
    """Those of the norms that may write over the gradient that reaches them."""
    convolutions: frozenset[Where] = frozenset()
    """Convolutions that only such a norm reads and whose input is small."""


@dataclass(eq=False)
class _Output:
    """What one call of a norm or a convolution gave: which functions read it, and which read its ReLU."""

    small_input: bool = False
    readers: list[str] = field(default_factory=list)
    after_relu: list[str] = field(default_factory=list)

    @property
    def for_relu(self) -> bool:
        return self.readers == ["relu"]

    @property
    def owns_gradient(self) -> bool:
        return len(self.after_relu) == 1 and self.after_relu[0] in _FRESH_GRADIENT


class _Readers:
    """Follows each output of a norm or a convolution through the program."""

    def __init__(self) -> None:
        self.outputs: dict[Where, list[_Output]] = defaultdict(list)
        self._readers: dict[int, list[str]] = {}
        self._after: dict[int, list[str]] = {}

    def add(self, call: Call) -> None:
        """Follow the next call of the program."""
        for number in call.reads:
            self.read(number, call)
        if (call.name in _NORMS or call.name == "conv2d") and len(call.gives) == 1:
            small = _SMALL * call.source_numel <= call.given_numel
            output = _Output(small_input=small)
            self.outputs[call.owner, call.name].append(output)
            self._readers[call.gives[0]], self._after[call.gives[0]] = output.readers, output.after_relu

    def read(self, number: int, call: Call | None) -> None:
        """Note that a call (or, for None, whoever gets the model's result) reads a tensor."""
        readers = self._readers.get(number)
        if readers is None:
            return
        after = self._after[number]
        if call is not None and call.name in (*_SAME_MAP, GATHERED):
            for given in call.gives:
                self._readers[given], self._after[given] = readers, after
            return
        name = "return" if call is None else call.name
        readers.append(f"{name} of {call.owner}" if call is not None and name in _NORMS else name)
        if name == "relu" and call is not None:  # from here on its readers are readers of the ReLU, in place or not
            for given in call.gives:
                self._readers[given], self._after[given] = after, after


def followers(calls: Sequence[Call], results: Collection[int]) -> Followers:
    """Read off the program of a model in the mode that it will train in; `results` are the tensors that it gives."""
    readers = _Readers()
    for call in calls:
        readers.add(call)
    for number in results:
        readers.read(number, None)

    def all_of(kind: str, test: Callable[[_Output], bool]) -> frozenset[Where]:
        return frozenset(
            key
            for key, outputs in readers.outputs.items()
            if (key[1] in _NORMS) == (kind == "norm") and all(map(test, outputs))
        )

    norms = all_of("norm", lambda output: output.for_relu)
    names = {f"{name} of {owner}" for owner, name in norms}
    return Followers(
        norms,
        norms & all_of("norm", lambda output: output.owns_gradient),
        all_of("conv", lambda output: output.small_input and len(output.readers) == 1 and output.readers[0] in names),
    )
