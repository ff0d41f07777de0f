"""A delay that imports torch's compiler only when something is compiled.

Importing `torch._dynamo` takes more than half as long as importing all the rest of torch. Every optimizer, process
group and meta tensor imports it, only to say that it must leave them alone. A module without content answers these
calls, which are right as long as nothing is compiled. Any other attribute, and any submodule, turns the very same
module object into the real module, so that `torch.compile` works as always. Rejected: importing the compiler in every
process of a run, which takes more than a second of CPU time each; patching the functions of torch that import it, of
which there are tens.
"""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

__all__ = ["defer_compiler", "is_loaded"]

_COMPILER = "torch._dynamo"


def defer_compiler() -> None:
    """Import torch's compiler only when it is needed from now on; nothing changes where it is already imported."""
    torch = importlib.import_module("torch")
    spec = None if _COMPILER in sys.modules else importlib.util.find_spec(_COMPILER)
    if spec is not None and spec.loader is not None:
        sys.modules[_COMPILER] = _Deferred(spec)
        vars(torch)["_dynamo"] = sys.modules[_COMPILER]
        sys.meta_path.insert(0, _Loaded())


def is_loaded() -> bool:
    """Whether torch's compiler is imported, so that something may be compiled."""
    return type(sys.modules.get(_COMPILER)) is ModuleType


class _Deferred(ModuleType):
    """A module that has not been loaded yet."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec.name)
        # a search through all modules looks at these attributes, and must not load this module
        origin = {"__spec__": spec, "__loader__": spec.loader, "__package__": spec.parent, "__file__": spec.origin}
        vars(self).update(**origin, **_ANSWERS)

    def __getattr__(self, name: str) -> Any:
        _become_real(self)
        return getattr(self, name)


def _become_real(module: _Deferred) -> None:
    spec = module.__spec__
    assert spec is not None and spec.loader is not None, "it would not have been deferred"
    for answer in _ANSWERS:
        del vars(module)[answer]
    assert spec.submodule_search_locations is not None, "it is a package"
    module.__path__ = spec.submodule_search_locations
    module.__class__ = ModuleType  # type: ignore[assignment]
    spec.loader.exec_module(module)


def _disable(fn: Callable[..., Any] | None = None, *args: Any, **options: Any) -> Callable[..., Any]:
    """Stands for `torch._dynamo.disable`, and calls it as soon as there is a compiler that must leave `fn` alone."""
    if fn is None:
        return functools.partial(_disable, **options)

    disabled = functools.cache(lambda: sys.modules[_COMPILER].disable(fn, *args, **options))

    @functools.wraps(fn)
    def alone(*given: Any, **named: Any) -> Any:
        return (disabled() if is_loaded() else fn)(*given, **named)

    return alone


def _nothing(*args: Any, **options: Any) -> None:
    """Do nothing: there is no graph to break and no cache to clear."""


_ANSWERS: Mapping[str, Any] = {
    "disable": _disable,
    "graph_break": _nothing,
    "trace_rules": SimpleNamespace(clear_lru_cache=_nothing),
}


class _Loaded:
    """Finds submodules that came with the real module; a first `import torch._dynamo.x` asks for `x` after that."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        module = sys.modules.get(name) if name.startswith(f"{_COMPILER}.") else None
        return None if module is None else ModuleSpec(name, _Given(module), origin=getattr(module, "__file__", None))


class _Given(Loader):
    """A loader of a module that is already loaded."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        with suppress(AttributeError):  # torch's modules of settings take no other attributes
            module.__spec__ = self.spec
