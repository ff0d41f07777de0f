"""Wire-plane geometry and readout of the detectors we know, as plain numbers.

There is one frozen record per detector. It holds what the simulation, the readers and the displays need to go between a
point in the liquid and a (wire, tick) pixel. A wire plane is one linear map, because straight parallel wires need no
more. Rejected: tables of wire end points, which would be exact for wires cut short at the frame; nothing here needs
that. Each figure names its source; a figure without a source that we could read says "approximate".
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import cos, radians, sin
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.errors import UserError

__all__ = ["DETECTORS", "Detector", "WirePlane", "detector"]


@dataclass(frozen=True, slots=True)
class WirePlane:
    """Parallel wires at `angle_deg` from the vertical (y); the point y = z = 0 has the wire coordinate `offset`."""

    name: str
    wires: int
    pitch_cm: float
    angle_deg: float
    offset: float
    noise_electrons: float

    def wire_coordinate(self, y_cm: NDArray[np.float64], z_cm: NDArray[np.float64]) -> NDArray[np.float64]:
        """The position across the wires in units of the pitch; the nearest integer is the wire."""
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
    def corners_cm(self) -> NDArray[np.float64]:
        """The low and the high corner of the active volume: (2, 3), each as x, y and z."""
        return np.array([self.x_cm, self.y_cm, self.z_cm]).T

    @property
    def image_shape(self) -> tuple[int, int]:
        """The (image_wires, ticks) of a dense plane."""
        return self.image_wires, self.ticks

    def tick(self, x_cm: NDArray[np.float64], time_us: NDArray[np.float64]) -> NDArray[np.float64]:
        """The stored tick at which charge that is freed at `x_cm`, `time_us` after the trigger, reaches the anode."""
        drift_us = (x_cm - self.x_cm[0]) / self.drift_velocity_cm_per_us
        return self.trigger_tick - self.first_tick + (drift_us + time_us) / self.tick_us


_MICROBOONE = Detector(
    name="microboone",
    planes=(
        WirePlane("U", 2400, 0.3, 60.0, 338.13, 260.0),
        WirePlane("V", 2400, 0.3, -60.0, 332.53, 260.0),
        WirePlane("Y", 3456, 0.3, 0.0, -0.25 / 0.3, 208.0),
    ),
    ticks=6048,
    tick_us=0.5,
    first_tick=2400,
    trigger_tick=3200,
    drift_velocity_cm_per_us=0.1098,
    field_kv_per_cm=0.273,
    electron_lifetime_ms=8.0,
    longitudinal_diffusion_cm2_per_s=3.74,
    transverse_diffusion_cm2_per_s=12.0,
    x_cm=(0.0, 256.0),
    y_cm=(-115.5, 117.5),
    z_cm=(0.0, 1037.0),
    image_wires=3456,
    pulse_sigma_us=1.4,
    electrons_per_unit=200.0,
    threshold=5.0,
)
"""MicroBooNE: JINST 12 P02017 (2017) and the LArSoft service configuration of uboonecode.

The offsets reproduce an event published with the OpenSamples: y -8.86, z 2.26 cm lies on wires 367, 311, 7. The noise
is a simulated rms of 1.79 (U, V) and 1.43 ADC (Y), at 0.00689 ADC per electron. Longitudinal diffusion: JINST 16 P09025
(arXiv:2104.06551). Two figures are approximate: the transverse diffusion (Wire-Cell's value) and the pulse width (2.5
to 3.5 ticks).
"""

_ARGONEUT = Detector(
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
"""ArgoNeuT: JINST 7 P10019 (arXiv:1205.6747). LArSoft's defaults have the same 2048 samples and lifetime of 750 us.

The wires stand at 60 degrees to the beam (z), so at 30 degrees to the vertical. Approximate, because the paper's text
was not at hand: extents, field, tick and drift velocity. Chosen by us: trigger tick, offsets (the wires are centred on
the volume), pulse width, gain and noise (a minimum-ionizing pulse of 10 to 15 units over a noise of 1, as in
MicroBooNE), and diffusion (Wire-Cell's values for 0.5 kV/cm).
"""

_SBND = Detector(
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
"""One of SBND's two drift volumes: arXiv:1503.01520 (proposal), arXiv:2002.08424 (wire planes), LArSoft's sbndcode.

The 3400 ticks hold the drift (2600) and 400 ticks before and after it; field and lifetime are sbndcode's. Approximate:
the second volume is absent and ticks are not rebinned (CosmicTagger's 2048 x 1280 images have both), the wires per
plane, the offsets (the wires are centred), extents, drift velocity, pulse width, gain and noise.
"""

DETECTORS: Mapping[str, Detector] = MappingProxyType(
    {
        "microboone": _MICROBOONE,
        "microboone_raw": replace(_MICROBOONE, name="microboone_raw", ticks=9600, first_tick=0, image_wires=3600),
        "argoneut": _ARGONEUT,
        "sbnd": _SBND,
    }
)
"""All detectors by name; `microboone_raw` is the whole readout of MicroBooNE, not only the stored window."""


def detector(name: str) -> Detector:
    """The detector called `name`.

    Raises:
        UserError: there is no such detector; the message lists those that are known.
    """
    if name not in DETECTORS:
        raise UserError(f"detector = {name!r} is not known: choose one of {', '.join(DETECTORS)}")
    return DETECTORS[name]
