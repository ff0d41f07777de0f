"""Every module of a model says when it runs, and nothing of the model is replaced.

Its `forward` is wrapped, because a hook would miss a call of `module.forward(x)`. The wrapper takes the module as its
first argument, so that a deep copy of the model (an average of weights, say) runs the copy's parameters. Rejected:
replacing modules, which would change names of weights and lose hooks.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

from torch import nn

__all__ = ["Around", "announce", "announced", "module_of", "wrap"]

Around = Callable[[str, Callable[..., Any], Any, Any], Any]
"""It is called as around(name of the module, its forward, args, kwargs) in place of forward(*args, **kwargs)."""


def announce(model: nn.Module, around: Around) -> None:
    """Run every module of `model` inside `around` from now on."""
    for name, module in model.named_modules():
        wrap(name, module, around)


def wrap(name: str, module: nn.Module, around: Around) -> None:
    """Run this one module inside `around` from now on, and inside whatever is wrapped around it later."""
    module.forward = MethodType(_wrapper(name, _function(module), around), module)


@contextmanager
def announced(model: nn.Module, around: Around) -> Iterator[None]:
    """Run every module of `model` inside `around` within this context only."""
    before = [module.__dict__.get("forward") for module in model.modules()]
    announce(model, around)
    try:
        yield
    finally:
        for module, forward in zip(model.modules(), before, strict=True):
            if forward is None:
                del module.__dict__["forward"]
            else:
                module.forward = forward


def module_of(forward: Callable[..., Any]) -> nn.Module:
    """Return the module whose forward an `Around` was given; in a copy of a model it is the copy's module."""
    assert isinstance(forward, functools.partial)
    module = forward.args[0]
    assert isinstance(module, nn.Module)
    return module


def _function(module: nn.Module) -> Callable[..., Any]:
    forward: Any = module.forward
    if getattr(forward, "__self__", None) is module:
        function: Callable[..., Any] = forward.__func__
        return function
    return functools.wraps(forward)(lambda _, *args, **kwargs: forward(*args, **kwargs))


def _wrapper(name: str, function: Callable[..., Any], around: Around) -> Callable[..., Any]:
    @functools.wraps(function)
    def announcing(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return around(name, functools.partial(function, self), args, kwargs)

    return announcing
