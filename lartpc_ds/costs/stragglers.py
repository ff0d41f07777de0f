"""A step takes as long as its slowest rank, and all ranks read from one file system.

The slowest of N ranks is an expected largest value, for which two laws are here. If every step of every rank scatters a
little, times are normal and the slowest grows as the root of ln N. If a rank is on time but for rare delays (a stalled
read, the noise of a system: Petrini et al., SC 2003), nearly nothing is seen while N times their share is small, and
the logarithm of it once there is one in every step. A file system's rate does not grow with N, so reading grows as N.
The planner has the rare delays, because they describe public rates best (`lartpc-ds bench cosmictagger`). Rejected: one
percentage per doubling, which has no rank to measure it on.
"""

import math
from statistics import NormalDist

import numpy as np

from lartpc_ds.costs.hardware import Hardware

__all__ = ["expected_delay_seconds", "late_share", "shared_read_seconds", "slowest_delay_seconds", "slowest_of_normals"]

_REACH, _SPACING = 10.0, 0.01
"""Where the integral ends, in standard deviations, and the distance of its points; more of either changes no digit."""


def slowest_of_normals(ranks: int) -> float:
    """The mean of the largest of `ranks` standard normal values: what is expected above the mean, in deviations.

    It is the integral of x N phi(x) Phi(x)^(N - 1) over x (David and Nagaraja, Order Statistics, 3rd ed., 2003, 3.1).
    """
    x = np.arange(-_REACH, _REACH, _SPACING)
    normal = NormalDist()
    below = np.array([normal.cdf(one) for one in x])
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return float(np.sum(x * ranks * density * below ** (ranks - 1)) * _SPACING)


def late_share(delays_per_second: float, seconds: float) -> float:
    """The probability that a rank is delayed in so many seconds, if delays are independent (a Poisson process)."""
    return -math.expm1(-delays_per_second * seconds)


def slowest_delay_seconds(ranks: int, share: float, delay_seconds: float) -> float:
    """The mean of the largest delay of `ranks` ranks in a step.

    Of all ranks a `share` is late at random, each by an exponential time of mean `delay_seconds`. Were K of them late,
    the largest would be the harmonic number of K times that mean (Renyi, Acta Math. Hung. 4, 191, 1953). The mean over
    a binomial K is the sum of (1 - (1 - share)^k) / k over k from 1 to `ranks`.
    """
    k = np.arange(1, ranks + 1)
    return delay_seconds * float(np.sum((1 - (1 - share) ** k) / k))


def expected_delay_seconds(hardware: Hardware, ranks: int, busy_seconds: float) -> float:
    """How long a step of so many ranks, each of which computes for `busy_seconds`, waits for a rank that is delayed."""
    share = late_share(hardware.delays_per_second, busy_seconds)
    return slowest_delay_seconds(ranks, share, hardware.delay_seconds)


def shared_read_seconds(ranks: int, bytes_per_rank: float, bytes_per_second: float) -> float:
    """How long it takes until each of `ranks` ranks has read its bytes of a step from one file system.

    A step without prefetching takes so much longer. With prefetching it takes the longer of this and the computation.
    """
    return ranks * bytes_per_rank / bytes_per_second
