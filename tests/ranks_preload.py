"""What the fork server of `tests.ranks` has done before it forks the first rank, so that no rank has to do it again.

It imports what most ranks import. Nothing here may start a thread, because threads do not survive a fork.
"""

import gc
from importlib import import_module

__all__: list[str] = []

_MODULES = (
    "deepspeed.ops.triton_ops",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "lartpc_ds.config.recipes",
    "lartpc_ds.training.session",
    "pytest",
    "torch._dynamo",
)

for name in _MODULES:
    import_module(name)
gc.collect()
gc.freeze()  # the garbage collector of a rank need not look through all of the above, nor copy its pages
