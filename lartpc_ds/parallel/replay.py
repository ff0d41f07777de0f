"""At run time: the planned calls are made on tiles, all others by torch.

One mode serves a whole converted model. Each module's forward says that it runs, so that a call is looked up by
(module, function, shapes of its tensors): no counter, so a block that recomputation runs once more finds its plans.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lartpc_ds.parallel.cuts import RESHAPES, Call, Key, Run, key_of, numbers_of, tensors_of
from lartpc_ds.parallel.operators import Gather
from lartpc_ds.parallel.tiles import Tiles
from lartpc_ds.parallel.trace import LOOKS, canonical

__all__ = ["Replay", "table"]

Table = dict[str, dict[Key, Run | None]]


class Replay(TorchFunctionMode):
    """Entered by the outermost module that runs; `table` has the calls of each module as this rank makes them."""

    def __init__(self, table: Table, gathers: dict[str, Gather], tiles: Tiles) -> None:
        super().__init__()
        self.tiles = tiles
        self.seen: list[tuple[str, str, tuple[float, ...]]] | None = None
        """A list: note (module, function, numbers) of every call, to compare with the trace."""
        self._table, self._gathers = table, gathers
        self._stack: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look the call up."""
        kwargs, owner = kwargs or {}, self._stack[-1]
        calls = self._table.get(owner)
        if self.seen is None and not calls:
            return func(*args, **kwargs)
        name = canonical(func)
        tensors = tensors_of(args, kwargs)
        run = calls.get(key_of(name, tensors)) if calls else None
        if self.seen is not None and tensors and name != "get" and name not in LOOKS:
            compared = run is None and name not in RESHAPES
            self.seen.append((owner, name, numbers_of(args, kwargs) if compared else ()))
        return func(*args, **kwargs) if run is None else run(self.tiles, func, args, kwargs)

    def attach(self, model: nn.Module) -> None:
        """Make every module of `model` say that it runs."""
        for name, module in model.named_modules():
            module.forward = self._announced(name, module.forward)

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Inside only."""
        before = [module.forward for module in model.modules()]
        self.attach(model)
        try:
            yield
        finally:
            for module, forward in zip(model.modules(), before, strict=True):
                module.forward = forward

    def _announced(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        gather = self._gathers.get(name)

        @functools.wraps(forward)
        def announced(*args: Any, **kwargs: Any) -> Any:
            if gather is not None:
                args = tuple(gather(self.tiles, one) if isinstance(one, Tensor) else one for one in args)
            self._stack.append(name)
            try:
                if len(self._stack) > 1:
                    return forward(*args, **kwargs)
                with self:
                    return forward(*args, **kwargs)
            finally:
                self._stack.pop()

        return announced


def table(calls: Iterable[Call], row: int, col: int) -> Table:
    """The planned calls as the rank at (row, col) makes them."""
    modules: Table = {}
    for call in calls:
        modules.setdefault(call.owner, {})[call.key(row, col)] = call.run
    return {owner: found for owner, found in modules.items() if any(run is not None for run in found.values())}
