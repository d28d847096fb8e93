"""What a device does in one call of a compiled program: its computations walked with their loops, and summed.

A stack of layers is a loop, so what stands once in the text happens many times. Trips are the constant that the loop's
condition compares with; a loop without one counts once and is reported.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from pixr1_jax.benchmarks import hlo
from pixr1_jax.benchmarks.hlo import Instruction

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_CALLS = re.compile(r"\b(?:calls|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|true_computation=(%?[\w.\-]+), false_computation=(%?[\w.\-]+)")
_CYCLES = re.compile(r'"estimated_cycles":\s*"?(\d+)')
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True)
class Work:
    """What a device does in one call.

    Attributes:
      collectives: By kind "count", "bytes" that the device sends within its slice, and "dcn_bytes" between slices.
      hbm: Bytes that operations read and write in HBM, a slice counted as itself and not as what it is cut from.
      cycles: The compiler's estimate for fused operations; kernels and collectives have none.
      kernels: Calls of Pallas kernels.
      unknown_loops: Loops whose trips are not in the text.
    """

    collectives: Mapping[str, Mapping[str, float]]
    hbm: float
    cycles: float
    kernels: float
    unknown_loops: int


def work(text: str, devices: int, slices: int = 1) -> Work:
    """Sums what a device does in one call of a program.

    Args:
      text: What `compiled.as_text()` gives.
      devices: Devices of the program.
      slices: Slices that they form, one after another.

    Raises:
      ValueError: The text has no entry computation.
    """
    walker = _Walker(text, devices, slices)
    walker.walk(walker.entry, 1.0)
    collectives = {kind: dict(counter) for kind, counter in sorted(walker.by_kind.items())}
    return Work(collectives, walker.hbm, walker.cycles, walker.kernels, walker.unknown_loops)


class _Walker:
    def __init__(self, text: str, devices: int, slices: int):
        self._computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        for is_entry, name, body in _COMPUTATION.findall(text):
            self._computations[name] = list(hlo.instructions(body))
            self.entry = name if is_entry else self.entry
        if not self.entry:
            raise ValueError("the compiled program's text has no entry computation")
        self._devices, self._slices = devices, slices
        self.by_kind: dict[str, dict[str, float]] = collections.defaultdict(lambda: collections.defaultdict(float))
        self.hbm = self.cycles = self.kernels = 0.0
        self.unknown_loops = 0

    def walk(self, name: str, times: float, fused: bool = False) -> None:
        """Adds a computation that runs so many times; in a fusion only its collectives count."""
        shapes: dict[str, str] = {}
        for one in self._computations.get(name, ()):
            shapes[one.name] = one.shape
            kind, inputs = one.opcode.removesuffix("-start"), [shapes.get(operand, "") for operand in one.operands]
            if kind in COLLECTIVES or kind == "send":
                self._collective(kind, one, inputs, times)
            elif one.opcode == "while":
                trips = self._trips(one.rest)
                self.unknown_loops += trips is None
                self.walk(_named(one.rest, "body"), times * (trips or 1))
            elif one.opcode == "conditional":
                self.walk(self._largest_branch(one.rest), times)
            elif one.opcode in ("call", "async-start"):
                for callee in _CALLS.findall(one.rest):
                    self.walk(callee, times, fused)
            elif one.opcode == "fusion":
                for callee in _CALLS.findall(one.rest):
                    self.walk(callee, times, True)
                    if not fused:
                        self.hbm += times * self._fusion_bytes(callee, one.shape, inputs)
                self._estimate(one, times, fused)
            elif not (fused or one.opcode in hlo.FREE or one.opcode.endswith(("-done", "-update"))):
                self.kernels += times * (f'custom_call_target="{hlo.PALLAS}"' in one.rest)
                self.hbm += times * _bytes(one, inputs)
                self._estimate(one, times, fused)

    def _estimate(self, one: Instruction, times: float, fused: bool) -> None:
        cycles = _CYCLES.search(one.rest)
        self.cycles += times * int(cycles[1]) if cycles and not fused else 0.0

    def _collective(self, kind: str, one: Instruction, inputs: Sequence[str], times: float) -> None:
        """Counts one, by what each device has to send at least."""
        counter = self.by_kind[kind]
        counter["count"] += times
        given = sum(map(hlo.array_bytes, inputs))
        if kind == "send":
            counter["dcn_bytes"] += times * given
            return
        groups = _groups(one.rest, self._devices)
        size = max(map(len, groups))
        apart = self._devices // self._slices
        crosses = any(len({device // apart for device in group}) > 1 for group in groups)
        share = (size - 1) / size
        sent = {
            "all-gather": given * (size - 1),
            "all-reduce": 2 * given * share,
            "collective-permute": given,
        }.get(kind, given * share)
        counter["dcn_bytes" if crosses else "bytes"] += times * sent

    def _trips(self, rest: str) -> int | None:
        known = re.search(r'known_trip_count":\s*\{"n":\s*"?(\d+)', rest)
        if known:
            return int(known[1])
        constants = {
            int(one.arguments)
            for one in self._computations.get(_named(rest, "condition"), ())
            if one.opcode == "constant" and one.shape.startswith(("s32[]", "u32[]")) and one.arguments.isdigit()
        }
        return constants.pop() if len(constants) == 1 else None

    def _largest_branch(self, rest: str) -> str:
        """One branch runs, and the text does not tell which: the one with the most instructions is taken."""
        found = _BRANCHES.search(rest)
        names = re.findall(r"[\w.\-]+", found[1] or f"{found[2]} {found[3]}") if found else [""]
        return max(names, key=lambda name: len(self._computations.get(name, ())))

    def _fusion_bytes(self, callee: str, shape: str, inputs: Sequence[str]) -> float:
        """HBM traffic of a fusion: slices of an operand count as themselves, so does what is put into one."""
        body = self._computations.get(callee, [])
        shapes = {one.name: one.shape for one in body}
        users: dict[str, list[Instruction]] = collections.defaultdict(list)
        for one in body:
            for operand in one.operands:
                users[operand].append(one)
        updates = [one for one in body if one.opcode == "dynamic-update-slice"]
        total = 0.0
        for one in body:
            if one.opcode != "parameter" or int(one.arguments) >= len(inputs):
                continue
            whole = hlo.hbm_bytes(inputs[int(one.arguments)])
            uses = _uses(one.name, users)
            if all(use.opcode in _SLICES for _, use in uses):
                total += min(whole, sum(hlo.array_bytes(use.shape) for _, use in uses))
            elif not any(use in updates and use.operands[0] == name for name, use in uses):  # written in place
                total += whole
        if updates and hlo.hbm_bytes(shape):
            put = sum(hlo.array_bytes(shapes.get(one.operands[1], "")) for one in updates)
            return total + min(put, hlo.hbm_bytes(shape))
        return total + hlo.hbm_bytes(shape)


def _uses(name: str, users: Mapping[str, Sequence[Instruction]]) -> list[tuple[str, Instruction]]:
    """What uses a value, views of it followed, each with the name that it uses it by."""
    found = []
    for use in users[name]:
        found += _uses(use.name, users) if use.opcode in ("bitcast", "copy") else [(name, use)]
    return found


def _bytes(one: Instruction, inputs: Sequence[str]) -> float:
    if one.opcode.endswith("-start"):
        return hlo.copied_bytes(one.shape, inputs[0]) if inputs else 0
    if one.opcode in _SLICES:
        return 2 * hlo.hbm_bytes(one.shape)
    if one.opcode == "dynamic-update-slice":
        return 2 * hlo.hbm_bytes(inputs[1])
    if one.opcode == "custom-call" and "custom_call_target=" in one.rest and hlo.PALLAS not in one.rest:
        return 0
    return hlo.hbm_bytes(one.shape) + sum(map(hlo.hbm_bytes, inputs))


def _named(rest: str, attribute: str) -> str:
    match = re.search(rf"\b{attribute}=%?([\w.\-]+)", rest)
    return match[1] if match else ""


def _groups(rest: str, devices: int) -> list[list[int]]:
    """The groups of devices of a collective, or the pairs of a permutation; all of them where none are named."""
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]+\})\}", rest)
    if listed:
        return [[int(device) for device in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    named = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest)
    if named:
        return _mesh_groups(named[1], named[2])
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if iota is None:
        return [list(range(devices))]
    sizes = [int(size) for size in iota[3].split(",")]
    order = np.arange(math.prod(sizes)).reshape(sizes)
    if iota[4]:
        order = order.transpose([int(axis) for axis in iota[4].split(",")])
    return order.reshape(int(iota[1]), int(iota[2])).tolist()


def _mesh_groups(mesh: str, along: str) -> list[list[int]]:
    """Groups along axes of a named mesh, `'a'=4,'b'=2` and `'a':(2)2,'b'`: a part of an axis has its place and size."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", mesh)}
    parts = {name: [(1, size)] for name, size in sizes.items()}  # (devices before, size) of each part of an axis
    chosen = []
    for name, before, size in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", along):
        first, length = (int(before), int(size)) if size else (1, sizes[name])
        after = sizes[name] // (first * length)
        parts[name] = [(1, first), (first, length), (first * length, after)]
        chosen.append((name, first))
    axes = [(name, place, size) for name, pieces in parts.items() for place, size in pieces]
    order = np.arange(math.prod(sizes.values())).reshape([size for *_, size in axes])
    inside = [i for i, (name, place, size) in enumerate(axes) if (name, place) in chosen and size > 1]
    outside = [i for i in range(len(axes)) if i not in inside]
    count = math.prod(axes[i][2] for i in inside)
    return order.transpose([*outside, *inside]).reshape(-1, count).tolist()
