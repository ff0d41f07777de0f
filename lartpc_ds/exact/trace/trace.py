"""Run a model once on meta tensors of the whole image, and note how each call must be made on tiles.

A mode sees every torch function that the model calls, in modules and in `forward` alike, so a convolution is met where
it happens, whatever module or subclass calls it. A rule plans it; what has no rule is refused with its layer and line,
before any process starts. Rejected: a table of module types (misses functions, and runs unknown subclasses on a tile)
and tensor subclasses at run time (DeepSpeed's hooks and autograd functions lose them).
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.cuts import Call, Cut, EmptyTile, compared, numbers_of, tensors_of
from lartpc_ds.exact.grid.site import Result, map_cut
from lartpc_ds.exact.grid.windows import AxisPlan
from lartpc_ds.exact.ops import shapes
from lartpc_ds.exact.ops.operators import Gather
from lartpc_ds.exact.ops.randomness import Draw, Dropout
from lartpc_ds.exact.ops.rules import RULES, per_channel, pointwise
from lartpc_ds.exact.ops.statistics import BatchNorm
from lartpc_ds.exact.ops.window_rules import WINDOW_RULES
from lartpc_ds.exact.trace.frames import autograd_function, in_checkpoint, where
from lartpc_ds.exact.trace.modules import announced

__all__ = ["DROPOUTS", "GATHERED", "LOOKS", "PER_CHANNEL", "POINTWISE", "UNSEEDED", "Tracer", "canonical"]

GATHERED = "gathered input"
"""The name under which a gather is noted among the calls."""

POINTWISE = frozenset(
    """relu relu6 gelu silu mish sigmoid tanh hardswish hardsigmoid hardtanh leaky_relu elu celu selu softplus
    softsign logsigmoid threshold rrelu exp expm1 log log1p log2 log10 sqrt rsqrt square abs neg negative sign sgn sin
    cos tan atan sinh cosh asinh erf erfc reciprocal remainder fmod mod heaviside trunc frac ceil pow float_power clamp
    clamp_min clamp_max clip add sub rsub subtract mul multiply div divide true_divide rtruediv rdiv rpow floor round
    maximum minimum where lerp addcmul addcdiv nan_to_num isnan isfinite isinf
    eq ne lt le gt ge
    logical_and logical_or logical_xor logical_not and or xor invert bitwise_and bitwise_or bitwise_xor bitwise_not
    masked_fill to float double half bfloat16 long int short char byte bool type type_as contiguous clone detach
    requires_grad_ zeros_like ones_like full_like empty_like""".split()
)
PER_CHANNEL = frozenset("softmax log_softmax softmin cumsum".split())
LOOKS = frozenset(
    """dim size numel stride is_contiguous is_floating_point is_complex element_size get_device nelement ndimension
    storage_offset untyped_storage len hash format repr set_grad_enabled""".split()
)
_NEW = frozenset("new_empty new_zeros new_ones new_full new_tensor".split())
DROPOUTS = frozenset({"dropout", "dropout2d", "feature_dropout"})
_ONE_MAP = frozenset(WINDOW_RULES) | set("batch_norm group_norm instance_norm layer_norm linear prelu".split())
UNSEEDED = frozenset(
    """rand randn randint rand_like randn_like randint_like randperm normal uniform exponential geometric cauchy
    log_normal poisson multinomial bernoulli random rrelu alpha_dropout feature_alpha_dropout dropout1d dropout3d
    gumbel_softmax""".split()
)


def _drops_pairs(name: str, args: Any, kwargs: Any) -> bool:
    """Does attention draw which pairs of tokens it drops?"""
    place = {"scaled_dot_product_attention": 4, "multi_head_attention_forward": 10}.get(name)
    if place is None:
        return False
    share = args[place] if len(args) > place else kwargs.get("dropout_p", 0.0)
    return bool(share) and kwargs.get("training", True)


def canonical(function: Callable[..., Any]) -> str:
    """A function's name without the marks of its variants: `relu_` is relu, `__getitem__` getitem."""
    name = getattr(function, "__name__", "?").strip("_")
    return name[1:] if name in ("iadd", "isub", "imul") else {"truediv": "div", "itruediv": "div"}.get(name, name)


@dataclass(eq=False)
class Tracer(TorchFunctionMode):
    """Notes the calls of one run; `module` is the innermost module that is running."""

    refuse_thin: bool = False
    """Refuse tiles that are thinner than their halos, or than is worth the messages."""
    one_tile: bool = False
    """The tile is the whole image: only masks need a plan, and nothing is refused."""
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._cuts: dict[int, tuple[Tensor, Cut | None]] = {}  # holds the tensors, so that no id is used twice
        self._stack: list[str] = [""]
        self._draws: Counter[str] = Counter()
        self._name = ""
        self._gather_at: str | None = None

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
        error = (kind or UserError)(f"{layer} ({where()}): {self._name} {reason}")
        if isinstance(error, EmptyTile):
            error.layer = self._stack[-1]
        return error

    # the run

    @contextmanager
    def inside(self, model: nn.Module, gather_at: str | None) -> Iterator[None]:
        """Follow which module runs; gather what enters `gather_at`."""
        self._gather_at = gather_at
        with self, announced(model, self._around):
            yield

    def _around(self, name: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if name == self._gather_at:
            args, kwargs = tree_map_only(Tensor, lambda x: self._gathered(name, x), (args, kwargs))
        self._stack.append(name)
        try:
            return forward(*args, **kwargs)
        finally:
            self._stack.pop()

    def _gathered(self, name: str, x: Tensor) -> Tensor:
        cut, run = self.cut_of(x), None
        with torch._C.DisableTorchFunction():
            before = ((tuple(x.shape), cut),)
            if cut is not None and not self.one_tile:
                self._name = "gathering its input"
                map_cut(self, x)
                axes = [AxisPlan(bounds, ((0, bounds[-1]),) * (len(bounds) - 1)) for bounds in cut.bounds]
                run = Gather((axes[0], axes[1]))
                x = x.detach()  # another tensor, without a cut
        self.calls.append(Call(name, GATHERED, where(), before, run))
        return x

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Rule or refusal for everything that touches a cut map."""
        kwargs = kwargs or {}
        self._name = canonical(func)
        if self._name == "get" or self._name in LOOKS:
            return self._looked(func, args, kwargs)
        tensors = tensors_of(args, kwargs)
        before = tuple((tuple(tensor.shape), self.cut_of(tensor)) for tensor in tensors)
        result, run = self._planned(func, args, kwargs, any(cut is not None for _, cut in before))
        if run is not None and in_checkpoint():
            if not self.one_tile:
                raise self.refuse(
                    "runs in a function given to torch.utils.checkpoint, whose second run finds no plan; give it a "
                    "module"
                )
            run = None
        told = numbers_of(args, kwargs)
        numbers = compared(self._name, run, told)
        self.calls.append(Call(self._stack[-1], self._name, where(), before, run, numbers, told))
        return result

    def _planned(self, func: Any, args: Any, kwargs: Any, is_cut: bool) -> Result:
        if self._name in DROPOUTS or func.__name__ == "bernoulli_":
            return self._random(func, args, kwargs, is_cut)
        unseeded = self._name in UNSEEDED and kwargs.get("training", True)
        if (unseeded or _drops_pairs(self._name, args, kwargs)) and not self.one_tile:
            raise self.refuse(
                "draws random numbers that differ from rank to rank; use dropout, or Tensor.bernoulli_ for whole events"
            )
        if not is_cut or self._name in _NEW:
            return func(*args, **kwargs), BatchNorm(whole=True) if self._name == "batch_norm" else None
        first = args[0] if args else kwargs.get("input")
        others = [one for one in tensors_of(args, kwargs) if one is not first and self.cut_of(one) is not None]
        if not self.one_tile and self._name in _ONE_MAP and others:
            raise self.refuse("takes a map that is cut into tiles for its weights")
        if not self.one_tile and (function := autograd_function()) is not None:
            raise self.refuse(
                f"is part of {function}, an autograd function of the model's own, whose backward cannot be planned; "
                "write it with torch's functions, or leave the tiles before it with layout.gather_at"
            )
        try:
            return self._rule()(self, func, *args, **kwargs)
        except (UserError, TypeError, IndexError) as error:
            if self.one_tile:
                return func(*args, **kwargs), None  # the one tile is the whole image
            if isinstance(error, UserError):
                raise
            raise self.refuse(f"is called in a way that is not covered on tiles: {error}") from error

    def _rule(self) -> Callable[..., Result]:
        rule = RULES.get(self._name) or shapes.SHAPE_RULES.get(self._name)
        if rule is None and self._name in POINTWISE:
            rule = pointwise
        elif rule is None and self._name in PER_CHANNEL:
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
        owner, x = self._stack[-1], args[0] if args else kwargs["input"]
        cut, layer = self.cut_of(x), f"{owner}#{self._draws[owner]}"
        self._draws[owner] += 1
        if self._name == "bernoulli":
            by_pixel = is_cut or len(tensors_of(args, kwargs)) > 1
            if by_pixel and not self.one_tile:
                raise self.refuse("draws for every pixel of a tile; use dropout, whose masks do not depend on tiles")
            return func(*args, **kwargs), None if by_pixel else Draw(layer)
        result = self.mark(func(*args, **kwargs), cut)
        if 0.0 in args[1:2] or kwargs.get("p") == 0:
            return result, None
        if cut is not None and cut.dims != (2, 3) and self.one_tile:
            cut = None
        if cut is not None:
            map_cut(self, x)
        return result, Dropout(layer, None if cut is None else cut.bounds, whole_channels=self._name != "dropout")
