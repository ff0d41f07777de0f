"""`python -m tests.random_networks --cases 2000`: random networks against plain torch, and what came of each."""

import argparse
import signal
import sys
import time
import warnings
from collections import Counter

import torch

from tests.random_networks.networks import draw
from tests.random_networks.trial import Outcome, trial

_SECONDS = 300
"""After which a case is stuck."""


def main() -> int:
    """Print a table of outcomes by grid, and every case that is neither exact nor refused."""
    parser = argparse.ArgumentParser(prog="python -m tests.random_networks", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first case, to share a seed among processes"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="run one case and print its network")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _too_long)
    if asked.only is not None:
        case = draw(f"{asked.seed}/{asked.only}")
        print(case.network, case.told, trial(case), sep="\n")
        return 0
    counts: Counter[tuple[str, str]] = Counter()
    failed, started = 0, time.monotonic()
    for number in range(asked.first, asked.first + asked.cases):
        case = draw(f"{asked.seed}/{number}")
        signal.alarm(_SECONDS)
        try:
            outcome = trial(case)
        except TimeoutError:
            outcome = Outcome("stuck", f"longer than {_SECONDS} s")
        signal.alarm(0)
        counts[f"{case.layout.rows} x {case.layout.cols}", outcome.kind] += 1
        if not outcome.right:
            failed += 1
            print(f"case {number}: {outcome.kind}: {outcome.told}; {case.told}", flush=True)
    _table(counts, time.monotonic() - started)
    return 1 if failed else 0


def _too_long(*_: object) -> None:
    raise TimeoutError


def _table(counts: Counter[tuple[str, str]], seconds: float) -> None:
    grids, kinds = sorted({grid for grid, _ in counts}), sorted({kind for _, kind in counts})
    print("grid".ljust(8), *(kind.rjust(16) for kind in kinds))
    for grid in grids:
        print(grid.ljust(8), *(str(counts[grid, kind]).rjust(16) for kind in kinds))
    totals = [sum(counts[grid, kind] for grid in grids) for kind in kinds]
    print("all".ljust(8), *(str(total).rjust(16) for total in totals), f"   in {seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
