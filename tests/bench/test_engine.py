"""The bench of the engine on a tiny model, with a script in the place of llama-bench."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType

from bench import bystanders, ceilings
from bench import engine as bench_engine
from bench.engine_profile import kv_bytes_read
from minimemo.kernels import native
from tests.hub.test_converted import _tensors, _write_gguf
from tests.tiny import tiny_config, tiny_decoder

VOCABULARY = 400  # at least the tokens of the tiny tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file all of whose matrices are quantized."""
    config = replace(tiny_config(vocab_size=VOCABULARY), intermediate_size=64)
    path = tmp_path_factory.mktemp("bench") / "tiny.gguf"
    _write_gguf(path, config, _tensors(tiny_decoder(config), False), "qwen2", kind=GGMLQuantizationType.Q8_0)
    return path


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ceilings of a machine that is known, few tokens, and torch's threads as they were."""
    monkeypatch.setattr(ceilings, "memory_gb_s", lambda: 20.0)
    monkeypatch.setattr(ceilings, "products_gflop_s", lambda dtype: 500.0)
    monkeypatch.setattr(bench_engine, "CHUNK", 40)
    monkeypatch.setattr(bench_engine, "STEPS", 4)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _llama_bench(folder: Path, body: str = "") -> Path:
    """Writes a script that notes its calls and answers like llama-bench: the number of the call is its speed."""
    folder.mkdir(exist_ok=True)
    script = folder / "llama-bench"
    script.write_text(
        f"""#!/bin/sh
{body}
echo "$LD_LIBRARY_PATH|$*" >> {folder}/calls
speed=$(wc -l < {folder}/calls).0
while [ $# -gt 0 ]; do [ "$1" = -d ] && depth=$2; shift; done
echo 'not json'
for shape in '"n_prompt": 40, "n_gen": 0' '"n_prompt": 0, "n_gen": 4'; do
  echo '{{"build_number": 7, "build_commit": "abc",' "$shape, \\"n_depth\\": $depth, \\"avg_ts\\": $speed}}"
done
"""
    )
    script.chmod(0o755)
    return script


def _main(model: Path, *more: str) -> int:
    return bench_engine.main(["--model", str(model), "--depths", "9,0", "--threads", "1", "--json", *more])


def _json(text: str) -> dict[str, Any]:
    return json.loads(text.splitlines()[-1])


def test_against_the_peer(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "libx.so").touch()  # a library beside the program
    script = _llama_bench(tmp_path)
    assert _main(model, "--peer", "llamacpp", "--llama-bench", str(script), "--repeat", "3") == 0
    out = capsys.readouterr().out
    found = _json(out)

    calls = (tmp_path / "calls").read_text().splitlines()
    options = f"-m {model} -t 1 -fa 1 -p 40 -n 4 -d {{}} -r 1 -o jsonl"
    assert [call.split("|")[1] for call in calls] == [options.format(depth) for depth in (0, 9) * 3]
    assert all(call.split("|")[0].split(":")[0] == str(tmp_path) for call in calls)

    peer, ratio = found["peer"], found["ratio"]
    assert peer["name"] == "llama.cpp 7 (abc)"
    assert peer["prefill_tps"] == peer["decode_tps"] == {"0": 3.0, "9": 4.0}  # medians of 1, 3, 5 and of 2, 4, 6
    # A shell's peak, not that of the process with torch in it which started it.
    assert 0 < peer["peak_rss_bytes"] < 50e6 < found["peak_rss_bytes"]
    for depth in ("0", "9"):
        assert found["prefill_tps"][depth] > 0 and found["batch3_decode_tps"][depth] > 0
        for what, ours in (("prefill", "prefill_tps"), ("decode", "decode_tps"), ("decode_mean", "decode_mean_tps")):
            theirs = peer["prefill_tps" if what == "prefill" else "decode_tps"][depth]
            assert ratio[what][depth] == pytest.approx(found[ours][depth] / theirs)
        assert ratio["batch3"][depth] == pytest.approx(found["batch3_decode_tps"][depth] / found["decode_tps"][depth])
    assert 0 <= found["others_cpu_share"] <= 1
    assert (found["model"], found["threads"]) == (str(model), 1)
    assert f"{ratio['prefill']['9']:.2f}" in next(line for line in out.splitlines() if line.split()[0] == "9")


def test_share_of_the_ceiling(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(model, "--repeat", "1") == 0
    found = _json(capsys.readouterr().out)
    assert found["peer"] is None and found["ratio"]["prefill"] == {}
    config = replace(tiny_config(vocab_size=VOCABULARY), intermediate_size=64)
    element = getattr(torch, found["kv_dtype"]).itemsize
    assert found["weight_bytes"] >= config.matmul_parameters()  # codes of 8 bits, and their scales
    for depth, share in found["ceiling"]["decode_share"].items():
        read = found["weight_bytes"] + (int(depth) + 1 + 2 + 1) * config.kv_bytes_per_token(element)
        assert share == pytest.approx(read * found["decode_tps"][depth] / 20e9)


def test_profile(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(model, "--repeat", "1", "--profile") == 0
    found = _json(capsys.readouterr().out)
    assert [(one["depth"], one["tokens"]) for one in found["profile"]] == [(0, 1), (0, 40), (9, 1), (9, 40)]
    for one in found["profile"]:
        *parts, whole = one["parts"]
        ops = [part["op"] for part in parts]
        assert ops == ["qkv", "attention", "out", "gate_up", "down", "head", "rest"]
        assert sum(part["ms"] for part in parts) == pytest.approx(whole["ms"])
        for part in parts[:-1]:
            memory = one["tokens"] == 1 or part["op"] == "head"
            assert part["unit"] == ("GB/s" if memory else "GFLOP/s")
            assert part["ceiling_share"] == pytest.approx(part["rate"] / (20 if memory else 500))
    work = {part["op"]: part["rate"] * part["ms"] for part in found["profile"][3]["parts"][:-2]}  # 1e6 operations
    assert work["down"] == pytest.approx(2e-6 * 40 * 32 * 64 * 2)  # tokens, shape, layers
    assert work["attention"] == pytest.approx(4e-6 * sum(range(10, 50)) * 4 * 16 * 2)  # keys seen, heads, dims, layers


def test_a_packed_memory(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--repeat", "1", "--profile", "--kv-dtype", "int8", "--depths", "128")  # two groups of 64 tokens
    assert _main(model, *more) == 0
    found = _json(capsys.readouterr().out)
    assert found["kv_dtype"] == "int8"
    # A byte a number, two halves for 64 numbers of a channel's keys and two for the 16 of a token's values.
    numbers = (128 + 1 + 2 + 1) * replace(tiny_config(vocab_size=VOCABULARY), intermediate_size=64).kv_bytes_per_token(
        1
    )
    read = found["weight_bytes"] + numbers * (1 + (4 / 64 + 4 / 16) / 2)
    assert found["ceiling"]["decode_share"]["128"] == pytest.approx(read * found["decode_tps"]["128"] / 20e9)
    assert {part["op"] for part in found["profile"][0]["parts"]} > {"attention", "head"}


def test_a_window_bounds_what_is_read() -> None:
    config = replace(tiny_config(), windows=(8, None))
    assert kv_bytes_read(config, 99, 2) == 2 * 2 * 16 * 2 * (8 + 100)
    assert kv_bytes_read(config, 3, 2) == 2 * 2 * 16 * 2 * (4 + 4)


def test_what_others_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 processor seconds, 24 were busy (2 of them taken by the host) and 4 of those ours."""
    stat, ticks, used = tmp_path / "stat", os.sysconf("SC_CLK_TCK"), [1.0, 0.5, 2.0, 0.5, 99.0]
    monkeypatch.setattr(bystanders, "_STAT", stat)
    monkeypatch.setattr(bystanders.os, "times", lambda: used)
    assert bystanders.Bystanders().share() is None
    stat.write_text("cpu " + " ".join(["0"] * 10))
    counter = bystanders.Bystanders()
    stat.write_text(
        "cpu " + " ".join(str(seconds * ticks) for seconds in (12, 3, 5, 10, 6, 1, 1, 2, 7, 7)) + "\ncpu0 1"
    )
    used[:4] = [2.0, 1.0, 4.0, 1.0]
    assert counter.share() == pytest.approx((24 - 4) / 40)


def test_the_variant_is_the_one_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.unavailable():
        pytest.skip("no native kernels")
    monkeypatch.delenv("MINIMEMO_NATIVE", raising=False)
    assert bench_engine._variant() == native.variants()[-1]
    monkeypatch.setenv("MINIMEMO_NATIVE", "portable")
    assert bench_engine._variant() == "portable"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "no-such-model"], "no-such-model: no such model"),
        (["--depths", "0,x"], "--depths 0,x: numbers"),
        (["--depths", "-1"], "--depths -1: numbers"),
        (["--repeat", "0"], "--repeat 0: at least 1"),
        (
            ["--peer", "llamacpp", "--llama-bench", "no-such-program"],
            "no-such-program: no such program (--llama-bench)",
        ),
        (["--peer", "llamacpp"], "llama-bench: no such program (PATH)"),
    ],
)
def test_mistakes_are_one_line(
    model: Path, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LLAMA_BENCH", raising=False)
    monkeypatch.setenv("PATH", "")
    assert bench_engine.main(["--model", str(model), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"bench: {says}") and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("echo warning >&2; echo 'no memory' >&2; exit 3", "failed (3): no memory"),
        ("exit 0", "no results of a prefill"),
    ],
)
def test_a_peer_that_fails(
    model: Path,
    tmp_path: Path,
    body: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LLAMA_BENCH", str(_llama_bench(tmp_path / "peer", body)))
    assert _main(model, "--peer", "llamacpp") == 2
    captured = capsys.readouterr()
    assert captured.out == "" and says in captured.err.splitlines()[-1]


def test_the_peer_needs_a_gguf_file(
    tiny_models: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLAMA_BENCH", sys.executable)
    assert bench_engine.main(["--model", str(tiny_models.decoder), "--peer", "llamacpp"]) == 2
    assert "needs a GGUF file" in capsys.readouterr().err


def test_the_ceilings_are_of_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes read and operations made, over the seconds of the quickest try."""
    monkeypatch.undo()
    runs: list[object] = []

    def least(candidates: Sequence[Callable[[], object]], seconds: float) -> float:
        runs.extend(run() for run in candidates)
        return 2.0

    monkeypatch.setattr(ceilings, "_least", least)
    monkeypatch.setattr(ceilings, "_last_level_cache", lambda: 1)
    assert ceilings.memory_gb_s() == (256 << 20) / 2e9
    assert runs == [256 << 18, 1]  # the sum and the maximum of ones
    for dtype in (torch.int8, torch.bfloat16, torch.float32):
        assert ceilings.products_gflop_s(dtype) == pytest.approx(512 * 2048 * 2048 / 1e9)
