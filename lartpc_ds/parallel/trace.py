"""Run a model once on meta tensors of the whole image, and note how each call must be made on tiles.

A mode sees every torch function that the model calls, in modules and in `forward` alike, so a convolution is met where
it happens, whatever module or subclass calls it. A rule plans it; what has no rule is refused with its layer and line,
before any process starts. Rejected: a table of module types (misses functions, and runs unknown subclasses on a tile)
and tensor subclasses at run time (DeepSpeed's hooks and autograd functions lose them).
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lartpc_ds.errors import UserError
from lartpc_ds.parallel import shapes
from lartpc_ds.parallel.cuts import Call, Cut, EmptyTile, numbers_of, tensors_of
from lartpc_ds.parallel.operators import Gather
from lartpc_ds.parallel.randomness import Draw, Dropout
from lartpc_ds.parallel.rules import RULES, per_channel, pointwise
from lartpc_ds.parallel.site import Result
from lartpc_ds.parallel.statistics import BatchNorm
from lartpc_ds.windows import AxisPlan

__all__ = ["LOOKS", "Tracer", "canonical"]

_POINTWISE = frozenset(
    """relu relu6 gelu silu mish sigmoid tanh hardswish hardsigmoid hardtanh leaky_relu elu celu selu prelu softplus
    softsign logsigmoid threshold rrelu exp expm1 log log1p log2 sqrt rsqrt square abs neg negative sign sin cos erf
    reciprocal pow float_power clamp clamp_min clamp_max clip add sub rsub subtract mul multiply div divide true_divide
    rtruediv rdiv rpow floor round maximum minimum where lerp addcmul addcdiv nan_to_num isnan isfinite isinf
    eq ne lt le gt ge
    logical_and logical_or logical_not masked_fill to float double half bfloat16 type type_as contiguous clone detach
    requires_grad_ zeros_like ones_like full_like empty_like""".split()
)
_PER_CHANNEL = frozenset("softmax log_softmax softmin normalize cumsum".split())
LOOKS = frozenset(
    """dim size numel stride is_contiguous is_floating_point is_complex element_size get_device nelement ndimension
    storage_offset new_empty new_zeros new_ones new_full new_tensor len hash format repr""".split()
)
_DROPOUTS = frozenset({"dropout", "dropout2d", "feature_dropout"})
_LIBRARY = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


def canonical(function: Callable[..., Any]) -> str:
    """A function's name without the marks of its variants: `relu_` is relu, `__getitem__` getitem."""
    name = getattr(function, "__name__", "?").strip("_")
    return name[1:] if name in ("iadd", "isub", "imul") else {"truediv": "div", "itruediv": "div"}.get(name, name)


@dataclass(eq=False)
class Tracer(TorchFunctionMode):
    """Notes the calls of one run; `module` is the innermost module that is running."""

    refuse_thin: bool = False
    """Refuse tiles that are thinner than their halos, or than is worth the messages."""
    calls: list[Call] = field(default_factory=list)
    gathers: dict[str, Gather] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._cuts: dict[int, tuple[Tensor, Cut | None]] = {}  # holds the tensors, so that no id is used twice
        self._stack: list[str] = [""]
        self._name = ""

    # what a rule asks (rules.Site)

    def cut_of(self, tensor: Any) -> Cut | None:
        """How a tensor is cut."""
        known = self._cuts.get(id(tensor))
        return None if known is None else known[1]

    def mark(self, tensor: Tensor, cut: Cut | None) -> Tensor:
        """Say how a tensor is cut."""
        self._cuts[id(tensor)] = (tensor, cut)
        return tensor

    def refuse(self, reason: str, kind: type[Exception] | None = None) -> Exception:
        """The error for the call at hand."""
        layer = self._stack[-1] or "the model's own forward"
        error = (kind or UserError)(f"{layer} ({_where()}): {self._name} {reason}")
        if isinstance(error, EmptyTile):
            error.layer = self._stack[-1]
        return error

    # the run

    @contextmanager
    def inside(self, model: nn.Module, gather_at: str | None) -> Iterator[None]:
        """Follow which module runs; gather what enters `gather_at`."""
        handles = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name, name == gather_at), with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, gathers: bool) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            self._stack.append(name)
            return (tuple(self._gathered(name, one) for one in args), kwargs) if gathers else None

        return hook

    def _leave(self, *_: Any) -> None:
        self._stack.pop()

    def _gathered(self, name: str, x: Any) -> Any:
        cut = self.cut_of(x)
        if cut is None:
            return x
        axes = [AxisPlan(bounds, ((0, bounds[-1]),) * (len(bounds) - 1)) for bounds in cut.bounds]
        self.gathers[name] = Gather((axes[0], axes[1]))
        with torch._C.DisableTorchFunction():
            return x.detach()  # another tensor, without a cut

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Rule or refusal for everything that touches a cut map."""
        kwargs = kwargs or {}
        self._name = canonical(func)
        tensors = tensors_of(args, kwargs)
        before = tuple((tuple(tensor.shape), self.cut_of(tensor)) for tensor in tensors)
        is_cut = any(cut is not None for _, cut in before)
        if self._name in _DROPOUTS or self._name == "bernoulli":
            result, run = self._random(func, args, kwargs, is_cut)
        elif self._name == "get" or self._name in LOOKS:
            return self._looked(func, args, kwargs)
        elif not is_cut:
            result, run = func(*args, **kwargs), BatchNorm(whole=True) if self._name == "batch_norm" else None
        else:
            result, run = self._rule()(self, func, *args, **kwargs)
        if tensors:
            self.calls.append(Call(self._stack[-1], self._name, _where(), before, run, numbers_of(args, kwargs)))
        return result

    def _rule(self) -> Callable[..., Result]:
        rule = RULES.get(self._name) or shapes.SHAPE_RULES.get(self._name)
        if rule is None and self._name in _POINTWISE:
            rule = pointwise
        elif rule is None and self._name in _PER_CHANNEL:
            rule = per_channel
        if rule is None:
            raise self.refuse(
                "has no proven form on tiles; set layout.rows = layout.cols = 1, leave the tiles before it with "
                "layout.gather_at, or write the layer with convolutions, pools and pointwise functions"
            )
        return rule

    def _looked(self, func: Any, args: Any, kwargs: Any) -> Any:
        result, cut = func(*args, **kwargs), self.cut_of(args[0]) if args else None
        if cut is not None and self._name == "get" and isinstance(result, Tensor):
            if func.__self__.__name__ != "data":
                raise self.refuse(f"of the attribute {func.__self__.__name__} has no proven form on tiles")
            self.mark(result, cut)
        return result

    def _random(self, func: Any, args: Any, kwargs: Any, is_cut: bool) -> Result:
        x = args[0] if args else kwargs["input"]
        cut, layer = self.cut_of(x), f"{self._stack[-1]}#{len([c for c in self.calls if c.owner == self._stack[-1]])}"
        if self._name == "bernoulli":
            if is_cut:
                raise self.refuse("draws for every pixel of a tile; use dropout, whose masks do not depend on tiles")
            return func(*args, **kwargs), Draw(layer)
        whole_channels = self._name != "dropout"
        if cut is not None and not whole_channels and cut.dims != (2, 3):
            raise self.refuse("needs rows and columns in the last two of four dimensions")
        result = self.mark(func(*args, **kwargs), cut)
        return result, Dropout(layer, None if cut is None else cut.bounds, whole_channels)


def _where() -> str:
    """The innermost line that is neither torch's nor ours."""
    frames = [frame for frame in traceback.extract_stack() if not frame.filename.startswith(_LIBRARY)]
    inner = frames[-1]
    return f"{Path(inner.filename).name}:{inner.lineno}"
