"""Reads what the TPU compiler wrote into the text of a compiled program: cycles, memory in use, bytes moved."""

import dataclasses
import math
import re
from collections.abc import Iterator

PALLAS = "tpu_custom_call"

_LEAF = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
# The profile's figure; the heuristic that every fusion carries besides is far off for some loops.
_PROFILE = re.compile(r'"bundle_analysis_data":\s*\{[^{}]*?"estimated_cycles":\s*"?(\d+)')
_VMEM = re.compile(r'"used_scoped_memory_configs":\s*\[([^\]]*)\]')
_SIZE = re.compile(r'\{[^{}]*"memory_space":\s*"?1"?,[^{}]*"size":\s*"?(\d+)')
# Instructions that name, view or end something and move nothing themselves.
FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "partition-id", "iota"}
_LOOPS = {"while", "conditional", "call"}


@dataclasses.dataclass(frozen=True)
class Operation:
    """One instruction of the entry computation that does something.

    Attributes:
      name: Its name in the program.
      kind: Opcode; "pallas" for a Pallas kernel.
      cycles: The profile's estimate, None where it has none, such as for copies that run beside others.
      vmem: Bytes of VMEM that it takes while it runs, beside operands that live there.
      hbm: Bytes of its operands and results that lie in HBM, each counted once.
    """

    name: str
    kind: str
    cycles: int | None
    vmem: int
    hbm: int


def operations(text: str) -> list[Operation]:
    """Returns the operations of a compiled program's entry computation.

    Args:
      text: What `compiled.as_text()` gives.

    Raises:
      ValueError: The text has no entry, or a loop or branch outside a kernel, whose trips the text does not tell.
    """
    shapes: dict[str, str] = {}
    found = []
    for one in instructions(entry(text)):
        name, shape, opcode, operands, rest = one.name, one.shape, one.opcode, one.operands, one.rest
        shapes[name] = shape
        if opcode in _LOOPS:
            raise ValueError(f"the compiled program has a {opcode} ({name}); only straight-line programs can be summed")
        target = re.search(r'custom_call_target="([^"]*)"', rest)
        free_call = target is not None and target[1] != PALLAS and not _PROFILE.search(rest)
        if opcode in FREE or opcode.endswith("-done") or free_call:
            continue
        kind = "pallas" if target is not None and target[1] == PALLAS else opcode
        cycles = _PROFILE.search(rest)
        scoped = _VMEM.search(rest)
        vmem = sum(int(size) for size in _SIZE.findall(scoped[1])) if scoped else 0
        if opcode.endswith("-start"):
            hbm = copied_bytes(shape, shapes[operands[0]]) if operands else 0
        else:
            hbm = hbm_bytes(shape) + sum(hbm_bytes(shapes[operand]) for operand in dict.fromkeys(operands))
        found.append(Operation(name, kind, int(cycles[1]) if cycles else None, vmem, hbm))
    return found


def entry(text: str) -> str:
    """The body of the entry computation of a compiled program's text."""
    found = re.search(r"^ENTRY [^\n]*\{\n(.*?)^\}$", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError("the compiled program's text has no entry computation")
    return found[1]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a program's text.

    Attributes:
      name: With its "%".
      shape: Type of the result.
      opcode: What it does.
      arguments: What stands in its parentheses.
      rest: What follows them.
    """

    name: str
    shape: str
    opcode: str
    arguments: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of the instructions whose results it takes."""
        return re.findall(r"%[\w.\-]+", self.arguments)


def instructions(body: str) -> Iterator[Instruction]:
    """Yields the instructions of a computation's body."""
    # Some attributes hold line breaks, so an instruction ends where the next begins.
    for part in re.split(r"^\s+(?=(?:ROOT )?%[\w.\-]+ = )", body, flags=re.MULTILINE)[1:]:
        name, _, definition = part.removeprefix("ROOT ").partition(" = ")
        end = _closing(definition, 0) if definition.startswith("(") else definition.index(" ")
        shape, call = definition[:end].strip(), definition[end:].strip()
        opcode, _, _ = call.partition("(")
        close = _closing(call, len(opcode))
        yield Instruction(name, shape, opcode, call[len(opcode) + 1 : close - 1], call[close:])


def _closing(text: str, start: int) -> int:
    """The position after the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def _leaves(shape: str) -> Iterator[tuple[int, bool]]:
    """Yields the bytes of each array of a type, and whether it lies in HBM (memory space 0)."""
    for dtype, sizes, layout in _LEAF.findall(shape):
        bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
        count = math.prod(int(size) for size in sizes.split(",") if size)
        yield -(-count * bits // 8), re.search(r"S\([1-9]", layout) is None


def array_bytes(shape: str) -> int:
    """Bytes of the arrays of a type, wherever they lie."""
    return sum(size for size, _ in _leaves(shape))


def hbm_bytes(shape: str) -> int:
    """Bytes of those arrays of a type that lie in HBM."""
    return sum(size for size, in_hbm in _leaves(shape) if in_hbm)


def copied_bytes(result: str, source: str) -> int:
    """Bytes that an asynchronous copy or slice moves from or to HBM; its result holds target, source and a flag."""
    (source_size, from_hbm), *_ = _leaves(source)
    arrays = [leaf for leaf in _leaves(result) if leaf[0] > 4]
    # The target is what differs from the source in place or size.
    size, to_hbm = next((leaf for leaf in arrays if leaf != (source_size, from_hbm)), (source_size, from_hbm))
    return size * (from_hbm + to_hbm)
