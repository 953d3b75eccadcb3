"""Where a compiled step's time goes, by layer, from XLA's own trace. No command: ``benchmark.py --profile`` prints it."""

from __future__ import annotations

import collections
import dataclasses
import gzip
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

# On CPUs XLA records what it executes only if told so before JAX is loaded.
TRACE_FLAG = "--xla_cpu_enable_xprof_traceme=true"

_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
}
# What runs other instructions, which are recorded themselves.
_CONTAINERS = {"while", "call", "conditional"}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(?:, (.*))?$")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_LAYER = re.compile(r"/([a-z]+\d*(?:_[a-z]+)*)_(?:conv|norm)/")
_NETWORK = re.compile(r"[(/](SkipNet|UNet|KernelMlp)\b")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One of a compiled program.

    Attributes:
      opcode: of XLA.
      source: where it was traced: names of modules and transformations; empty where XLA has lost it.
      operands: names of the instructions whose results it reads.
      num_bytes: of its results and operands, each counted whole even where a part is read.
      flops: multiplications and additions of its matrix products.
    """

    opcode: str
    source: str
    operands: tuple[str, ...]
    num_bytes: int
    flops: float


@dataclasses.dataclass(frozen=True)
class Part:
    """What the instructions of a layer, or what lies between layers, take in a step.

    Attributes:
      name: of the layer, or of what lies between layers, and of the direction.
      milliseconds: of a step.
      flops: of its matrix products in a step.
      num_bytes: that it reads and writes in a step, as :class:`Instruction` counts them.
    """

    name: str
    milliseconds: float
    flops: float
    num_bytes: float


def instructions(hlo: str) -> dict[str, Instruction]:
    """The instructions of a compiled program, those inside fusions apart, by name.

    Args:
      hlo: the program's text, ``compiled.as_text()``.
    """
    shapes: dict[str, str] = {}
    lines: list[tuple[str, re.Match[str]]] = []
    computation = ""
    for line in hlo.splitlines():
        if found := _COMPUTATION.match(line):
            computation = found[1]
        elif found := _INSTRUCTION.match(line):
            shapes[found[1]] = found[2]
            lines.append((computation, found))
    flops: dict[str, float] = collections.defaultdict(float)
    fused: set[str] = set()
    products = [_product_flops(found, shapes) for _, found in lines]
    for (computation, found), own in zip(lines, products, strict=True):
        flops[computation] += own
        if found[3] == "fusion":
            fused.update(_called(found))
    result = {}
    for (computation, found), own in zip(lines, products, strict=True):
        name, shape, opcode, arguments, attributes = found.groups()
        if computation in fused:
            continue
        operands = tuple(_NAME.findall(arguments))
        source = re.search(r'op_name="([^"]*)"', attributes or "")
        inside = sum(flops[called] for called in _called(found)) if opcode == "fusion" else 0.0
        result[name] = Instruction(
            opcode,
            source[1] if source else "",
            operands,
            sum(map(_num_bytes, [shape, *(shapes.get(operand, "") for operand in operands)])),
            own + inside,
        )
    return result


def _called(found: re.Match[str]) -> list[str]:
    return re.findall(r"calls=%([\w.\-]+)", found[5] or "")


def _num_bytes(shape: str) -> int:
    sizes = [(_BYTES.get(kind, 0), sides) for kind, sides in _ARRAY.findall(shape)]
    return sum(size * math.prod(map(int, filter(None, sides.split(",")))) for size, sides in sizes)


def _product_flops(found: re.Match[str], shapes: Mapping[str, str]) -> float:
    _, shape, opcode, arguments, attributes = found.groups()
    if opcode != "dot":
        return 0.0
    left = _sides(shapes[_NAME.findall(arguments)[0]])
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", attributes or "")
    axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
    return 2.0 * math.prod(_sides(shape)) * math.prod(left[axis] for axis in axes)


def _sides(shape: str) -> list[int]:
    found = _ARRAY.match(shape)
    return [int(side) for side in found[2].split(",") if side] if found else []


def parts_of(program: Mapping[str, Instruction]) -> dict[str, str]:
    """To which part of a step each instruction belongs.

    XLA drops the names of many matrix products. One whose operands come from a gradient is part of the layer that they come
    from; any other is part of the layer that uses its result.
    """
    users: dict[str, list[str]] = collections.defaultdict(list)
    for name, instruction in program.items():
        for operand in instruction.operands:
            users[operand].append(name)

    def named(names: Iterable[str]) -> str:
        return next((program[name].source for name in names if name in program and program[name].source), "")

    result = {}
    for name, instruction in program.items():
        source = instruction.source
        if not source:
            before = named(instruction.operands)
            source = before if "transpose(" in before else named(users[name]) or before
        layer = _LAYER.findall(source)
        network = _NETWORK.search(source)
        between = f"rest of {network[1]}" if network else "loss, blur and optimiser"
        result[name] = f"{layer[-1] if layer else between}{', gradient' if 'transpose(' in source else ''}"
    return result


def traced_turn(turn: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of all that XLA executes during ``turn()``, by the instruction's name."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            turn()
        (path,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    total: dict[str, float] = collections.defaultdict(float)
    for event in events:
        if event.get("ph") == "X":
            total[event["name"]] += event["dur"] / 1e3
    return dict(total)


def profile(hlo: str, milliseconds: Mapping[str, float], steps: int) -> list[Part]:
    """The parts of a step, the slowest first.

    Args:
      hlo: the compiled program.
      milliseconds: of its instructions, from :func:`traced_turn`.
      steps: of that turn.
    """
    program = instructions(hlo)
    belongs = parts_of(program)
    sums: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0, 0.0])
    for name, instruction in program.items():
        if name in milliseconds and instruction.opcode not in _CONTAINERS:
            row = sums[belongs[name]]
            row[0] += milliseconds[name] / steps
            row[1] += instruction.flops
            row[2] += instruction.num_bytes
    return sorted((Part(name, *row) for name, row in sums.items()), key=lambda part: -part.milliseconds)


def table(parts: Iterable[Part], limits: Mapping[str, float]) -> str:
    """Markdown: the parts, their sum, and what this machine would need for the same products and bytes at its limits.

    Args:
      parts: slowest first.
      limits: ``float32`` in FLOP/s and ``bytes_per_s``, measured.
    """
    parts = list(parts)
    whole = Part("**step**", *(sum(getattr(part, name) for part in parts) for name in ("milliseconds", "flops", "num_bytes")))
    lines = ["| part | ms | % | GFLOP of products | GFLOP/s | MB moved | GB/s |", "|---|---|---|---|---|---|---|"]
    for part in [*parts, whole]:
        rate = 1e-6 / part.milliseconds if part.milliseconds else 0.0
        lines.append(
            f"| {part.name} | {part.milliseconds:.1f} | {100 * part.milliseconds / max(whole.milliseconds, 1e-9):.0f} "
            f"| {part.flops / 1e9:.3g} | {part.flops * rate:.0f} | {part.num_bytes / 1e6:.0f} | {part.num_bytes * rate:.1f} |"
        )
    products, passes = 1e3 * whole.flops / limits["float32"], 1e3 * whole.num_bytes / limits["bytes_per_s"]
    lines += [
        "",
        f"This machine, measured in the same process: {limits['float32'] / 1e9:.0f} GFLOP/s in a square matrix product, "
        f"{limits['bytes_per_s'] / 1e9:.1f} GB/s in a triad. At these the products of a step take {products:.0f} ms and its "
        f"bytes {passes:.0f} ms. Bytes count operands whole, and what a cache still holds as if it came from memory.",
    ]
    return "\n".join(lines)
