"""How quick is the engine with a memory of some depth, against llama.cpp and the machine's own ceilings?

    python -m bench.engine --model qwen2.5-coder-0.5b --depths 0,4096,16384 [--peer llamacpp] [--kv-dtype int8]
        [--threads 2] [--json]

At each depth, a memory of random keys and values (packed with --kv-dtype int8 or int4): the prefill of 512 tokens with
the logits of the last, 32 decode steps of one row, and 32 of three rows that share the memory (their tokens added up),
all greedy. Ours and the peer (llama-bench on the same GGUF file, its cache of 16-bit floats) take turns; medians over
the repeats count. A decode speed is that of the median step. llama-bench times its 32 steps as one: `decode_mean` is
ours counted that way, and the fairer ratio where other processes interrupt. Share of the ceiling: bytes of weights,
keys and values that a step reads, over its time and what the memory was read with in the same run.

Peak memory is the whole process's, loading included (and converting, when a GGUF file is used for the first time).
Other processes slow both sides manifold and unevenly: ratios mean something only where they took next to nothing of the
processor meanwhile (`others_cpu_share`, said below the table).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import ceilings
from bench.bystanders import Bystanders
from bench.engine_profile import HEADINGS, Ceilings, kv_bytes_read, kv_element_bytes, profile
from bench.kernels import _processor
from bench.peer import PeerSpeeds, find_llama_bench, run_llama_bench
from minimemo.engine.cache import KVCache
from minimemo.engine.engine import Engine
from minimemo.errors import InputError, MinimemoError
from minimemo.hub.catalog import resolve
from minimemo.kernels import native
from minimemo.models.decoder import DecoderWeights, Row
from minimemo.models.linear import Linear
from minimemo.models.weights import preferred_dtype
from minimemo.runtime import KV_DTYPES, RunOptions, load_model

CHUNK = 512  # tokens of a prefill
STEPS = 32  # of a decode
BATCH = 3  # rows over one memory
QUIET = 0.05  # of the processor's time taken by others, at most


@dataclass(frozen=True, slots=True)
class Speeds:
    """Tokens a second at one depth. decode: by the median step; decode_mean: by all steps together; batch: all rows."""

    prefill: float
    decode: float
    decode_mean: float
    batch: float


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        found = _run(args)
    except MinimemoError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(found))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.engine", description="speed of the engine by depth of the memory")
    parser.add_argument("--model", required=True, help="name in the catalogue (pulled), .gguf file or directory")
    parser.add_argument("--depths", default="0,4096,16384", help="tokens in the cache")
    parser.add_argument("--peer", choices=["llamacpp"], help="measure it too")
    parser.add_argument("--llama-bench", metavar="PATH", help="the peer's program; else $LLAMA_BENCH, else on PATH")
    parser.add_argument("--kv-dtype", choices=KV_DTYPES, help="of our cache; int8, int4: a packed memory")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="also what a step and a chunk spend their time on")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser


def _run(args: argparse.Namespace) -> dict[str, Any]:
    depths = _depths(args.depths)
    for name in ("threads", "repeat"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: at least 1")
    path = resolve(args.model)
    program = find_llama_bench(args.llama_bench) if args.peer else None
    if program and path.suffix != ".gguf":
        raise InputError(f"{args.model}: llama-bench needs a GGUF file, this is {path.name}; leave out --peer")
    load = os.getloadavg()[0]
    torch.set_num_threads(args.threads)
    engine = load_model(args.model, RunOptions(kv_dtype=args.kv_dtype)).engine

    ours: dict[int, list[Speeds]] = {depth: [] for depth in depths}
    theirs: dict[int, list[PeerSpeeds]] = {depth: [] for depth in depths}
    memory, peak, others = 0.0, 0, Bystanders()
    for turn in range(args.repeat):
        for depth in depths:
            print(f"repeat {turn + 1} of {args.repeat}, depth {depth}", file=sys.stderr)
            ours[depth].append(measure(engine, depth))
            if program:
                theirs[depth].append(_measure_peer(program, path, args.threads, depth))
        peak = peak or _peak_rss_bytes()  # before the probe's buffer
        memory = max(memory, ceilings.memory_gb_s())

    found = {
        "model": args.model,
        "threads": args.threads,
        "cpu": _processor(),
        "torch": torch.__version__,
        "variant": _variant(),
        "dtype": _name(_product_dtype(engine)),
        "kv_dtype": f"int{engine.memory_bits}" if engine.memory_bits else _name(engine.kv_dtype),
        **_summary(engine, ours, theirs, memory),
        "weight_bytes": weight_bytes_read(engine.decoder.weights),
        "peak_rss_bytes": peak,
        "load": load,
        "others_cpu_share": others.share(),
    }
    _print_table(found, depths)
    if args.profile:
        found["profile"] = _profile(engine, depths, memory)
    return found


def measure(engine: Engine, depth: int) -> Speeds:
    """One timed chunk and STEPS timed steps of each kind, after one of each that warms up."""
    cache = deep_cache(engine, depth)
    ids = torch.randint(engine.config.vocab_size, (CHUNK,), generator=torch.Generator().manual_seed(depth))
    _seconds(engine, ids, [cache])
    cache.truncate(depth)
    chunk = _seconds(engine, ids, [cache])
    cache.truncate(depth)
    steps = [_seconds(engine, ids[at : at + 1], [cache]) for at in range(STEPS + 1)][1:]
    cache.truncate(depth)
    tails = [engine.new_cache(STEPS + 1) for _ in range(BATCH)]
    batch = [_seconds(engine, ids[at : at + BATCH], tails, prefix=cache) for at in range(STEPS + 1)][1:]
    return Speeds(CHUNK / chunk, 1 / statistics.median(steps), STEPS / sum(steps), BATCH / statistics.median(batch))


def deep_cache(engine: Engine, depth: int) -> KVCache:
    """A memory of `depth` tokens of normal random keys and values, with room for a chunk."""
    config, cache = engine.config, engine.new_memory(depth, depth + CHUNK)
    random = torch.Generator().manual_seed(depth)
    for at in range(0, depth, CHUNK):
        shape = (config.num_layers, config.num_kv_heads, min(CHUNK, depth - at), config.head_dim)
        cache.append(*(torch.randn(shape, generator=random) for _ in range(2)))
    return cache


def weight_bytes_read(weights: DecoderWeights) -> int:
    """Bytes of matrices that a greedy step reads; of a head with a shortlist its coarse copy, the rest being little."""
    layers = sum(m.nbytes for layer in weights.layers for m in (layer.qkv, layer.out, layer.gate_up, layer.down))
    return layers + (weights.head if weights.shortlist is None else weights.shortlist.coarse).nbytes


def _seconds(engine: Engine, ids: Tensor, caches: Sequence[KVCache], prefix: KVCache | None = None) -> float:
    """Of one pass that appends as many of ids to each cache."""
    rows = [Row(cache, len(ids) // len(caches)) for cache in caches]
    start = time.perf_counter()
    engine.decoder.forward(ids, rows, prefix=prefix, logits="likeliest")  # as greedy decoding does
    return time.perf_counter() - start


def _measure_peer(program: Path, model: Path, threads: int, depth: int) -> PeerSpeeds:
    return run_llama_bench(program, model, threads=threads, depth=depth, prefill_tokens=CHUNK, decode_tokens=STEPS)


def _summary(
    engine: Engine, ours: dict[int, list[Speeds]], theirs: dict[int, list[PeerSpeeds]], memory: float
) -> dict[str, Any]:
    """Medians over the repeats, by depth; ratios of those."""

    def medians(measured: dict[int, Any], field: str) -> dict[str, float]:
        every = {str(depth): [getattr(one, field) for one in found] for depth, found in measured.items() if found}
        return {depth: statistics.median(values) for depth, values in every.items()}

    def ratio(of: dict[str, float], to: dict[str, float]) -> dict[str, float]:
        return {depth: of[depth] / value for depth, value in to.items()}

    prefill, decode, mean, batch = (medians(ours, field) for field in Speeds.__slots__)
    peer_prefill, peer_decode = (medians(theirs, field) for field in ("prefill", "decode"))
    weights, element = weight_bytes_read(engine.decoder.weights), kv_element_bytes(engine)
    # The steps of one row run at positions from depth + 1, past the one that warms up.
    read = {depth: weights + kv_bytes_read(engine.config, int(depth) + 1 + STEPS // 2, element) for depth in decode}
    runs = [run for found in theirs.values() for run in found]
    return {
        "prefill_tps": prefill,
        "decode_tps": decode,
        "decode_mean_tps": mean,
        "batch3_decode_tps": batch,
        "peer": {
            "name": f"llama.cpp {runs[0].build}",
            "prefill_tps": peer_prefill,
            "decode_tps": peer_decode,
            "peak_rss_bytes": max(run.peak_rss_bytes for run in runs),
        }
        if runs
        else None,
        "ratio": {
            "prefill": ratio(prefill, peer_prefill),
            "decode": ratio(decode, peer_decode),
            "decode_mean": ratio(mean, peer_decode),
            "batch3": ratio(batch, decode),
        },
        "ceiling": {
            "memory_gb_s": memory,
            "decode_share": {depth: read[depth] * speed / 1e9 / memory for depth, speed in decode.items()},
        },
    }


def _print_table(found: dict[str, Any], depths: Sequence[int]) -> None:
    peer, ratio = found["peer"], found["ratio"]
    print(
        f"{found['model']}, {found['threads']} threads, {found['variant']}, products {found['dtype']}, "
        f"cache {found['kv_dtype']}, load {found['load']:.1f}; tokens/s against {peer['name'] if peer else 'no peer'}"
    )
    against = f"{'ours':>8} {'peer':>8} {'ratio':>6}"
    print(f"{'':>7} | {'prefill':^24} | {'decode':^31} | {f'{BATCH} rows':^15} | share of")
    print(f"{'depth':>7} | {against} | {against} {'mean':>6} | {'total':>8} {'x one':>6} | ceiling")
    for depth in map(str, depths):
        cells = [
            f"{found[f'{what}_tps'][depth]:8.1f} "
            + (f"{peer[f'{what}_tps'][depth]:8.1f} {ratio[what][depth]:6.2f}" if peer else f"{'-':>8} {'-':>6}")
            for what in ("prefill", "decode")
        ]
        mean = f"{ratio['decode_mean'][depth]:6.2f}" if peer else f"{'-':>6}"
        batch = f"{found['batch3_decode_tps'][depth]:8.1f} {ratio['batch3'][depth]:6.2f}"
        share = f"{found['ceiling']['decode_share'][depth]:7.2f}"
        print(f"{depth:>7} | {cells[0]} | {cells[1]} {mean} | {batch} | {share}")
    peaks = f"ours {found['peak_rss_bytes'] / 1e6:.0f} MB"
    peaks += f", peer {peer['peak_rss_bytes'] / 1e6:.0f} MB" if peer else ""
    print(
        f"peak memory: {peaks}; weights read for a token: {found['weight_bytes'] / 1e6:.0f} MB; "
        f"memory ceiling: {found['ceiling']['memory_gb_s']:.1f} GB/s"
    )
    if (others := found["others_cpu_share"]) is not None:
        verdict = "a quiet machine" if others <= QUIET else "too busy a machine to compare on"
        print(f"other processes took {others:.0%} of the processor: {verdict}")


def _profile(engine: Engine, depths: Sequence[int], memory: float) -> list[dict[str, Any]]:
    most = Ceilings(
        memory,
        ceilings.products_gflop_s(_product_dtype(engine)),
        ceilings.products_gflop_s(engine.kv_dtype),
    )
    print(f"ceilings: {memory:.1f} GB/s, products {most.products:.0f} GFLOP/s, attention {most.attention:.0f} GFLOP/s")
    found = []
    for depth in depths:
        cache = deep_cache(engine, depth)
        for what, tokens, passes in (("decode step", 1, 15), (f"prefill of {CHUNK}", CHUNK, 3)):
            parts = profile(engine, cache, tokens, most, passes)
            print(f"{what} at depth {depth}\n{HEADINGS}")
            print("\n".join(part.line() for part in parts))
            found.append({"depth": depth, "tokens": tokens, "parts": [part.as_dict() for part in parts]})
    return found


def _product_dtype(engine: Engine) -> torch.dtype:
    """In which many rows are multiplied with the layers' matrices."""
    matrix = engine.decoder.weights.layers[0].gate_up
    return matrix.weight.dtype if isinstance(matrix, Linear) else preferred_dtype()


def _depths(given: str) -> list[int]:
    words = given.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise InputError(f"--depths {given}: numbers of tokens with commas between, like 0,4096,16384")
    return sorted({int(word) for word in words})


def _variant() -> str:
    if native.unavailable():
        return "torch"
    return os.environ.get("MINIMEMO_NATIVE") or native.variants()[-1]


def _peak_rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    sys.exit(main())
