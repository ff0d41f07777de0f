"""One process per host, `python -m lartpc_ds.jobs.preflight.allreduce ...`: they sum a tensor for two seconds.

This is the last check before a job, and the only one that proves that ranks can communicate: it uses the address, the
interfaces and the backend of the job. The first element of the sum says when to stop, so that no rank can run one round
more than the others. Each process prints one JSON line.
"""

import argparse
import json
import os
import statistics
import sys
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist

__all__ = ["main"]

_START_SECONDS = 30  # the limit for torch, whose messages are better than ours
_GRACE_SECONDS = 3  # after this the process ends itself: gloo never stops trying to connect two hosts without a route
_SMALL, _LARGE = 2, 2**20  # elements: 8 bytes for the latency, 4 MiB for the bandwidth
_WARM_UP_ROUNDS = 3


def main() -> int:
    """Run one process; it prints {"error": ...} and returns exit code 1 if the group does not work."""
    parser = argparse.ArgumentParser(prog="lartpc_ds.jobs.preflight.allreduce")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--world", type=int, required=True)
    parser.add_argument("--master", required=True, metavar="ADDRESS:PORT")
    parser.add_argument("--interface", required=True)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, arguments.interface)  # a choice that the user has made for the ranks counts
    limit = threading.Timer(_START_SECONDS + arguments.seconds + _GRACE_SECONDS, _give_up)
    limit.daemon = True
    limit.start()
    try:
        print(json.dumps(_measure(arguments)), flush=True)
    except (RuntimeError, ValueError) as error:  # the errors of torch.distributed are RuntimeErrors
        print(json.dumps({"error": str(error).splitlines()[0]}), flush=True)
        return 1
    return 0


def _give_up() -> None:
    text = f"not all hosts reached each other within {_START_SECONDS} s"
    print(json.dumps({"error": text}), flush=True)
    os._exit(1)


def _measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Join the group, sum, and leave it.

    Returns:
        `latency_seconds` of the smallest sum, and the `bytes_per_second` that each host sends in a ring, which are
        2 (n - 1) / n of the tensor per sum (Thakur, Rabenseifner and Gropp, IJHPCA 19 (2005) 49).
    """
    dist.init_process_group(
        arguments.backend,
        init_method=f"tcp://{arguments.master}",
        rank=arguments.rank,
        world_size=arguments.world,
        timeout=timedelta(seconds=_START_SECONDS),
    )
    device = torch.device(arguments.device)
    small = _rounds(torch.zeros(_SMALL, device=device), arguments, arguments.seconds / 4)
    large = _rounds(torch.zeros(_LARGE, device=device), arguments, arguments.seconds * 3 / 4)
    dist.destroy_process_group()
    sent_bytes = 2 * (arguments.world - 1) / arguments.world * _LARGE * 4
    return {"latency_seconds": statistics.median(small), "bytes_per_second": sent_bytes / statistics.median(large)}


def _rounds(tensor: torch.Tensor, arguments: argparse.Namespace, seconds: float) -> list[float]:
    """The seconds of each sum; raises RuntimeError if one is wrong."""
    times: list[float] = []
    deadline = time.monotonic() + seconds
    while True:
        tensor.fill_(arguments.rank + 1)
        over = arguments.rank == 0 and time.monotonic() > deadline and len(times) > _WARM_UP_ROUNDS
        tensor[0] = float(over)
        started = time.perf_counter()
        dist.all_reduce(tensor)
        stop, total = tensor[0].item(), tensor[-1].item()  # on a GPU this waits for the sum
        times.append(time.perf_counter() - started)
        if total != arguments.world * (arguments.world + 1) / 2:
            raise RuntimeError(f"the sum over {arguments.world} hosts is {total}, which is wrong")
        if stop:
            return times[_WARM_UP_ROUNDS:]


if __name__ == "__main__":
    sys.exit(main())
