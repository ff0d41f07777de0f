"""DeepSpeed's launcher of one machine, without torch and without the rest of DeepSpeed.

    python -m lartpc_ds.jobs.supervise.bare deepspeed.launcher.launch ...

The launcher starts one process per rank and waits for them. Imported in the usual way it imports all of DeepSpeed and
torch, which costs seconds of CPU time before the first rank begins, for the four names that it uses; so substitutes of
these four stand here. The module is named as an argument, so that a list of processes shows what runs. Rejected:
starting it through `deepspeed.launcher.runner`, as the `deepspeed` command does, which on one machine does nothing
else.
"""

import importlib
import importlib.util
import logging
import sys
from collections.abc import MutableMapping, Sequence
from types import ModuleType

__all__ = ["main"]

_VISIBLE = "CUDA_VISIBLE_DEVICES"  # DeepSpeed uses this variable for CPU ranks, too


class _Accelerator:
    """The part of `deepspeed.accelerator` that the launcher uses."""

    def visible_devices_envs(self) -> list[str]:
        return [_VISIBLE]

    def set_visible_devices_envs(self, environment: MutableMapping[str, str], devices: Sequence[object]) -> None:
        environment[_VISIBLE] = ",".join(map(str, devices))


def main() -> None:
    """Run the module that the first argument names, with the arguments after it."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="[%(asctime)s] [%(levelname)s] %(message)s")
    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None, "DeepSpeed is a dependency of the package"
    _stand_in("deepspeed", __path__=spec.submodule_search_locations)
    _stand_in("deepspeed.accelerator", get_accelerator=_Accelerator)
    _stand_in(
        "deepspeed.utils",
        logger=logging.getLogger("DeepSpeed"),
        set_log_level_from_string=lambda level: None,
        get_numactl_cmd=None,  # for --bind_cores_to_rank, which is never used here
    )
    launcher = importlib.import_module(sys.argv.pop(1))
    launcher.main()


def _stand_in(name: str, **attributes: object) -> None:
    module = ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module


if __name__ == "__main__":
    main()
