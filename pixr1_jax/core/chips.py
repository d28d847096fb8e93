"""The few facts about an accelerator that turn operations, cycles and bytes into time."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU generation, its figures for a whole chip.

    Attributes:
      topology: The smallest topology that libtpu knows by name.
      peak: bf16 operations per second.
      clock: Cycles per second. Not published for every generation: taken as the peak over what its matrix units do in
        a cycle, which is how the compiler's estimates of large products come out just below the peak.
      bandwidth: HBM bytes per second.
      cores: TensorCores. A program has all of them: the parallel dimensions of a kernel's grid, also the one that
        `vmap` adds, are shared out, and the compiler's estimate is one core's share.
      device_kinds: How JAX names such a device.
      hbm: Bytes of HBM. A program gets somewhat less; the compiler knows how much.
      ici: Bytes per second that a chip sends to its neighbours in a slice, all its links together (half of the
        bidirectional figure).
      dcn: Bytes per second that a chip's share of the network between slices carries.
    """

    topology: str
    peak: float
    clock: float
    bandwidth: float
    cores: int
    device_kinds: tuple[str, ...]
    hbm: int
    ici: float
    dcn: float

    @property
    def flops_per_cycle(self) -> float:
        """Peak bf16 operations in a cycle."""
        return self.peak / self.clock


# Figures: docs.cloud.google.com/tpu/docs, the pages v5e, v5p and v6e.
CHIPS: Mapping[str, Chip] = {
    "v5e": Chip("v5e:2x2", 197e12, 1.50e9, 819e9, 1, ("TPU v5 lite", "TPU v5e"), 16 << 30, 200e9, 6.4e12 / 8 / 256),
    "v5p": Chip("v5p:2x2x1", 459e12, 1.75e9, 2765e9, 2, ("TPU v5", "TPU v5p"), 95 << 30, 600e9, 50e9 / 8),
    "v6e": Chip("v6e:2x2", 918e12, 1.75e9, 1640e9, 1, ("TPU v6 lite", "TPU v6e"), 32 << 30, 400e9, 25.6e12 / 8 / 256),
}

# Dense bf16 operations per second of GPUs, by the name that JAX gives them. NVIDIA's data sheets of H100 SXM and H200
# name twice as much, which holds for sparse matrices.
_GPU_PEAKS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}


def peak_flops(device_kind: str) -> float | None:
    """The bf16 operations per second that a device can do at most.

    Args:
      device_kind: How JAX names the device, `jax.Device.device_kind`.

    Returns:
      The peak of dense matrix products, or None where it is not known, as of any CPU.
    """
    peaks = {kind: chip.peak for chip in CHIPS.values() for kind in chip.device_kinds} | _GPU_PEAKS
    return peaks.get(device_kind)
