"""TPU slices by name: what libtpu, Google Cloud and GKE call one, and how many chips and hosts it has.

Two names are read: libtpu's topology (`v6e:16x16`, `v5p:8x8x4`) and Google's accelerator type (`v6e-256`,
`v5litepod-256`, `v5p-512`). The number of an accelerator type counts chips for v5e and v6e, but TensorCores for v5p,
which has two a chip: `v5p-512` has 256 chips.

Sources: cloud.google.com/tpu/docs/{v5e,v5p,v6e} (supported configurations) and
cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus (machine types and node labels).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBES = (
    *((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (8, 4, 4), (8, 8, 4), (8, 8, 8)),
    *((16, 8, 8), (16, 16, 8), (16, 16, 16), (24, 16, 16)),
)
_LARGEST_CUBE = (24, 16, 16)


@dataclasses.dataclass(frozen=True)
class _Generation:
    """What differs between generations.

    Attributes:
        shapes: chips by direction of the slices that an accelerator type names, smallest first.
        cores_per_chip: TensorCores.
        prefix: of accelerator types; the number after it counts TensorCores.
        gke_accelerator: value of the node label cloud.google.com/gke-tpu-accelerator.
        machine: of GKE's machine types, the number of chips in place of {}.
    """

    shapes: Sequence[tuple[int, ...]]
    cores_per_chip: int
    prefix: str
    gke_accelerator: str
    machine: str


_GENERATIONS: Mapping[str, _Generation] = {
    "v5e": _Generation(_FLAT, 1, "v5litepod", "tpu-v5-lite-podslice", "ct5lp-hightpu-{}t"),
    "v5p": _Generation(_CUBES, 2, "v5p", "tpu-v5p-slice", "ct5p-hightpu-{}t"),
    "v6e": _Generation(_FLAT, 1, "v6e", "tpu-v6e-slice", "ct6e-standard-{}t"),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """One TPU slice.

    Attributes:
        generation: "v5e", "v5p" or "v6e".
        shape: chips by direction, as libtpu has them: two for v5e and v6e, three for v5p.
    """

    generation: str
    shape: tuple[int, ...]

    def __post_init__(self):
        if self.generation not in _GENERATIONS:
            raise ValueError(f"there is no TPU {self.generation!r} here; use one of {', '.join(_GENERATIONS)}")
        if not _possible(self.generation, self.shape):
            raise ValueError(f"a {self.generation} slice cannot be {_join(self.shape)}; {_choices(self.generation)}")

    @property
    def chips(self) -> int:
        """Chips of the slice, each one device of JAX (the two cores of a v5p chip work as one)."""
        return math.prod(self.shape)

    @property
    def cores(self) -> int:
        """TensorCores of the slice."""
        return self.chips * _GENERATIONS[self.generation].cores_per_chip

    @property
    def chips_per_host(self) -> int:
        """Chips that one virtual machine holds: all of a v5e or v6e slice of up to 8, else 4."""
        return self.chips if self.chips <= (4 if self.generation == "v5p" else 8) else 4

    @property
    def hosts(self) -> int:
        """Virtual machines of the slice, each one process."""
        return self.chips // self.chips_per_host

    @property
    def name(self) -> str:
        """The name that libtpu has, as in "v5p:8x8x4"."""
        return f"{self.generation}:{_join(self.shape)}"

    @property
    def accelerator_type(self) -> str:
        """The name that Google Cloud has, as in "v5p-512"; other shapes of as many chips share it."""
        return f"{_GENERATIONS[self.generation].prefix}-{self.cores}"

    @property
    def gke_topology(self) -> str:
        """The node label cloud.google.com/gke-tpu-topology, as in "4x8x8": GKE wants lengths that do not fall."""
        # The one exception of GKE's table is one host of v5p.
        return "2x2x1" if self.shape == (2, 2, 1) else _join(sorted(self.shape))

    @property
    def gke_accelerator(self) -> str:
        """The node label cloud.google.com/gke-tpu-accelerator, as in "tpu-v5p-slice"."""
        return _GENERATIONS[self.generation].gke_accelerator

    @property
    def machine_type(self) -> str:
        """The machine type of GKE's node pools, as in "ct5p-hightpu-4t"."""
        return _GENERATIONS[self.generation].machine.format(self.chips_per_host)


def parse(text: str) -> Topology:
    """Returns the slice that a name stands for.

    Args:
        text: libtpu's name ("v6e:16x16") or Google's accelerator type ("v6e-256", "v5p-512").

    Raises:
        ValueError: there is no such slice; the message lists those that there are.
    """
    topology = re.fullmatch(r"(v\d+[a-z]+):(\d+(?:x\d+)*)", text)
    if topology and topology[1] in _GENERATIONS:
        return Topology(topology[1], tuple(int(length) for length in topology[2].split("x")))
    kind = re.fullmatch(r"(v\d+[a-z]+)-(\d+)", text)
    for name, generation in _GENERATIONS.items():
        if kind and kind[1] in (name, generation.prefix):
            return _by_cores(name, int(kind[2]), text)
    generations = ", ".join(f"{name}:{_join(one.shapes[-1])}" for name, one in _GENERATIONS.items())
    types = ", ".join(_types(name)[-1] for name in _GENERATIONS)
    raise ValueError(
        f"{text!r} is no TPU slice known here; give a topology such as {generations}, or a type such as {types}"
    )


def asked(plan: Mapping[str, Any], name: str | None, num_slices: int | None) -> tuple[Topology, int]:
    """Returns the slice and the number of slices that flags ask for, or else the section `plan` of a config.

    Args:
        plan: the section, empty where the config has none.
        name: what --topology gives.
        num_slices: what --num_slices gives.

    Raises:
        ValueError: neither names a slice, or there is no such slice, or less than one of it.
    """
    name = name or plan.get("topology")
    if not name:
        raise ValueError(
            "--topology is missing, and the config has no plan.topology; give one, as in v5p:4x4x4 or v6e-256"
        )
    count = plan.get("num_slices", 1) if num_slices is None else num_slices
    if count < 1:
        raise ValueError(f"--num_slices={count}: use 1 or more")
    return parse(name), count


def _by_cores(generation: str, cores: int, text: str) -> Topology:
    per_chip = _GENERATIONS[generation].cores_per_chip
    for shape in _GENERATIONS[generation].shapes:
        if math.prod(shape) * per_chip == cores:
            return Topology(generation, shape)
    counted = "; the number counts TensorCores, two a chip" if per_chip == 2 else ""
    others = f"; name others by their shape, as in {generation}:12x8x8" if generation == "v5p" else ""
    raise ValueError(f"there is no TPU slice {text!r}; use one of {', '.join(_types(generation))}{counted}{others}")


def _possible(generation: str, shape: tuple[int, ...]) -> bool:
    if shape in _GENERATIONS[generation].shapes:
        return True
    if generation != "v5p" or len(shape) != 3:
        return False
    whole = all(length > 0 and length % 4 == 0 for length in shape)
    return whole and all(a <= b for a, b in zip(sorted(shape), sorted(_LARGEST_CUBE), strict=True))


def _choices(generation: str) -> str:
    shapes = ", ".join(map(_join, _GENERATIONS[generation].shapes))
    more = f", or other multiples of 4 up to {_join(_LARGEST_CUBE)}" if generation == "v5p" else ""
    return f"use one of {shapes}{more}"


def _types(generation: str) -> list[str]:
    found = _GENERATIONS[generation]
    return [f"{found.prefix}-{math.prod(shape) * found.cores_per_chip}" for shape in found.shapes]


def _join(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
