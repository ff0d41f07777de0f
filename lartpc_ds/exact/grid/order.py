"""Every rank must send the same messages and complete the same weight gradients in the same order.

DeepSpeed reduces a weight's gradient inside the backward pass, as soon as it is complete, and a halo's gradient is sent
home in the same pass. If one rank reduces first and its neighbour sends first, each waits for the other for ever.
Autograd sets the order: nodes run from the one made last to the one made first, but a weight's gradient is accumulated
at once, when the node that used the weight first has run. So every rank must make the same nodes that send messages, in
the same order beside the nodes that use weights, whether its own tile has something to send or not. The steps of one
node (a convolution with its halo) cannot change their order.

`backward_order` reads the order off a graph that was made on meta tensors, and the plan of a model compares it between
ranks. Rejected: running the backward pass on meta tensors, which takes as long as all other planning, and fails for
functions behind a gather whose backward has no form without data.
"""

import torch
from torch import Tensor
from torch.autograd.graph import Node

__all__ = ["Messenger", "backward_order"]

_MESSAGE = "a message between tiles"


class Messenger(torch.autograd.Function):
    """An autograd function whose backward sends messages; every rank must apply it, whatever its tile needs."""


def backward_order(results: list[Tensor], names: dict[Tensor, str]) -> list[str]:
    """Return the messages and the names of completed weights, in the order of a backward pass from `results`.

    `names` holds the names of the weights. Weights that are complete at the same time come in the order of their names.
    """
    events: list[tuple[int, int, str]] = []
    last_use: dict[str, int] = {}
    for node in _nodes(results):
        number = node._sequence_nr()
        if issubclass(getattr(node, "_forward_cls", object), Messenger):
            events.append((-number, 0, _MESSAGE))
        for follower, _ in node.next_functions:
            name = names.get(getattr(follower, "variable", None))  # type: ignore[arg-type]
            if name is not None:
                last_use[name] = min(number, last_use.get(name, number))
    events += [(-number, 1, name) for name, number in last_use.items()]
    return [event for _, _, event in sorted(events)]


def _nodes(results: list[Tensor]) -> set[Node]:
    """Return the nodes of the graph that made some tensors."""
    nodes: set[Node] = set()
    waiting = [result.grad_fn for result in results if result.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node not in nodes:
            nodes.add(node)
            waiting += [follower for follower, _ in node.next_functions if follower is not None]
    return nodes
