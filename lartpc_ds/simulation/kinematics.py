"""Directions, boosts and decays to two and three bodies, in MeV."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["across", "boost", "in_cone", "isotropic", "phase_space", "turned", "two_body_momentum", "unit"]

Array = NDArray[np.float64]


def unit(vectors: Array) -> Array:
    """The vectors (..., 3), scaled to length one."""
    scaled: Array = vectors / np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True))
    return scaled


def isotropic(count: int, rng: np.random.Generator) -> Array:
    """Unit vectors (count, 3) in all directions alike."""
    return unit(rng.standard_normal((count, 3)))


def in_cone(axis: Array, angle_deg: float, rng: np.random.Generator) -> Array:
    """A unit vector (3,) at most `angle_deg` from `axis` (3,), uniform in solid angle."""
    if angle_deg == 180.0:
        everywhere: Array = isotropic(1, rng)[0]
        return everywhere  # by the draws that all earlier files were made with
    cosine = rng.uniform(np.cos(np.radians(angle_deg)), 1.0, 1)
    inside: Array = turned(axis[None], cosine, rng)[0]
    return inside


def across(directions: Array) -> tuple[Array, Array]:
    """Two unit vectors (N, 3) at right angles to `directions` (N, 3) and to each other."""
    x, y, z = directions.T
    # Duff et al., J. Comput. Graph. Tech. 6 (2017): a frame without a branch or a root
    sign = np.where(z >= 0, 1.0, -1.0)
    a = -1 / (sign + z)
    b = x * y * a
    return (
        np.stack([1 + sign * x * x * a, sign * b, -sign * x], axis=1),
        np.stack([b, sign + y * y * a, -y], axis=1),
    )


def turned(directions: Array, cosines: Array, rng: np.random.Generator) -> Array:
    """The directions (N, 3), turned by the polar angles of `cosines` (N,) and by uniform azimuths."""
    first, second = across(directions)
    azimuth = rng.uniform(0, 2 * np.pi, len(cosines))
    sines = np.sqrt(np.maximum(1 - cosines**2, 0.0))
    return unit(
        directions * cosines[:, None]
        + first * (sines * np.cos(azimuth))[:, None]
        + second * (sines * np.sin(azimuth))[:, None]
    )


def two_body_momentum(mass: float, first: float, second: float) -> float:
    """The momentum of the two daughters of a mass at rest: PDG 49."""
    return float(np.sqrt((mass**2 - (first + second) ** 2) * (mass**2 - (first - second) ** 2)) / 2 / mass)


def boost(momenta: Array, masses: Array, direction: Array, gamma: float) -> Array:
    """Momenta (N, 3) of a parent's rest frame, as seen where the parent moves along `direction` with `gamma`."""
    beta_gamma = np.sqrt(max(gamma**2 - 1, 0.0))
    energies = np.sqrt((momenta**2).sum(axis=1) + masses**2)
    along = momenta @ direction
    boosted: Array = momenta + direction * ((gamma - 1) * along + beta_gamma * energies)[:, None]
    return boosted


def phase_space(mass: float, masses: Sequence[float], rng: np.random.Generator) -> Array:
    """The momenta (2 or 3, 3) of the daughters of a mass at rest, uniform in phase space (matrix element 1)."""
    if len(masses) == 2:
        momentum = isotropic(1, rng) * two_body_momentum(mass, *masses)
        return np.concatenate([momentum, -momentum])
    first, second, third = masses
    low, high = second + third, mass - first
    # the phase-space density at pair mass m is p(first) * p(pair); its factors are largest at the ends
    ceiling = two_body_momentum(mass, first, low) * two_body_momentum(high, second, third)
    while True:
        pair = rng.uniform(low, high)
        outer, inner = two_body_momentum(mass, first, pair), two_body_momentum(pair, second, third)
        if rng.random() * ceiling < outer * inner:
            break
    direction = isotropic(1, rng)
    inside = isotropic(1, rng) * inner
    gamma = float(np.hypot(outer, pair) / pair)
    pair_momenta = boost(np.concatenate([inside, -inside]), np.array([second, third]), -direction[0], gamma)
    return np.concatenate([direction * outer, pair_momenta])
