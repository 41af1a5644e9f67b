"""Options of a run: what they set in library and command line, and what is said about wrong ones."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import minimemo
from minimemo import InputError, MemoError, RunOptions, runtime
from minimemo.cli.arguments import main
from tests.conftest import TinyModels
from tests.memories import whole_memory
from tests.tiny import write_model

TEXT = "".join(f"The user number {i} said Hello world, be brief about room {i * 7}.\n\n" for i in range(9))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """The number of threads is the whole process's: given back after each test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("options", "products", "cache"),
    [
        (RunOptions(dtype="float32"), torch.float32, torch.float32),
        (RunOptions(dtype="bfloat16"), torch.bfloat16, torch.bfloat16),
        (RunOptions(dtype="float32", kv_dtype="bfloat16"), torch.float32, torch.bfloat16),
        (RunOptions(dtype="int8", kv_dtype="float32"), torch.int8, torch.float32),
    ],
)
def test_dtypes(options: RunOptions, products: torch.dtype, cache: torch.dtype, tiny_models: TinyModels) -> None:
    engine = minimemo.load_model(tiny_models.decoder, options).engine
    assert (options.product_dtype(), engine.kv_dtype, engine.new_cache(3).dtype) == (products, cache, cache)
    assert engine.decoder.weights.layers[0].qkv(torch.zeros(1, 32)).dtype == torch.float32


def test_threads_are_the_process_s(tiny_models: TinyModels) -> None:
    torch.set_num_threads(2)
    minimemo.load_model(tiny_models.decoder)
    assert torch.get_num_threads() == 2
    minimemo.load_model(tiny_models.decoder, RunOptions(threads=1))
    assert torch.get_num_threads() == 1


def test_command_line_passes_them_on(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The memory is in the dtype of the cache that it was read from; an exact one wants the same again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIMEMO_THREADS", "2")
    Path("doc.txt").write_text(TEXT)
    dtypes = ("--dtype", "float32", "--kv-dtype", "bfloat16")
    assert main(["build", "doc.txt", "--memory", "exact", *tiny_models.options, *dtypes]) == 0
    assert torch.get_num_threads() == 2
    assert minimemo.open("doc.memo").inspect()["memory"]["params"]["dtype"] == "bfloat16"
    ask = ["ask", "doc.memo", "What did user 3 say?", "--mode", "memory", "--max-tokens", "2", *tiny_models.options]
    assert main([*ask, *dtypes, "--threads", "1"]) == 0
    assert torch.get_num_threads() == 1
    capsys.readouterr()
    assert main([*ask, "--dtype", "float32"]) == 1
    assert "the memory is exact in bfloat16" in (said := capsys.readouterr().err) and "kv-dtype bfloat16" in said
    assert main(["summarize", "doc.memo", "--max-tokens", "2", *tiny_models.options, *dtypes]) == 0


def test_library_builds_and_opens_with_them(tiny_models: TinyModels, tmp_path: Path) -> None:
    document, models = minimemo.Document.of(TEXT, "doc"), (tiny_models.decoder, tiny_models.embedder)
    for kv_dtype in ("float32", "bfloat16"):  # another dtype is another memory: it is built again
        options = RunOptions(kv_dtype=kv_dtype)
        memo = minimemo.build(document, tmp_path / "a.memo", model=models[0], embedder=models[1], options=options)
        assert memo.manifest.recipe.params["dtype"] == kv_dtype
    opened = minimemo.open(tmp_path / "a.memo", embedder=models[1], options=RunOptions(kv_dtype="float32"))
    assert whole_memory(opened).dtype == torch.float32
    exact = minimemo.build(
        document, tmp_path / "b.memo", model=models[0], embedder=models[1], memory="exact", options=options
    )
    with pytest.raises(MemoError, match="open it with kv-dtype bfloat16"):
        whole_memory(minimemo.open(exact.folder, embedder=models[1], options=RunOptions(kv_dtype="float32")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float64"}, "dtype 'float64' is unknown; choose one of float32, bfloat16, float16, int8"),
        ({"kv_dtype": "int3"}, "kv-dtype 'int3' is unknown"),
        ({"threads": 0}, "threads must be 1 or more, not 0"),
    ],
)
def test_wrong_ones_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        RunOptions(**arguments)


def test_threads_load_one_generator(tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two loaded copies would each answer some of the questions, at twice the memory."""
    generator = write_model(tmp_path / "generator", seed=7)
    loads, load = [], runtime.load_model

    def slow(*given: object, **more: object) -> runtime.LanguageModel:
        loads.append(given)
        time.sleep(0.1)  # the others come while this one loads
        return load(*given, **more)

    monkeypatch.setattr(runtime, "load_model", slow)
    shared = runtime.Runtime(tiny_models.decoder, generator=generator)
    with ThreadPoolExecutor(4) as pool:
        decoders = list(pool.map(lambda _: shared.second_decoder(), range(4)))
    assert len({id(decoder) for decoder in decoders}) == 1
    assert len(loads) == 1


def test_a_writer_that_is_missing_is_told_once(tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where models are read ahead and again where they are loaded."""
    located = runtime.locate_model(tiny_models.decoder)
    monkeypatch.setattr(runtime, "defaults", lambda: (located.source, None))
    monkeypatch.setattr(runtime, "pulled", lambda: [])
    told: list[str] = []
    models = runtime.Runtime(located, on_event=lambda event: told.append(event.stage))
    models.read_ahead()
    assert models.second_decoder() is None
    assert sum("would answer better" in text for text in told) == 1
