"""DeepSpeed's launcher of one machine, without torch and without the rest of DeepSpeed.

    python -m lartpc_ds.jobs.supervise.bare deepspeed.launcher.launch ...

It starts a process a rank and waits for them. Imported the usual way it brings all of DeepSpeed and torch with it,
seconds of CPU time before the first rank begins, for the four names that it takes from them; so these stand here
instead. The module is named as an argument, so that a list of processes shows what runs. Rejected: to start it by
`deepspeed.launcher.runner`, as the `deepspeed` command does: on one machine that does nothing else.
"""

import importlib
import importlib.util
import logging
import sys
from collections.abc import MutableMapping, Sequence
from types import ModuleType

__all__ = ["main"]

_VISIBLE = "CUDA_VISIBLE_DEVICES"  # DeepSpeed's name for the devices of CPU ranks, too


class _Accelerator:
    """What the launcher asks of `deepspeed.accelerator`."""

    def visible_devices_envs(self) -> list[str]:
        return [_VISIBLE]

    def set_visible_devices_envs(self, environment: MutableMapping[str, str], devices: Sequence[object]) -> None:
        environment[_VISIBLE] = ",".join(map(str, devices))


def main() -> None:
    """Run the module that the first argument names on the arguments after it."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="[%(asctime)s] [%(levelname)s] %(message)s")
    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None, "the package needs it"
    _stand_in("deepspeed", __path__=spec.submodule_search_locations)
    _stand_in("deepspeed.accelerator", get_accelerator=_Accelerator)
    _stand_in(
        "deepspeed.utils",
        logger=logging.getLogger("DeepSpeed"),
        set_log_level_from_string=lambda level: None,
        get_numactl_cmd=None,  # of --bind_cores_to_rank, which nothing here asks for
    )
    launcher = importlib.import_module(sys.argv.pop(1))
    launcher.main()


def _stand_in(name: str, **attributes: object) -> None:
    module = ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module


if __name__ == "__main__":
    main()
