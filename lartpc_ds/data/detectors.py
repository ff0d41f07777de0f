"""Wire-plane geometry and readout of the detectors we know, as plain numbers.

One frozen record a detector: what the simulation, the readers and the displays need to go between a point in the liquid
and a (wire, tick) pixel. A wire plane is one linear map, because straight parallel wires need no more; tables of wire
end points would be exact for wires cut short at the frame, and nothing here asks for that. Each figure names its
source; one without a source we could read says "approximate".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, radians, sin
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.errors import UserError

__all__ = ["DETECTORS", "Detector", "WirePlane", "detector"]


@dataclass(frozen=True, slots=True)
class WirePlane:
    """Parallel wires, `angle_deg` from the vertical (y); the point y = z = 0 has wire coordinate `offset`."""

    name: str
    wires: int
    pitch_cm: float
    angle_deg: float
    offset: float
    noise_electrons: float

    def wire_coordinate(self, y_cm: NDArray[np.float64], z_cm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Position across the wires in units of the pitch; the nearest integer is the wire."""
        angle = radians(self.angle_deg)
        return (z_cm * cos(angle) - y_cm * sin(angle)) / self.pitch_cm + self.offset


@dataclass(frozen=True, slots=True)
class Detector:
    """One drift volume and its readout; the anode is at the low end of `x_cm` and electrons drift towards it.

    `first_tick` is the readout's tick that is stored as tick 0, `trigger_tick` the readout's tick of the interaction.
    `image_wires` is the width that all planes are padded to in a dense image.
    """

    name: str
    planes: tuple[WirePlane, ...]
    ticks: int
    tick_us: float
    first_tick: int
    trigger_tick: int
    drift_velocity_cm_per_us: float
    field_kv_per_cm: float
    electron_lifetime_ms: float
    longitudinal_diffusion_cm2_per_s: float
    transverse_diffusion_cm2_per_s: float
    x_cm: tuple[float, float]
    y_cm: tuple[float, float]
    z_cm: tuple[float, float]
    image_wires: int
    pulse_sigma_us: float
    electrons_per_unit: float
    threshold: float

    @property
    def drift_cm(self) -> float:
        """Longest drift."""
        return self.x_cm[1] - self.x_cm[0]

    @property
    def image_shape(self) -> tuple[int, int]:
        """(image_wires, ticks) of a dense plane."""
        return self.image_wires, self.ticks

    def tick(self, x_cm: NDArray[np.float64], time_us: NDArray[np.float64]) -> NDArray[np.float64]:
        """Stored tick at which charge freed at `x_cm`, `time_us` after the trigger, reaches the anode."""
        drift_us = (x_cm - self.x_cm[0]) / self.drift_velocity_cm_per_us
        return self.trigger_tick - self.first_tick + (drift_us + time_us) / self.tick_us


def _microboone(name: str, ticks: int, first_tick: int, image_wires: int) -> Detector:
    """MicroBooNE: JINST 12 P02017 (2017) and the LArSoft service configuration of uboonecode.

    The offsets reproduce an event published with the OpenSamples: y -8.86, z 2.26 cm lies on wires 367, 311, 7.
    Noise: simulated rms of 1.79 (U, V) and 1.43 ADC (Y), 0.00689 ADC an electron. Longitudinal diffusion: JINST 16
    P09025 (arXiv:2104.06551). Approximate: transverse diffusion (Wire-Cell's value), pulse width (2.5 to 3.5 ticks).
    """
    return Detector(
        name=name,
        planes=(
            WirePlane("U", 2400, 0.3, 60.0, 338.13, 260.0),
            WirePlane("V", 2400, 0.3, -60.0, 332.53, 260.0),
            WirePlane("Y", 3456, 0.3, 0.0, -0.25 / 0.3, 208.0),
        ),
        ticks=ticks,
        tick_us=0.5,
        first_tick=first_tick,
        trigger_tick=3200,
        drift_velocity_cm_per_us=0.1098,
        field_kv_per_cm=0.273,
        electron_lifetime_ms=8.0,
        longitudinal_diffusion_cm2_per_s=3.74,
        transverse_diffusion_cm2_per_s=12.0,
        x_cm=(0.0, 256.0),
        y_cm=(-115.5, 117.5),
        z_cm=(0.0, 1037.0),
        image_wires=image_wires,
        pulse_sigma_us=1.4,
        electrons_per_unit=200.0,
        threshold=5.0,
    )


def _argoneut() -> Detector:
    """ArgoNeuT: JINST 7 P10019 (arXiv:1205.6747); 2048 samples and 750 us lifetime also in LArSoft's defaults.

    Wires stand at 60 degrees to the beam (z), so 30 to the vertical. Approximate (the paper's text was not at hand):
    extents, field, tick and drift velocity; by choice: trigger tick, offsets (the wires centred on the volume), pulse
    width, gain and noise (a minimum-ionizing pulse of 10 to 15 units over a noise of 1, as in MicroBooNE), diffusion
    (Wire-Cell's values for 0.5 kV/cm).
    """
    return Detector(
        name="argoneut",
        planes=(
            WirePlane("induction", 240, 0.4, 30.0, 22.1, 130.0),
            WirePlane("collection", 240, 0.4, -30.0, 22.1, 104.0),
        ),
        ticks=2048,
        tick_us=0.198,
        first_tick=0,
        trigger_tick=250,
        drift_velocity_cm_per_us=0.159,
        field_kv_per_cm=0.481,
        electron_lifetime_ms=0.75,
        longitudinal_diffusion_cm2_per_s=7.2,
        transverse_diffusion_cm2_per_s=12.0,
        x_cm=(0.0, 47.5),
        y_cm=(-20.0, 20.0),
        z_cm=(0.0, 90.0),
        image_wires=240,
        pulse_sigma_us=1.0,
        electrons_per_unit=100.0,
        threshold=5.0,
    )


def _sbnd() -> Detector:
    """One of SBND's two drift volumes: arXiv:1503.01520 (proposal), arXiv:2002.08424 (wire planes), LArSoft's sbndcode.

    3400 ticks hold the drift (2600) and 400 before and after; field and lifetime are sbndcode's. Approximate: the
    second volume is absent and ticks are not rebinned (CosmicTagger's 2048 x 1280 images have both), wires a plane,
    offsets (the wires centred), extents, drift velocity, pulse width, gain, noise.
    """
    return Detector(
        name="sbnd",
        planes=(
            WirePlane("U", 1984, 0.3, 60.0, 574.8, 260.0),
            WirePlane("V", 1984, 0.3, -60.0, 574.8, 260.0),
            WirePlane("Y", 1664, 0.3, 0.0, -1.8, 208.0),
        ),
        ticks=3400,
        tick_us=0.5,
        first_tick=0,
        trigger_tick=400,
        drift_velocity_cm_per_us=0.1563,
        field_kv_per_cm=0.5,
        electron_lifetime_ms=10.0,
        longitudinal_diffusion_cm2_per_s=7.2,
        transverse_diffusion_cm2_per_s=12.0,
        x_cm=(0.0, 202.0),
        y_cm=(-200.0, 200.0),
        z_cm=(0.0, 500.0),
        image_wires=2048,
        pulse_sigma_us=1.4,
        electrons_per_unit=200.0,
        threshold=5.0,
    )


DETECTORS: Mapping[str, Detector] = MappingProxyType(
    {
        known.name: known
        for known in (
            _microboone("microboone", ticks=6048, first_tick=2400, image_wires=3456),
            _microboone("microboone_raw", ticks=9600, first_tick=0, image_wires=3600),
            _argoneut(),
            _sbnd(),
        )
    }
)


def detector(name: str) -> Detector:
    """The detector called `name`.

    Raises:
        UserError: no such detector; the message lists those known.
    """
    if name not in DETECTORS:
        raise UserError(f"detector = {name!r} is not known: choose one of {', '.join(DETECTORS)}")
    return DETECTORS[name]
