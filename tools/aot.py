"""`python -m tools.aot [--json]`: every Triton kernel compiled for eight chips of NVIDIA and AMD where no GPU is.

Prints what the compiler made of each: registers, bytes that spill out of them, shared memory against the chip's limit,
and whether tensor cores are used (mma, on sm_90 wgmma and on sm_100 tcgen05 where a product has rows enough for them,
AMD's mfma and wmma).
On sm_90 the instructions of a warp are counted that products of one row take a weight (machine code of the loop).
Exits 1 where a kernel spills, needs more shared memory than there is, multiplies matrices without tensor cores, or
takes more instructions a weight than its budget.

The cases are every kernel in each dtype, head dim and bit width that models use. Their tensors are on torch's meta
device: shapes, dtypes and strides without memory. Launches come from the launchers themselves, so block sizes and
compiled-in constants are those of a real run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.common.shapes import meta, quantized
from minimemo.kernels.formats import PackedSource, QuantizedMatrix, Rows, Source, empty_packed
from minimemo.kernels.triton import installed

if TYPE_CHECKING:
    from minimemo.kernels.triton.launch import Launch

_CORES = ("tcgen05", "wgmma", "mma.sync", "v_mfma", "v_wmma")
_SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True, slots=True)
class Case:
    """A launch to compile. products: whether it multiplies matrices, so that its code must use tensor cores."""

    name: str
    launch: Launch
    products: bool
    # Warp instructions a weight that the longest loop may take on sm_90; what must come in wide loads: `_compile`.
    budget: float = 0.0
    # Whether pointers are multiples of 16 bytes, as those of caches and weights are. Where they are not, which is
    # seldom, numbers are loaded one by one, and spills are told but are no problem.
    aligned: bool = True


@dataclass(frozen=True, slots=True)
class Report:
    """What a kernel came to for one target. spills, shared, limit in bytes; a_weight: instructions, where they are
    counted; `problem` is empty when all is well."""

    kernel: str
    target: str
    registers: int
    spills: int
    shared: int
    limit: int
    tensor_cores: str
    a_weight: str
    problem: str


def compile_all(pattern: str = "", chips: Sequence[str] = ()) -> Iterator[Report]:
    """Compiles the cases whose name holds `pattern`, for `chips` or all, as many at a time as there are processors, up
    to four; in order of the cases."""
    from minimemo.kernels.triton.launch import CHIPS

    jobs = [(case.name, chip) for case in cases() if pattern in case.name for chip in chips or CHIPS]
    workers = min(4, os.cpu_count() or 1)
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(workers, get_context("spawn"), initializer=_prepare, initargs=(cache,)) as pool,
    ):
        yield from pool.map(_compile, *zip(*jobs, strict=True))


def _prepare(cache: str) -> None:
    """Sets, before triton is imported, an empty cache, fused multiply-add as a JIT launch has it, no interpreter."""
    os.environ |= {"TRITON_CACHE_DIR": cache, "TRITON_DEFAULT_FP_FUSION": "1", "TRITON_INTERPRET": "0"}


def _compile(name: str, chip_name: str) -> Report:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from minimemo.kernels.triton.launch import CHIPS

    chip = CHIPS[chip_name]
    case = next(case for case in cases() if case.name == name)
    constants, options = case.launch.settings(chip)
    source = ASTSource(case.launch.kernel, *specialize(case.launch, constants, aligned=case.aligned))
    if chip.amd:
        target = GPUTarget("hip", chip.name, 64 if chip.name.startswith("gfx9") else 32)
    else:
        target = GPUTarget("cuda", int(chip.name.removeprefix("sm_")), 32)
    compiled = triton.compile(source, target=target, options=options)
    registers, spills = _amd_resources(compiled.asm["amdgcn"]) if chip.amd else _resources(compiled.asm["cubin"])
    code, shared = compiled.asm["amdgcn" if chip.amd else "ptx"], compiled.metadata.shared
    cores = next((core for core in _CORES if core in code), "-")
    problems = [f"spills {spills} bytes"] if spills and case.aligned else []
    problems += [f"needs {shared} bytes of shared memory"] if shared > chip.shared else []
    problems += ["no tensor core instruction"] if case.products and cores == "-" else []
    a_weight = ""
    if case.budget and chip.name == "sm_90":
        loop = longest_loop(_told("nvdisasm", "-c", compiled.asm["cubin"]))
        outputs = constants["BLOCK_N"] * (2 if constants["GATE"] else 1)
        weights = outputs * constants["UNITS"] * 32  # of a program, in a turn of the loop
        count = len(loop) * options["num_warps"] / weights
        a_weight = f"{count:.3f}"
        problems += [f"more than {case.budget} instructions a weight"] if count > case.budget else []
        wide = ("LDG.E.128",) if case.budget < 0.5 else ("LDG.E.128", "LDG.E.64")  # of weights, or of inputs
        at_once = any(instruction.startswith(wide) for instruction in loop)
        problems += [] if at_once else [f"no {wide[-1]}"]
    return Report(name, chip.name, registers, spills, shared, chip.shared, cores, a_weight, ", ".join(problems))


def specialize(
    launch: Launch, compiled_in: Mapping[str, Any], *, aligned: bool = True
) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int, ...], list[list[Any]]]]:
    """Derives (signature, compiled-in values, attributes) from arguments as a JIT launch does: pointers that are
    `aligned` to 16 bytes, integers that are 1 or divide by 16, unless the kernel asks not to look; None: a constant."""
    names = _SHORT | {torch.int8: "i8", torch.uint8: "u8", torch.int32: "i32", torch.int64: "i64"}
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, parameter in enumerate(launch.kernel.params):
        value = compiled_in[parameter.name] if parameter.is_constexpr else launch.arguments[parameter.name]
        plain = isinstance(value, int) and not isinstance(value, bool)
        if parameter.is_constexpr or value is None or (plain and value == 1 and not parameter.do_not_specialize):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + names[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32" if value < 1 << 31 else "i64"
        looked_at = not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)
        if looked_at and (aligned if isinstance(value, torch.Tensor) else plain and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _amd_resources(code: str) -> tuple[int, int]:
    """Reads (vector registers of a thread, bytes of its private memory) from AMD's assembler."""
    counts = {key: int(value) for key, value in re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", code)}
    return counts["vgpr_count"], counts["private_segment_fixed_size"]


def _resources(cubin: bytes) -> tuple[int, int]:
    """Asks triton's cuobjdump for (registers of a thread, bytes of its local memory: spilled registers and arrays)."""
    text = _told("cuobjdump", "--dump-resource-usage", cubin)
    counts = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return counts["REG"], counts["STACK"] + counts["LOCAL"]


def _told(tool: str, option: str, cubin: bytes) -> str:
    """What one of NVIDIA's programs in triton's package says of a cubin."""
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([str(program), option, file.name], capture_output=True, text=True, check=True).stdout


def longest_loop(code: str) -> list[str]:
    """The instructions of machine code (one, or a label, a line), without predicates, of the longest stretch that a
    branch goes back over."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    loops: list[list[str]] = [[]]
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(.*?)\s*;", line):
            instructions.append(found[1])
            target = re.search(r"^BRA.*`\((\.L_x_\d+)\)", found[1])
            if target and labels.get(target[1], len(instructions)) < len(instructions) - 1:
                loops.append(instructions[labels[target[1]] :])
    return max(loops, key=len)


def cases() -> list[Case]:
    """Lists every case, in a fixed order."""
    return [*_attention_cases(), *_packed_cases(), *_row_cases()]


def _attention_cases() -> Iterator[Case]:
    from minimemo.kernels.triton.attention import attention_launches

    def case(name: str, q: Tensor, k: Tensor, last_seen: int | None, window: int | None = None) -> Case:
        launches, _ = attention_launches(q, [Source(k, k, 0, q.shape[1], last_seen, window)], 0.1)
        return Case(name, launches[0], q.dtype != torch.float32)

    variants = [(dim, torch.bfloat16) for dim in (64, 80, 96, 128, 256)]
    for dim, dtype in (*variants, (128, torch.float16), (128, torch.float32), (256, torch.float32)):
        q, k = meta(16, 512, dim, dtype=dtype), meta(4, 8192, dim, dtype=dtype)
        yield case(f"prefill {_SHORT[dtype]} D={dim}", q, k, 7680)
        yield case(f"decode {_SHORT[dtype]} D={dim}", q[:, :3], k, None)
    for dim in (128, 256):
        for queries in (8, 16):  # 32 and 64 rows
            q, k = meta(16, queries, dim), meta(4, 8192, dim)
            yield case(f"{queries} queries bf16 D={dim}", q, k, 8000)
    q, k = meta(16, 512, 128, dtype=torch.float16), meta(4, 8192, 128, dtype=torch.float16)
    yield case("prefill window fp16 D=128", q, k, 7680, 1024)
    q, k = meta(16, 3, 256), meta(4, 8192, 256)
    yield replace(case("decode bf16 D=256 unaligned", q, k, None), aligned=False)
    chunk = case("prefill bf16 D=128 unaligned", meta(16, 512, 128), meta(4, 8192, 128), 7680)
    yield replace(chunk, aligned=False)
    launches, _ = attention_launches(q, [Source(k, k, 0, 3)], 0.1)
    yield Case("merge bf16 D=256", launches[-1], False)
    number = meta(3, dtype=torch.int32)
    for dim in (64, 128, 256):
        q, k = meta(16, 3, dim), meta(4, 8192, dim)
        for name, rows in (("rows", Rows(number, number, k.numel())), ("rows over a memory", Rows(number[:1]))):
            launches, _ = attention_launches(q, [Source(k, k, 0, 3, rows=rows)], 0.1)
            yield Case(f"{name} bf16 D={dim}", launches[0], True)


def _packed_cases() -> Iterator[Case]:
    from minimemo.kernels.triton.attention import attention_launches
    from minimemo.kernels.triton.pack import pack_launch

    for bits in (8, 4):
        for dim in (64, 96, 128, 256) if bits == 8 else (64, 128, 256):
            packed, q = empty_packed(4, 8192, dim, bits, "meta"), meta(16, 512, dim)
            counts = {"prefill": (512, 7680), "decode": (3, None)} | ({"16 queries": (16, 8000)} if dim >= 128 else {})
            for name, (count, last_seen) in counts.items():
                launches, _ = attention_launches(q[:, :count], [PackedSource(packed, 0, count, last_seen)], 0.1)
                yield Case(f"packed {name} {bits} bits bf16 D={dim}", launches[0], True)
        x, packed = meta(4, 512, 128), empty_packed(4, 8192, 128, bits, "meta")
        refused = meta(2, 4, 8, dtype=torch.int32)
        yield Case(f"pack {bits} bits bf16 D=128", pack_launch(packed, 64, x, x, refused), False)


def _row_cases() -> Iterator[Case]:
    from minimemo.kernels.triton.choose import choose_launches
    from minimemo.kernels.triton.elementwise import gate_launch, norm_launch
    from minimemo.kernels.triton.linear import linear_launch, widen_launch
    from minimemo.kernels.triton.rope import qkv_launch, store_launch

    for dim in (128, 256):
        x, table, cache = meta(4, 512, dim), meta(512, dim, dtype=torch.float32), meta(4, 8192, dim)
        yield Case(f"rope store bf16 D={dim}", store_launch(x, x, table, table, cache, cache, 100), False)
        qkv, out, weight = meta(512, 24, dim), meta(16, 512, dim), meta(dim)
        launch = qkv_launch(qkv, (weight, weight), 1e-6, table, table, out, cache, cache, 100, x)
        yield Case(f"norm, rope and store bf16 D={dim}", launch, False)
        number = meta(512, dtype=torch.int32)
        rows = (number, number, cache.numel())
        launch = qkv_launch(qkv, (weight, weight), 1e-6, table, table, out, cache, cache, 0, None, rows=rows)
        yield Case(f"norm, rope and store rows bf16 D={dim}", launch, False)
    for width in (896, 16384):
        x, weight = meta(512, width), meta(width)
        yield Case(f"rms norm bf16 C={width}", norm_launch(x, weight, 1e-6, x), False)
    for activation in ("silu", "gelu_tanh"):
        gate_up, out = meta(512, 9728), meta(512, 4864)
        yield Case(f"{activation} bf16", gate_launch(gate_up, activation, out), False)
    kinds = {"8 bits": (8, 32, False), "5 bits": (5, 32, False), "6 bits g16": (6, 16, False)}
    kinds |= {"4 bits": (4, 32, True), "8 bits g16": (8, 16, False), "4 bits g128": (4, 128, False)}
    for kind, (bits, group, offsets) in kinds.items():
        for outputs, columns in ((896, 4864), (4864, 896)):
            matrix = _matrix(outputs, columns, group, bits, offsets=offsets)
            for rows in (1, 3, 8):
                x, out, norm = meta(rows, columns), meta(rows, outputs), (meta(columns), 1e-6)
                name = f"{rows} rows, {kind} out={outputs}"
                # Where outputs are few, many programs are quicker than few instructions.
                budget = 0.7 if rows > 1 or outputs < 4096 else 0.25 if group >= 32 else 0.31
                launch = linear_launch(x, matrix, None, out, residual=out)
                yield Case(f"linear {name}", launch, False, budget)
                launch = linear_launch(x, matrix, None, out, norm=norm)
                yield Case(f"norm and linear {name}", launch, False, budget)
        matrix = _matrix(9728, 896, group, bits, offsets=offsets)
        for rows in (1, 3, 8):
            x, out, norm = meta(rows, 896), meta(rows, 4864), (meta(896), 1e-6)
            launch = linear_launch(x, matrix, None, out, norm=norm, gate="gelu_tanh")
            yield Case(f"norm, linear and gelu_tanh {rows} rows, {kind}", launch, False)
        wide, x = meta(9728, 896), meta(512, 896)
        yield Case(f"widen {kind}", widen_launch(matrix, wide), False)
        yield Case(f"norm and widen {kind}", widen_launch(matrix, wide, norm=(x, norm[0], 1e-6, x)), False)
    numbers = (meta(3, dtype=torch.int32), meta(4, 3, dtype=torch.int32))
    for launch in choose_launches(meta(3, 151936, dtype=torch.float32), *numbers):
        yield Case(f"choose {launch.kernel.__name__}", launch, False)


def _matrix(outputs: int, columns: int, group: int, bits: int, *, offsets: bool) -> QuantizedMatrix:
    in_units = columns % 256 == 0 and (bits, group) in ((4, 32), (6, 16))  # of K-quants
    zero = 0 if offsets else 2 ** (bits - 1) % 128
    return quantized(outputs, columns, bits, group, in_units=in_units, offsets=offsets, zero=zero)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="aot", description="Compile every Triton kernel without a GPU.")
    parser.add_argument("--json", action="store_true", help="one JSON array instead of the table")
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels whose name holds TEXT")
    parser.add_argument("--chip", action="append", default=[], metavar="NAME", help="sm_89 or gfx942, say; all")
    options = parser.parse_args(arguments)
    if not installed():
        print("aot: triton is not installed: pip install 'minimemo[gpu]' on Linux", file=sys.stderr)
        return 2
    reports = []
    columns = "{:<40} {:<7} {:>4} {:>7} {:>8} {:>8}  {:<8} {:<6} {}"
    if not options.json:
        print(columns.format("kernel", "target", "regs", "spilled", "shared", "limit", "cores", "a wgt", ""))
    for report in compile_all(options.only, options.chip):
        reports.append(report)
        if not options.json:
            print(columns.format(*asdict(report).values()), flush=True)
    failed = sum(bool(report.problem) for report in reports)
    if options.json:
        print(json.dumps([asdict(report) for report in reports]))
    else:
        print(f"{len(reports)} compiled, {failed} with problems")
    return 1 if failed or not reports else 0


if __name__ == "__main__":
    sys.exit(main())
