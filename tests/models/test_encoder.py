"""The hand-written BERT and XLM-R encoders against transformers, and everything a folder can get wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minimemo.errors import ModelError
from minimemo.models.encoder import Encoder, EncoderConfig

BERT: dict[str, Any] = {
    "model_type": "bert", "num_hidden_layers": 2, "num_attention_heads": 3, "hidden_size": 24, "intermediate_size": 40,
    "vocab_size": 50, "max_position_embeddings": 20, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0,
    "hidden_act": "gelu",
}  # fmt: skip
XLMR = {**BERT, "model_type": "xlm-roberta", "pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5}


def reference(fields: dict[str, Any]) -> Any:
    """The same blueprint in transformers, random weights, biases and norms included (they start as 0 and 1 there)."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    bert = fields["model_type"] == "bert"
    config = (transformers.BertConfig if bert else transformers.XLMRobertaConfig)(**fields)
    model = (transformers.BertModel if bert else transformers.XLMRobertaModel)(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def write(folder: Path, fields: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    (folder / "config.json").write_text(json.dumps(fields))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(("fields", "prefix"), [(BERT, ""), (BERT, "bert."), (XLMR, ""), (XLMR, "roberta.")])
@pytest.mark.parametrize("lengths", [[1], [7], [18], [5, 1, 17, 17]])
def test_equals_transformers(tmp_path: Path, fields: dict[str, Any], prefix: str, lengths: list[int]) -> None:
    model = reference(fields)
    encoder = Encoder.load(write(tmp_path, fields, {prefix + k: v for k, v in model.state_dict().items()}))
    pad, width = fields["pad_token_id"], max(lengths)
    ids = torch.randint(2, 50, (len(lengths), width), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    ids = ids.masked_fill(~mask, pad)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    found = encoder.forward(ids, mask)
    assert found.shape == (len(lengths), width, 24)
    assert (found - expected)[mask].abs().max() < 1e-5
    if bool(mask.all()):
        torch.testing.assert_close(encoder.forward(ids), found, rtol=0, atol=1e-6)


def test_positions_of_the_roberta_family_start_past_the_padding_index(tmp_path: Path) -> None:
    assert EncoderConfig.from_hf(XLMR).position_offset == 2
    assert EncoderConfig.from_hf(XLMR).max_tokens == 18
    assert EncoderConfig.from_hf(BERT).max_tokens == 20
    encoder = Encoder.load(write(tmp_path, XLMR, reference(XLMR).state_dict()))
    with pytest.raises(ModelError, match="19 tokens are more than the encoder's 18"):
        encoder.forward(torch.zeros(1, 19, dtype=torch.long))


def test_half_precision_words_stay_as_stored_and_bfloat16_is_close(tmp_path: Path) -> None:
    tensors = reference(BERT).state_dict()
    exact = Encoder.load(write(tmp_path, BERT, tensors))
    ids = torch.arange(2, 16)[None]
    expected = exact.forward(ids)
    tensors["embeddings.word_embeddings.weight"] = tensors["embeddings.word_embeddings.weight"].half()
    half = Encoder.load(write(tmp_path, BERT, tensors))
    assert half._words.dtype == torch.float16
    assert (half.forward(ids) - expected).abs().max() < 5e-3
    rough = Encoder.load(write(tmp_path, BERT, tensors), dtype=torch.bfloat16).forward(ids)
    assert rough.dtype == torch.float32  # what passes from layer to layer is not rounded
    assert torch.cosine_similarity(rough, expected, dim=-1).min() > 0.9999


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "deberta-v2"}, "model_type 'deberta-v2' is not an encoder known here"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"is_decoder": True}, "is_decoder True"),
        ({"num_attention_heads": 5}, "hidden_size 24 is not a multiple of num_heads 5"),
        ({"num_hidden_layers": 0}, "num_layers must be at least 1"),
        ({"num_hidden_layers": "many"}, "wrong type"),
        ({"layer_norm_eps": 0}, "layer_norm_eps must be positive"),
        ({"model_type": "roberta", "pad_token_id": 40}, "leave no room"),
    ],
)
def test_unknown_settings_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        EncoderConfig.from_hf({**BERT, **change})


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ModelError, match=r"config\.json: field 'vocab_size' is missing"):
        EncoderConfig.from_hf({k: v for k, v in BERT.items() if k != "vocab_size"})


def test_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: no such file"):
        Encoder.load(tmp_path)
    write(tmp_path, BERT, reference(BERT).state_dict())
    weights = tmp_path / "model.safetensors"
    tensors, whole = load_file(weights), weights.read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(ModelError, match=message):
            Encoder.load(tmp_path)

    weights.write_bytes(whole[:-7])
    refused("not a whole safetensors file")
    weights.unlink()
    refused("no such file")
    save_file({k: v for k, v in tensors.items() if "layer.1.output.dense.bias" not in k}, weights)
    refused(r"encoder\.layer\.1\.output\.dense\.bias is missing")
    save_file({"decoder.weight": torch.zeros(2)}, weights)
    refused("no BERT or XLM-R word embeddings")
    save_file({**tensors, "embeddings.LayerNorm.bias": torch.zeros(3)}, weights)
    refused(r"LayerNorm\.bias holds float32 of shape \(3,\), not floating-point numbers of 24")
    (tmp_path / "config.json").write_text("[1]")
    refused("holds no JSON object")
    (tmp_path / "config.json").write_text("{")
    refused("not valid JSON")
