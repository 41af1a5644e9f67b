"""The container of GGUF files: equal to what the library wrote, and one clear error for whatever a stranger sends."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minimemo.errors import ModelError
from minimemo.hub import gguf_file
from minimemo.hub.gguf import convert
from minimemo.models.weights import load_decoder
from tests.hub.test_converted import _tensors, _write_gguf
from tests.tiny import write_model

U64 = 10


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _key(name: str, code: int, value: bytes) -> bytes:
    return _string(name) + struct.pack("<I", code) + value


def _info(name: str, shape: tuple[int, ...], code: int = 0, offset: int = 0) -> bytes:
    return _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, code, offset)


def _file(keys: list[bytes], infos: list[bytes], data: bytes = b"", version: int = 3, align: int = 32) -> bytes:
    head = struct.pack("<4sIQQ", b"GGUF", version, len(infos), len(keys)) + b"".join(keys + infos)
    return head + bytes(-len(head) % align) + data


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "all.gguf"
    writer = GGUFWriter(str(path), "llama")
    values: dict[str, tuple[Any, Any]] = {
        "u8": (writer.add_uint8, 200), "i8": (writer.add_int8, -3), "u16": (writer.add_uint16, 60_000),
        "i16": (writer.add_int16, -300), "u32": (writer.add_uint32, 4_000_000_000), "i32": (writer.add_int32, -70_000),
        "f32": (writer.add_float32, 0.5), "u64": (writer.add_uint64, 2**63 + 1), "i64": (writer.add_int64, -(2**62)),
        "f64": (writer.add_float64, 0.1), "yes": (writer.add_bool, True), "no": (writer.add_bool, False),
        "text": (writer.add_string, "灯塔 é 🌊"), "words": (writer.add_array, ["a", "", "语"]),
        "ints": (writer.add_array, [1, -2, 3]), "floats": (writer.add_array, [0.5, -1.5]),
        "flags": (writer.add_array, [True, False]),
    }  # fmt: skip
    for name, (add, value) in values.items():
        add(name, value)
    generator = np.random.default_rng(3)
    matrix = generator.normal(size=(5, 64)).astype(np.float32)
    cube = generator.normal(size=(2, 3, 4)).astype(np.float16)
    packed = quants.quantize(matrix, GGMLQuantizationType.Q4_1)
    writer.add_tensor("matrix", matrix)
    writer.add_tensor("cube", cube)
    writer.add_tensor("packed", packed, raw_dtype=GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    found = gguf_file.read(path)
    expected = {"general.architecture": "llama"} | {name: value for name, (_, value) in values.items()}
    assert found.metadata == expected
    assert {k: type(v) for k, v in found.metadata.items()} == {k: type(v) for k, v in expected.items()}
    assert found.metadata["flags"][0] is True
    assert [(t.name, t.shape, t.kind) for t in found.tensors] == [
        ("matrix", (64, 5), "F32"), ("cube", (4, 3, 2), "F16"), ("packed", (64, 5), "Q4_1"),
    ]  # fmt: skip
    for tensor, original in zip(found.tensors, (matrix, cube, packed), strict=True):
        assert tensor.data.tobytes() == original.tobytes()
        assert tensor.data.shape[0] == original.size // original.shape[-1]


def test_alignment_and_arrays_of_arrays(tmp_path: Path) -> None:
    """`general.alignment` moves the data; arrays may nest, as the format has it."""
    nested = struct.pack("<IQ", 9, 2) + struct.pack("<IQHH", 2, 2, 1, 2) + struct.pack("<IQ", 8, 1) + _string("x")
    keys = [_key("general.alignment", 4, struct.pack("<I", 64)), _key("deep", 9, nested)]
    (tmp_path / "a.gguf").write_bytes(_file(keys, [_info("t", (2,), 0, 64)], bytes(64) + bytes(range(8)), align=64))
    found = gguf_file.read(tmp_path / "a.gguf")
    assert found.metadata["deep"] == [[1, 2], ["x"]]
    assert found.tensors[0].data.tobytes() == bytes(range(8))


DEEP = b"".join(struct.pack("<IQ", 9, 1) for _ in range(40)) + struct.pack("<IQB", 0, 1, 7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is too short"),
        (b"GGUF", "it is too short"),
        (b"MINIMEMO" * 8, "does not begin with GGUF"),
        (_file([], [], version=1), "version 1; 2 and 3 are known"),
        (_file([], [], version=3 << 24), "little-endian"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**63), "points beyond its end"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 2**63, 0), "points beyond its end"),
        (_file([_key("a", 4, b"")], [], align=1), "points beyond its end"),
        (_file([struct.pack("<Q", 2**64 - 1)], []), "points beyond its end"),
        (_file([_key("a", 8, struct.pack("<Q", 2**40))], []), "points beyond its end"),
        (_file([_key("a", 9, struct.pack("<IQ", 8, 2**61))], []), "points beyond its end"),
        (_file([_key("a", 9, struct.pack("<IQ", U64, 2**61))], []), "points beyond its end"),
        (_file([_key("a", 9, DEEP)], []), "nested deeper than 4"),
        (_file([_key("a", 13, bytes(8))], []), "type 13, which is not known"),
        (_file([_key("a", 8, _string(b"\xff\xfe"))], []), "is not UTF-8"),
        (_file([_key("a", 0, b"\1"), _key("a", 0, b"\2")], []), "key 'a' twice"),
        (_file([_key("general.alignment", 4, bytes(4))], []), "alignment 0"),
        (_file([_key("general.alignment", 8, _string("x"))], []), "alignment 'x'"),
        (_file([], [_info("t", (1,)), _info("t", (1,))], bytes(64)), "tensor 't' twice"),
        (_file([], [_info("t", ())], bytes(64)), "has shape"),
        (_file([], [_info("t", (1,) * 5)], bytes(64)), "has shape"),
        (_file([], [_info("t", (4, 0))], bytes(64)), "has shape"),
        (_file([], [_info("t", (33,), 2)], bytes(64)), "has shape"),
        (_file([], [_info("t", (4,), 99)], bytes(64)), "format 99, which is not known"),
        (_file([], [_info("t", (16,), 0, 32)], bytes(64)), "ends beyond the file"),
        (_file([], [_info("t", (2**62, 4))], bytes(64)), "ends beyond the file"),
        (_file([], [_info("t", (1,), 0, 2**64 - 1)], bytes(64)), "ends beyond the file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_malformed_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        gguf_file.read(path)
    told = str(caught.value)
    assert told.startswith(f"{path}: not a readable GGUF file (") and message in told and told.count("\n") == 0


def test_a_header_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "_MAX_HEADER", 1 << 20)
    path = tmp_path / "long.gguf"
    path.write_bytes(_file([_key("a", 9, struct.pack("<IQ", 0, 1 << 21) + bytes(1 << 21))], []))
    with pytest.raises(ModelError, match="its header exceeds 1 MB"):
        gguf_file.read(path)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.gguf: no such file"):
        gguf_file.read(tmp_path / "none.gguf")
    with pytest.raises(ModelError, match="cannot be read"):
        gguf_file.read(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny quantized model's file."""
    folder = tmp_path_factory.mktemp("whole")
    decoder = load_decoder(write_model(folder / "model"), dtype=torch.float32)
    path = folder / "tiny.gguf"
    _write_gguf(path, decoder.config, _tensors(decoder, llama=True), "llama", kind=GGMLQuantizationType.Q8_0)
    return path


def _header_bytes(content: bytes | bytearray) -> int:
    return content.index(b"blk.1.ffn_norm.weight")  # one of the last tensor infos


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_truncation_is_an_error(whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "cut.gguf"
    content = whole.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1) | st.integers(0, _header_bytes(content)))])
    with pytest.raises(ModelError, match=r"cut\.gguf: not a readable GGUF file"):
        gguf_file.read(path)


@settings(deadline=None, max_examples=70, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_headers_convert_or_are_model_errors(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Bytes of the header overwritten anywhere: nothing but ModelError ever comes out, and quickly."""
    damaged = bytearray(whole.read_bytes())
    header = _header_bytes(damaged)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(4, header))
        patch = data.draw(st.binary(min_size=1, max_size=8))
        damaged[at : at + len(patch)] = patch
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "bad.gguf").write_bytes(damaged)
    try:
        convert(folder / "bad.gguf", folder)
    except ModelError as error:
        assert str(error).startswith(str(folder))


ODD = (-1, 0, 0.5, float("nan"), "", "x", True, 2**63, [], ["a"], [1], [[1]])


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_metadata_of_another_type_converts_or_is_a_model_error(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: object
) -> None:
    """Well-formed files that say something absurd, key by key."""
    metadata, tensors = gguf_file.read(whole)
    for key in metadata:
        changed = gguf_file.GgufFile(metadata | {key: odd}, tensors)
        monkeypatch.setattr("minimemo.hub.gguf.read", lambda path, changed=changed: changed)
        try:
            convert(whole, tmp_path)
        except ModelError as error:
            assert str(error).startswith(str(whole)), key
