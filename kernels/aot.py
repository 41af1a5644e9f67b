"""`python -m minimemo.kernels.aot [--json]`: every Triton kernel compiled for sm_80 and sm_90 where no GPU is.

Prints what the compiler made of each: registers, bytes that spill out of them, shared memory against the chip's limit,
and whether tensor cores are used (mma on sm_80, wgmma on sm_90, mma where a product has too few rows for wgmma).
Exits 1 where a kernel spills, needs more shared memory than there is, or multiplies matrices without tensor cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

_TARGETS = {80: 163 * 1024, 90: 227 * 1024}  # compute capability: shared memory that a block may use, bytes


@dataclass(frozen=True, slots=True)
class Report:
    """One kernel for one target. spills, shared, limit in bytes; `problem` is empty when all is well."""

    kernel: str
    target: str
    registers: int
    spills: int
    shared: int
    limit: int
    tensor_cores: str
    problem: str


def compile_all(pattern: str = "") -> Iterator[Report]:
    """Compiles the cases whose name holds `pattern`, two at a time; in order of the cases."""
    from .aot_cases import cases

    jobs = [(case.name, target) for case in cases() if pattern in case.name for target in _TARGETS]
    workers = min(4, os.cpu_count() or 1)
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(workers, get_context("spawn"), initializer=_prepare, initargs=(cache,)) as pool,
    ):
        yield from pool.map(_compile, *zip(*jobs, strict=True))


def _prepare(cache: str) -> None:
    """Before triton is imported: an empty cache, fused multiply-add as a JIT launch has it, no interpreter."""
    os.environ |= {"TRITON_CACHE_DIR": cache, "TRITON_DEFAULT_FP_FUSION": "1", "TRITON_INTERPRET": "0"}


def _compile(name: str, target: int) -> Report:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from .aot_cases import cases

    case = next(case for case in cases() if case.name == name)
    signature, constants, attributes = specialize(case.launch, target)
    source = ASTSource(case.launch.kernel, signature, constants, attributes)
    options = {"num_warps": case.launch.num_warps, "num_stages": case.launch.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    registers, spills = _resources(compiled.asm["cubin"])
    ptx, limit, shared = compiled.asm["ptx"], _TARGETS[target], compiled.metadata.shared
    cores = "wgmma" if "wgmma.mma" in ptx else "mma" if "mma.sync" in ptx else "-"
    problems = [f"spills {spills} bytes"] if spills else []
    problems += [f"needs {shared} bytes of shared memory"] if shared > limit else []
    problems += ["no tensor core instruction"] if case.products and cores == "-" else []
    return Report(name, f"sm_{target}", registers, spills, shared, limit, cores, ", ".join(problems))


def specialize(
    launch: Any, target: int
) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int, ...], list[list[Any]]]]:
    """(signature, compiled-in values, attributes) that a JIT launch derives from its arguments: pointers aligned to 16
    bytes, integers that are 1 or divide by 16 unless the kernel asks not to look, None as a constant."""
    import torch

    names = {
        torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.int8: "i8", torch.uint8: "u8",
        torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
    }  # fmt: skip
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    compiled_in = launch.constants_for(target)
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
        if isinstance(value, torch.Tensor) or (plain and value % 16 == 0 and not parameter.do_not_specialize):
            attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _resources(cubin: bytes) -> tuple[int, int]:
    """(registers of a thread, bytes of its local memory: spilled registers and arrays) by triton's own cuobjdump."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="aot", description="Compile every Triton kernel without a GPU.")
    parser.add_argument("--json", action="store_true", help="one JSON array instead of the table")
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels whose name holds TEXT")
    options = parser.parse_args(arguments)
    try:
        import triton  # noqa: F401
    except ImportError:
        print("aot: triton is not installed: pip install 'minimemo[gpu]' on Linux", file=sys.stderr)
        return 2
    reports = []
    columns = "{:<40} {:<6} {:>4} {:>7} {:>8} {:>8}  {:<6} {}"
    if not options.json:
        print(columns.format("kernel", "target", "regs", "spilled", "shared", "limit", "cores", ""))
    for report in compile_all(options.only):
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
