"""Plain single-device networks as flat sequences of blocks; parallelism is applied from outside, never here."""

from lartpc_ds.models.build import MODELS, blocks, build_model
from lartpc_ds.models.norms import NORMS

__all__ = ["MODELS", "NORMS", "blocks", "build_model"]
