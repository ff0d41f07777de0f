"""The pixels that one wire plane makes of clouds at the anode: deconvolved pulses, noise, zero suppression.

A MicroBooNE plane has 21 million pixels, of which a particle touches a few thousand. So charge is added up in short
blocks of ticks, which are made only where charge falls, and noise is drawn there. Elsewhere a pixel survives zero
suppression only if its noise alone is above the threshold. The number of those pixels is binomial, their places are
uniform, and their values are the tail of a Gaussian. So drawing only them gives exactly the distribution of noise on
every pixel.
"""

from math import erf, erfc, sqrt

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.detectors import Detector, WirePlane
from lartpc_ds.data.event import Plane
from lartpc_ds.simulation.drift import Clouds

__all__ = ["charge_blocks", "plane_pixels"]

Array = NDArray[np.float64]
Blocks = tuple[NDArray[np.int64], NDArray[np.int64], Array]

BLOCK_TICKS = 64
_REACH_SIGMAS = 3.5
_NORMAL_POINTS = np.linspace(-6, 6, 2401)
_NORMAL_CDF = np.array([0.5 * (1 + erf(x / sqrt(2))) for x in _NORMAL_POINTS])


def plane_pixels(clouds: Clouds, number: int, detector: Detector, rng: np.random.Generator) -> Plane:
    """The pixels that plane `number` records, sorted: those at or above the detector's threshold."""
    plane = detector.planes[number]
    noise = plane.noise_electrons / detector.electrons_per_unit
    wires, ticks, values = charge_blocks(clouds, plane, detector)
    values = values + noise * rng.standard_normal(values.shape)
    pixels = wires[:, None] * detector.ticks + ticks
    real = (ticks >= 0) & (ticks < detector.ticks)
    kept = real & (values >= detector.threshold)
    lone, lone_values = _noise_pixels(pixels[real], plane.wires * detector.ticks, noise, detector.threshold, rng)
    ids = np.concatenate([pixels[kept], lone])
    order = np.argsort(ids)
    charge = np.concatenate([values[kept], lone_values])[order].astype(np.float32)
    return Plane(number, (plane.wires, detector.ticks), ids[order], charge)


def charge_blocks(clouds: Clouds, plane: WirePlane, detector: Detector) -> Blocks:
    """The blocks that hold charge, without noise: their wires (B,), ticks (B, BLOCK_TICKS) and values.

    A cloud is a Gaussian across the wires (diffusion) and along the ticks (diffusion, and the pulse that deconvolution
    leaves). Blocks may reach beyond the readout window; charge there is lost.
    """
    reach = int(np.ceil(_REACH_SIGMAS * clouds.tick_sigma.max(initial=1.0)))
    seen = (clouds.tick > -reach) & (clouds.tick < detector.ticks + reach)
    centre = np.rint(clouds.tick[seen]).astype(np.int64)
    distance = (centre - clouds.tick[seen])[:, None] + np.arange(-reach, reach + 1)
    pulses = _pulse(distance, clouds.tick_sigma[seen, None])

    position = plane.wire_coordinate(clouds.y_cm[seen], clouds.z_cm[seen])
    wires, shares = _wire_shares(position, clouds.sigma_cm[seen] / plane.pitch_cm)
    on_plane = (wires >= 0) & (wires < plane.wires)
    cloud = np.nonzero(on_plane)[0]
    units = shares[on_plane] * clouds.electrons[seen][cloud] / detector.electrons_per_unit
    return _summed(wires[on_plane], centre[cloud] - reach, units[:, None] * pulses[cloud], plane.wires, detector.ticks)


def _summed(
    wire: NDArray[np.int64], first_tick: NDArray[np.int64], pulses: Array, num_wires: int, num_ticks: int
) -> Blocks:
    """The sums of `pulses` (K, width) that start at `first_tick` (K,) of `wire` (K,)."""
    width = pulses.shape[1]
    # room before and after the window, or pulses that reach beyond it would run into another wire
    margin = width
    per_wire = (num_ticks + 2 * margin) // BLOCK_TICKS + 2
    start = first_tick + margin
    block = wire * per_wire + start // BLOCK_TICKS
    used = np.zeros(num_wires * per_wire, bool)
    for follower in range((width + BLOCK_TICKS) // BLOCK_TICKS + 1):
        used[block + follower] = True
    ids = np.flatnonzero(used).astype(np.int64)
    # the used blocks keep their order, so a pulse that runs on into the next block finds it next to its own
    place = np.cumsum(used) - 1
    first = place[block] * BLOCK_TICKS + start % BLOCK_TICKS
    pixels = (first[:, None] + np.arange(width)).ravel()
    values = np.bincount(pixels, pulses.ravel(), len(ids) * BLOCK_TICKS).astype(np.float64, copy=False)
    ticks = (ids % per_wire * BLOCK_TICKS - margin)[:, None] + np.arange(BLOCK_TICKS, dtype=np.int64)
    return ids // per_wire, ticks, values.reshape(-1, BLOCK_TICKS)


def _pulse(distance: Array, sigma: Array) -> Array:
    """A Gaussian over whole ticks with sum one; sigma is above a tick, so its value at a tick's middle is enough."""
    pulse = np.exp(-0.5 * (distance / sigma) ** 2)
    normalised: Array = pulse / pulse.sum(axis=1, keepdims=True)
    return normalised


def _wire_shares(position: Array, sigma: Array) -> tuple[NDArray[np.int64], Array]:
    """The wires (M, 2n+1) around each cloud, and the share that each collects within half a pitch to either side."""
    reach = int(np.ceil(_REACH_SIGMAS * sigma.max(initial=0.0) + 0.5 - 1e-9)) if len(sigma) else 1
    nearest = np.rint(position).astype(np.int64)
    edges = np.arange(-reach, reach + 2) - 0.5
    normal = (nearest[:, None] + edges - position[:, None]) / np.maximum(sigma, 1e-3)[:, None]
    shares = np.diff(np.interp(normal, _NORMAL_POINTS, _NORMAL_CDF), axis=1)
    return nearest[:, None] + np.arange(-reach, reach + 1), shares


def _noise_pixels(
    taken: NDArray[np.int64], pixels: int, noise: float, threshold: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], Array]:
    """The pixels outside `taken` (sorted, unique) whose noise alone is above the threshold, and their values."""
    chance = 0.5 * erfc(threshold / noise / sqrt(2))
    count = int(rng.binomial(pixels - len(taken), chance))
    loud: NDArray[np.int64] = np.empty(0, np.int64)
    while len(loud) < count:
        drawn = rng.integers(0, pixels, count - len(loud))
        if len(taken):
            drawn = drawn[taken[np.minimum(np.searchsorted(taken, drawn), len(taken) - 1)] != drawn]
        loud = np.unique(np.concatenate([loud, drawn]))
    return loud, noise * _normal_tail(threshold / noise, count, rng)


def _normal_tail(least: float, count: int, rng: np.random.Generator) -> Array:
    """Standard normal numbers above `least`: Marsaglia's tail method, Technometrics 6, 101 (1964)."""
    accepted = np.empty(0)
    while len(accepted) < count:
        x = np.sqrt(least**2 - 2 * np.log1p(-rng.random(count)))
        accepted = np.concatenate([accepted, x[rng.random(count) * x < least]])
    return accepted[:count]
