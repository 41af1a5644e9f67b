"""The device that a run takes: what is said of a GPU that is there, that is not, or that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import minimemo
from minimemo import InputError, RunOptions
from minimemo.cli.arguments import main
from minimemo.engine import engine as engines
from minimemo.kernels import triton
from minimemo.models import device
from minimemo.models.weights import dense_dtype
from minimemo.search.embedder import Embedder
from tests.conftest import TinyModels
from tests.tiny import tiny_decoder

GIB = 1 << 30


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes torch tell of GPUs of a capability, of no device that really computes."""

    def make(*capability: int, count: int = 1, has_triton: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: f"Test GPU {index}")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index=0: (3 * GIB, 8 * GIB))
        monkeypatch.setattr(triton, "installed", lambda: has_triton)

    return make


def test_auto_takes_a_gpu_that_the_kernels_serve(gpu: Callable[..., None]) -> None:
    gpu(8, 9)
    found = RunOptions().place()
    assert (found.name, found.title, found.note) == ("cuda:0", "Test GPU 0 (8.9)", "")
    assert RunOptions(device="cpu").place().name == "cpu"
    assert RunOptions().product_dtype() == RunOptions().cache_dtype() == torch.bfloat16


def test_auto_says_why_a_gpu_that_is_there_is_unused(gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(7, 5)
    found = device.choose()
    assert found.name == "cpu"
    assert found.note == "the GPU is not used: Test GPU 0: has compute capability 7.5, kernels here need 8.0"
    gpu(9, 0, has_triton=False)
    assert "triton is not installed: pip install" in device.choose().note
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "_driver", lambda: True)
    assert "the GPU is not used" in device.choose().note  # a torch for CPUs beside a driver
    monkeypatch.setattr(device, "_driver", lambda: False)
    assert device.choose().note == ""  # nothing to say where there is none


def test_before_ampere_a_gpu_is_taken_when_asked_for_in_float16(gpu: Callable[..., None]) -> None:
    gpu(7, 5)
    options = RunOptions(device="cuda")
    assert options.place().name == "cuda:0" and dense_dtype("cuda:0") == torch.float16
    assert options.product_dtype() == options.cache_dtype() == torch.float16
    gpu(7, 0)
    with pytest.raises(InputError, match=r"capability 7\.0, kernels here need 7\.5; or leave it to the CPU"):
        options.place()


def test_one_that_is_not_there_is_said_with_its_mend(gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="device 'gpu' is unknown; choose one of auto, cpu, cuda, or cuda:1"):
        RunOptions(device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"device cuda: .*; or leave it to the CPU with `device=cpu`"):
        device.choose("cuda")
    gpu(8, 0, count=2)
    assert device.choose("cuda:1").title == "Test GPU 1 (8.0)"
    with pytest.raises(InputError, match="the GPUs here are cuda:0 to cuda:1"):
        device.choose("cuda:2")


def test_float16_is_for_a_gpu(gpu: Callable[..., None]) -> None:
    for options in (RunOptions(dtype="float16", device="cpu"), RunOptions(kv_dtype="float16", device="cpu")):
        with pytest.raises(InputError, match="float16 is for a GPU; on a CPU take bfloat16"):
            options.place()
    gpu(9, 0)
    assert RunOptions(dtype="float16").cache_dtype() == torch.float16


def test_decoder_and_embedder_follow(tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor of both, and the caches, on the device that was chosen: here one that holds shapes alone."""
    meta = device.Device("meta", "shapes alone")
    monkeypatch.setattr("minimemo.runtime.choose", lambda wanted: meta)
    engine = minimemo.load_model(tiny_models.decoder).engine
    layer, cache = engine.decoder.weights.layers[0], engine.new_cache(64)
    assert {x.device.type for x in (layer.mlp_norm, cache.keys, cache.values)} == {"meta"}
    assert {x.device.type for x in (layer.qkv.weight, engine.decoder.weights.embedding.weight)} == {"meta"}
    engine.extend(cache, [1, 2, 3])
    assert cache.length == 3
    encoder = minimemo.open_embedder(tiny_models.embedder).embedder.encoder
    assert encoder.forward(torch.zeros(1, 5, dtype=torch.long, device="meta")).device.type == "meta"


def test_vectors_come_back_from_where_they_were_made(tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids and masks go to the encoder's device; a batch with padding and one without."""
    embedder = Embedder.load(tiny_models.embedder, device="cpu")
    seen: list[torch.device] = []
    forward = type(embedder.encoder).forward

    def spy(self: object, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(ids.device)
        return forward(embedder.encoder, ids, mask)

    monkeypatch.setattr(type(embedder.encoder), "forward", spy)
    assert embedder.embed_passages(["one", "one two three"]).shape == (2, embedder.dim)
    assert seen == [embedder.encoder.device]


def test_no_room_for_a_cache_says_how_much_would_fit(gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engines.Engine(tiny_decoder(), kv_dtype=torch.float16)

    def refuse(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(engines, "KVCache", refuse)
    gpu(8, 0)
    c = engine.config
    bytes_of_token = 2 * 2 * c.num_layers * c.num_kv_heads * c.head_dim
    tokens = 6 * GIB // bytes_of_token
    with pytest.raises(InputError, match=r"^GPU memory: a cache of .* tokens takes 6\.\d GB") as told:
        engine.new_cache(tokens)
    assert f"about {tokens // 2 // 256 * 256:,} tokens fit: take `kv_dtype=int8`" in str(told.value)


def test_the_command_line_tells_the_device(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("doc.txt").write_text("The user said hello.\n" * 9)
    models = tiny_models.options
    assert main(["build", "doc.txt", "--memory", "exact", "-v", "--device", "cpu", *models]) == 0
    assert "device: cpu, CPU, " in capsys.readouterr().err
    monkeypatch.setenv("MINIMEMO_DEVICE", "cpu")
    assert main(["ask", "doc.memo", "Who said hello?", "--mode", "rag", "--max-tokens", "2", "--json", *models]) == 0
    out, err = capsys.readouterr()
    assert '"device": {"name": "cpu"' in out and "device:" not in err
    assert main(["inspect", "doc.memo", "--json"]) == 0
    assert '"device": {"name": "cpu"' in capsys.readouterr().out
    monkeypatch.setenv("MINIMEMO_DEVICE", "tpu")
    assert main(["ask", "doc.memo", "Who?", *models]) == 2
    assert "device 'tpu' is unknown; choose one of auto, cpu, cuda" in capsys.readouterr().err
