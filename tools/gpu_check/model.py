"""`python -m tools.gpu_check.model --model NAME [--device cuda] [--document FILE]`: a real model on a GPU.

Says whether it writes the same greedy tokens as on the CPU, tokens a second of prefill and of written replies by depth,
what loading a memory takes beside reading it again, the GPU's peak memory, and of a document what a memo of it takes to
build; where llama-bench is found and the model is a GGUF file, what that makes of it. As JSON in the last line. Exits 1
where fewer than the first eight tokens are the same: after some dozen near ties fall otherwise in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minimemo.engine.engine import Engine
from minimemo.memo.build import build
from minimemo.memory.blocks import BlockAssembler
from minimemo.memory.codec import KVLayout
from minimemo.memory.int4 import Int4Codec
from minimemo.memory.load import StoredMemory
from minimemo.memory.reader import MemoryReader
from minimemo.memory.view import whole
from minimemo.memory.writer import writing
from minimemo.runtime import LanguageModel, RunOptions, find, load_model, open_embedder

DEPTHS = (0, 4096, 16384)
WRITTEN = 128  # tokens of a timed reply
SAME = 8  # tokens that must be equal


def measure(engine: Engine, expected: Sequence[int], prompt: Sequence[int], depths: Sequence[int]) -> dict[str, Any]:
    """expected: what the CPU wrote after `prompt`."""
    found = _written(engine, prompt, len(expected))
    same = next((i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), len(expected))
    return {"same_tokens": same, "of": len(expected), "depths": [_speeds(engine, depth) for depth in depths]}


def rival(program: str | None, model: Path) -> list[dict[str, float]]:
    """Tokens a second of llama-bench on a GPU: of a prompt and of a reply, by depth. Nothing where it is not there."""
    if program is None or model.suffix != ".gguf":
        return []
    depths = ",".join(map(str, DEPTHS))
    asked = ["-ngl", "99", "-fa", "1", "-p", "512", "-n", "128", "-d", depths, "-o", "json"]
    done = subprocess.run([program, "-m", str(model), *asked], check=True, capture_output=True, text=True, timeout=200)
    rows = json.loads(done.stdout)
    return [{name: row[name] for name in ("n_depth", "n_prompt", "n_gen", "avg_ts")} for row in rows]


def _built(document: Path, model: LanguageModel, options: RunOptions) -> list[float]:
    """Seconds of two builds of a document's memo, the first of which compiles what is left to be."""
    embedder = open_embedder(device=options.device)
    with tempfile.TemporaryDirectory() as folder:
        works = [partial(build, document, Path(folder) / f"{n}.memo", model=model, embedder=embedder) for n in range(2)]
        return [_seconds(work) for work in works]


def _written(engine: Engine, prompt: Sequence[int], most: int) -> list[int]:
    return list(engine.generate(engine.new_cache(len(prompt) + most), prompt, max_tokens=most))


def _speeds(engine: Engine, depth: int) -> dict[str, float]:
    """Tokens a second of a chunk and of a reply after `depth` tokens; seconds to load those and to read them."""
    ids = torch.randint(engine.config.vocab_size, (depth + 512,), generator=torch.Generator().manual_seed(1)).tolist()
    cache = engine.new_cache(len(ids) + WRITTEN)
    read = _seconds(lambda: engine.extend(cache, ids[:depth])) if depth else 0.0
    speeds = {"depth": depth, "read_s": read}
    for _ in range(2):  # the first compiles and captures
        cache.truncate(depth)
        speeds["prefill"] = 512 / _seconds(lambda: engine.prefill(cache, ids[depth:]))
        cache.truncate(depth)
        begin = time.perf_counter()
        count = sum(1 for _ in engine.generate(cache, ids[-1:], max_tokens=WRITTEN))
        speeds["decode"] = count / (time.perf_counter() - begin)
    if depth:
        speeds["load_s"] = _loaded(engine, ids[:depth])
    return speeds


def _loaded(engine: Engine, ids: Sequence[int]) -> float:
    """Seconds in which a memory of these tokens comes into a cache."""
    c, assembler = engine.config, BlockAssembler()
    codec = Int4Codec(KVLayout(c.num_layers, c.num_kv_heads, c.head_dim, str(engine.kv_dtype).removeprefix("torch.")))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memory.bin"
        with writing(path, {"codec": codec.name, "params": codec.params()}) as writer:
            for piece in engine.read(engine.new_cache(len(ids)), ids):
                for block in assembler.push(piece.ids, piece.keys, piece.values):
                    writer.add(block.hash, block.ids, codec.encode(block))
        stored = MemoryReader(path)
        view = whole([stored.extent])
        StoredMemory([(stored, codec)], engine).load(view, 1)  # compiles
        return _seconds(lambda: StoredMemory([(stored, codec)], engine).load(view, 1))


def _seconds(work: Any) -> float:
    _wait()
    begin = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - begin


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu_check.model", description="A real model on a GPU beside the CPU.")
    parser.add_argument("--model", required=True, help="name in the catalogue (pulled), .gguf file or directory")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--document", type=Path, help="a text to build a memo of")
    options = parser.parse_args(arguments)
    on_cpu = load_model(options.model, RunOptions(device="cpu")).engine
    prompt = [7 * i % 1000 + 5 for i in range(64)]
    expected = _written(on_cpu, prompt, 64)
    del on_cpu
    on_gpu = load_model(options.model, RunOptions(device=options.device))
    result = {"model": options.model, **measure(on_gpu.engine, expected, prompt, DEPTHS)}
    if torch.cuda.is_available():
        result |= {"gpu": torch.cuda.get_device_name(), "peak_bytes": torch.cuda.max_memory_allocated()}
    if options.document:
        result["build_s"] = _built(options.document, on_gpu, RunOptions(device=options.device))
    if rows := rival(shutil.which("llama-bench"), find(options.model)[1]):
        result["llama_bench"] = rows
    print(json.dumps(result))
    return int(result["same_tokens"] < SAME)


if __name__ == "__main__":
    sys.exit(main())
