"""A network's weights as one file that plain torch opens: `model.pt`, which holds a state dict."""

import pickle
from pathlib import Path

import torch
from torch import nn

from lartpc_ds.errors import UserError

__all__ = ["check_weights", "load_weights"]


def check_weights(model: nn.Module, path: Path, source: str) -> dict[str, torch.Tensor]:
    """The content of a `model.pt`, if it fits `model` (which may be on the meta device).

    Raises:
        UserError: there is no such file, or it is not a state dict of this network; the message names the key `source`.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{source}: {path}: it cannot be read as a state dict of torch: {str(error)[:200]}") from None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f"{source}: {path}: the file must hold a state dict, which maps names to tensors")
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    differences = [name for name in {**wanted, **given} if wanted.get(name) != given.get(name)]
    if differences:
        name = differences[0]
        raise UserError(
            f"{source}: {path}: the file is of another network: {len(differences)} tensors differ, {name} first: it "
            f"has {given.get(name, 'none')}, the network {wanted.get(name, 'none')}; set model.* as that run did"
        )
    return weights


def load_weights(model: nn.Module, path: Path, source: str) -> None:
    """Fill `model` from a `model.pt`; raises what `check_weights` raises."""
    model.load_state_dict(check_weights(model, path, source))
