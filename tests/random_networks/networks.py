"""Networks drawn at random: blocks that are graphs of layers and functions, with layers that are used twice.

Every step of a graph is tried on an image while it is drawn, so a network is one that torch trains on one device.
"""

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

import torch
from torch import Tensor, nn

from lartpc_ds.config.run import MemoryConfig
from lartpc_ds.layout import Layout
from tests.random_networks.functions import JOINS, ONE_MAP, attention_over_pixels, global_context
from tests.random_networks.layers import LAYERS, Call
from tests.tile_parity import image

__all__ = ["Case", "draw"]

GRIDS = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (3, 2)]
Made = TypeVar("Made")
_MOST_CHANNELS, _MOST_PIXELS = 9, 4000


class Graph(nn.Module):
    """Each step reads some of the maps before it; the last map is the result."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList()
        self.reads: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for step, reads in zip(self.steps, self.reads, strict=True):
            maps.append(step(*[maps[at] for at in reads]))
        return maps[-1]


class Whole(nn.Module):
    """Two modules and no list of blocks."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@dataclass(frozen=True)
class Case:
    """A network and how it is run."""

    network: nn.Module
    images: tuple[Tensor, Tensor]
    """Of two steps."""
    layout: Layout
    memory: MemoryConfig
    gather_at: str

    @property
    def told(self) -> str:
        """For the one who looks into a failure."""
        grid = f"{self.layout.rows} x {self.layout.cols}"
        return f"{grid}, images {tuple(self.images[0].shape)}, {self.memory}, gather_at {self.gather_at}"


def draw(seed: str) -> Case:
    """The case of a seed."""
    rng = Random(seed)
    torch.manual_seed(rng.getrandbits(32))
    while True:
        shape = (rng.randint(1, 3), rng.randint(1, 3), rng.randint(6, 40), rng.randint(5, 36))
        images = image(shape, rng.randint(0, 99)), image(shape, rng.randint(100, 199))
        network = _network(rng, images[0])
        if network is not None:
            break
    rows, cols = rng.choice(GRIDS)
    blocks = list(network._modules) if isinstance(network, nn.Sequential) else []
    names = [name for name, _ in network.named_children()]
    gather_at = rng.choice(["never", "never", "auto", rng.choice(names)])
    if any(isinstance(one, Call) and one.function is attention_over_pixels for one in network.modules()):
        gather_at = names[-1]
    alone = (rows, cols) == (1, 1)
    memory = MemoryConfig(
        recompute="block" if len(blocks) > 1 and rng.random() < 0.5 else "none",
        lean_norm=rng.random() < 0.5,
        stream_strips=rng.randint(2, 4) if alone and len(blocks) > 1 and rng.random() < 0.6 else 1,
    )
    return Case(network, images, Layout(rows=rows, cols=cols), memory, "auto" if alone else gather_at)


def _network(rng: Random, x: Tensor) -> nn.Module | None:
    """None where torch itself cannot train what was drawn."""
    modules, y = [], x
    for _ in range(rng.randint(1, 3)):
        block = _graph(rng, y, rng.randint(2, 6))
        with torch.no_grad():
            y = block(y.clone())
        modules.append(block)
    if rng.random() < 0.2 and len(modules) > 1:
        modules.append(modules[-1] if _fits(modules[-1], y) else nn.Identity())
        with torch.no_grad():
            y = modules[-1](y.clone())
    head = _head(rng, y.shape[1]).double()
    if len(x) == 1 and any(map(_misleads_torch, head.modules())):
        return None
    modules.append(head)
    network: nn.Module = nn.Sequential(OrderedDict((f"block{at}", one) for at, one in enumerate(modules)))
    if rng.random() < 0.3:
        network = Whole(nn.Sequential(*modules[:-1]), modules[-1])
    try:
        z = network(x.clone().requires_grad_())
        z.sum().backward()
    except RuntimeError:
        return None
    network.zero_grad()
    return network if bool(z.isfinite().all()) and z.requires_grad else None


def _fits(module: nn.Module, *maps: Tensor) -> bool:
    """Does it run on maps of these shapes, and give one of a bearable size?

    Of one event, torch's own gradient of a batch or instance norm is wrong where a later layer has channels last with
    a first stride of its own.
    """
    if len(maps[0]) == 1 and any(map(_misleads_torch, module.modules())):
        return False
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y = module(*[one.clone() for one in maps])
    except (RuntimeError, ValueError, IndexError):
        return False
    if not isinstance(y, Tensor) or y.ndim != 4 or not y.is_floating_point() or 0 in y.shape:
        return False
    small = y.shape[1] <= _MOST_CHANNELS and y.shape[2] * y.shape[3] <= _MOST_PIXELS
    return small and y.shape[0] == maps[0].shape[0] and bool(y.isfinite().all()) and float(y.abs().max()) < 1e3


def _misleads_torch(module: nn.Module) -> bool:
    tokens = isinstance(module, Call) and module.function in (attention_over_pixels, global_context)
    return tokens or isinstance(module, nn.InstanceNorm2d)


def _graph(rng: Random, x: Tensor, steps: int) -> Graph:
    graph, maps = Graph(), [x]
    while len(graph.steps) < steps:
        reads = _reads(rng, maps, 2 if rng.random() < 0.25 and len(maps) > 1 else 1)
        given = [maps[at] for at in reads]
        module = _again(rng, graph, len(reads)) or _module(rng, given)
        module = module.double()
        if _fits(module, *given):
            with torch.no_grad():
                maps.append(module(*[one.clone() for one in given]))
            graph.steps.append(module)
            graph.reads.append(reads)
    return graph


def _reads(rng: Random, maps: Sequence[Tensor], count: int) -> tuple[int, ...]:
    """Mostly the last map, and another."""
    last = len(maps) - 1 if rng.random() < 0.8 else rng.randrange(len(maps))
    return (last,) if count == 1 else (last, rng.randrange(len(maps)))


def _again(rng: Random, graph: Graph, count: int) -> nn.Module | None:
    known = [step for step, reads in zip(graph.steps, graph.reads, strict=True) if len(reads) == count]
    return rng.choice(known) if known and rng.random() < 0.12 else None


def _module(rng: Random, given: Sequence[Tensor]) -> nn.Module:
    if len(given) == 2:
        return Call(_one_of(rng, JOINS))
    if rng.random() < 0.3:
        return Call(_one_of(rng, ONE_MAP))
    return _one_of(rng, LAYERS)(rng, given[0].shape[1])


def _one_of(rng: Random, weighted: Sequence[tuple[int, Made]]) -> Made:
    weights, values = zip(*weighted, strict=True)
    return rng.choices(values, weights)[0]


def _head(rng: Random, channels: int) -> nn.Module:
    kind = rng.choice(["mean"] * 5 + ["max"] * 3 + ["map"] * 3 + ["sum"] * 2 + ["attention"])
    if kind == "map":
        return nn.Conv2d(channels, 2, 1)
    scores = nn.Linear(channels, 3)
    if kind == "max":
        return nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(1), scores)
    if kind == "sum":
        return nn.Sequential(Call(_total), scores)
    if kind == "attention":
        return nn.Sequential(Call(attention_over_pixels), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), scores)
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), scores)


def _total(x: Tensor) -> Tensor:
    return x.sum((2, 3)) / 100
