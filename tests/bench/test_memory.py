"""The bench of memories on a tiny model and a tiny library."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from bench.common.data import document_text
from bench.common.kept import Kept
from bench.common.scores import holds
from bench.memory import __main__ as command
from bench.memory.samples import FOLLOW, Asked, Library, document_sample, haystack_samples, spread
from bench.memory.stats import Cost, Divergence, Outcome, divergence, tier_row
from bench.memory.workbench import Workbench, digest
from minimemo.errors import InputError
from minimemo.memo.calibrate import calibrate
from minimemo.memory.codec import ExactCodec
from minimemo.memory.int4 import Int4Codec
from minimemo.memory.tiers import needs_profile
from minimemo.runtime import LanguageModel, RunOptions, load_model
from tests.conftest import TinyModels

TOKENS = 300
LINE = "The keeper of light {n} wrote the number {n} into the book of the tower.\n\n"
ZH_LINE = "第{n}座灯塔的看守人把数字{n}写进了书里。\n"


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two novels and an essay in English, passages, a novel without questions in Chinese; needles in both."""
    folder = tmp_path_factory.mktemp("data")
    docs = [
        ("novel_a", "en", "novel", 40), ("novel_b", "en", "novel", 60), ("novel_c", "en", "novel", 4),
        ("essay", "en", "essays", 400), ("joined_x", "zh", "wiki-concat", 60), ("hay_zh", "zh", "novel", 400),
    ]  # fmt: skip
    (folder / "docs").mkdir()
    for doc_id, lang, _, lines in docs:
        text = "".join((ZH_LINE if lang == "zh" else LINE).format(n=n) for n in range(lines))
        (folder / "docs" / f"{doc_id}.txt").write_text(text, encoding="utf-8")
    _write(
        folder / "docs.jsonl",
        [{"doc_id": d, "lang": lang, "kind": kind, "approx_tokens": 40 * n} for d, lang, kind, n in docs],
    )

    def question(number: int, doc: str, lang: str, span: list[int], type_: str = "extractive") -> dict[str, Any]:
        return {"id": f"{doc}-{number}", "doc_id": doc, "question": f"Which {number}?", "answers": [str(number)],
                "lang": lang, "type": type_, "answer_span": span}  # fmt: skip

    _write(
        folder / "qa" / "set.jsonl",
        [question(n, "novel_a", "en", [20 + 10 * n, 21 + 10 * n]) for n in range(8)]
        + [question(8, "novel_a", "en", [1500, 1510]), question(9, "novel_a", "en", [1, 2], "gist")]
        + [question(0, doc, "en", [1, 2]) for doc in ("novel_b", "novel_c")]
        + [question(n, "joined_x", "zh", [n, n + 1]) for n in range(3)],
    )
    for lang, needle in (("en", "Secret {n} is blue as the sea at noon."), ("zh", "秘密{n}是蓝得像正午的海。")):
        _write(
            folder / "needle" / f"needles_{lang}.jsonl",
            [
                {"id": f"{lang}-{n}", "needle": needle.format(n=n), "question": f"Secret {n}?", "answers": ["blue"],
                 **({"group": "pair"} if n in (1, 2) else {})}
                for n in range(9)
            ],
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def library(data: Path) -> Library:
    return Library.open(data)


@pytest.fixture(scope="module")
def model(tiny_models: TinyModels) -> LanguageModel:
    return load_model(tiny_models.decoder, RunOptions(dtype="float32"))


@pytest.fixture
def bench(model: LanguageModel, tmp_path: Path) -> Workbench:
    return Workbench(model, Kept(str(tmp_path / "kept")), torch.float32, max_tokens=4)


# statistics


def test_divergence_by_hand() -> None:
    exact = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    found = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    result = divergence(exact, found)
    expected = 0.75 * math.log(0.75 * (1 + math.e)) + 0.25 * math.log(0.25 * (1 + math.e) / math.e)
    assert result.kl == pytest.approx([0.0, expected], abs=1e-7)  # logits are float32
    assert result.same == [True, False]


def test_divergence_of_many_rows_is_that_of_each() -> None:
    random = torch.Generator().manual_seed(0)
    exact, found = (torch.randn(150, 7, generator=random) for _ in range(2))
    whole = divergence(exact, found)
    single = [divergence(exact[n : n + 1], found[n : n + 1]).kl[0] for n in range(150)]
    assert whole.kl == pytest.approx(single) and min(whole.kl) > 0


@pytest.mark.parametrize(
    ("reply", "answers", "held"),
    [
        ("It was Pittard Sullivan.", ["Pittard Sullivan"], True),
        ("sullivan pittard", ["Pittard Sullivan"], False),
        ("in 1970s and", ["x", "1970s"], True),
        ("19700", ["1970"], False),
        ("他住在奇穆王国里", ["奇穆王国"], True),
        ("", [""], False),
    ],
)
def test_holds(reply: str, answers: list[str], held: bool) -> None:
    assert holds(reply, answers) is held


def test_a_row_by_hand() -> None:
    needles = [Asked(f"n{n}", "needle", "?", ("blue",)) for n in range(4)]
    asked = (*needles, Asked("a0", "answer", "?", ("one two",)), Asked("a1", "answer", "?", ("red",)))
    right = {"n0": "blue", "n1": "blue sky", "n2": "blue", "n3": "red", "a0": "one two", "a1": "red"}
    said = {"n0": "blue", "n1": "green", "n2": "it is blue", "n3": "blue", "a0": "one", "a1": "red"}
    cost = Cost(100, 2000, 500, 400, 10.0, 1.0, 0.5)
    slow = replace(cost, tokens=300, elements=6000, file_bytes=1100, payload_bytes=1000)
    exact = [Outcome("x", cost, asked=asked, replies=right), Outcome("y", slow)]
    found = tier_row(
        "t",
        [
            Outcome(
                "x", cost, Divergence([0.1, 0.3], [True, False]), asked, said, Divergence([0.4, 0.6], [True, True])
            ),
            Outcome("y", slow, Divergence([0.0, 0.0], [True, True])),
        ],
        exact,
    )
    wanted = {
        "name": "t", "bits": 8 * 1400 / 8000, "bytes_per_token": 4.0, "ratio": 10.0, "kl": 0.1, "top1": 0.75,
        "kl_p99": 0.3, "kl_again": 0.5,
        "needle": 2 / 3, "needles_found": 3, "needles": 4, "answers_f1": (2 / 3 + 1) / 2, "answers": 2,
        "answers_f1_share": (2 / 3 + 1) / 2, "load_x_prefill": 20.0, "encode_share": 0.1, "prefill_tps": 20.0,
        "load_tps": 400.0,
    }  # fmt: skip
    assert found.pop("share_low") == pytest.approx(2 / 3) and found.pop("share_high") == pytest.approx(1.0)
    assert found.pop("kl_of") == pytest.approx({"x": 0.2, "y": 0.0})
    assert found == {k: v if isinstance(v, str) else pytest.approx(v) for k, v in wanted.items()}


def test_a_row_of_nothing_asked_says_so() -> None:
    only = [Outcome("x", Cost(1, 2, 1, 1, 1.0, 1.0, 1.0))]
    found = tier_row("t", only, only)
    for name in ("kl", "kl_p99", "kl_again", "top1", "needle", "answers_f1", "answers_f1_share"):
        assert found[name] is None


# samples


def test_which_documents(library: Library) -> None:
    """The shortest long enough of each group; haystacks and short ones are not measured."""
    assert library.measured(TOKENS) == ["novel_a", "joined_x"]
    assert library.measured(1500) == ["novel_b", "joined_x"]
    assert library.haystack("en") == "essay" and library.haystack("zh") == "hay_zh"


def test_a_document_and_its_questions(library: Library, model: LanguageModel) -> None:
    sample = document_sample(library, "novel_a", model.tokenizer, TOKENS, questions=100)
    assert len(sample.ids) == TOKENS and len(sample.follow) == FOLLOW
    text = (library.folder / "docs" / "novel_a.txt").read_text(encoding="utf-8")
    assert text.startswith(model.tokenizer.decode([*sample.ids[sample.opening :], *sample.follow]))
    coded = model.tokenizer.decode(sample.ids[sample.opening :])
    inside = [n for n in range(8) if 21 + 10 * n <= len(coded)]
    assert inside and [asked.id for asked in sample.asked] == [f"novel_a-{n}" for n in inside]
    assert len(document_sample(library, "novel_a", model.tokenizer, TOKENS, questions=2).asked) == 2


def test_spread() -> None:
    assert spread("abcdefgh", 3) == ["a", "c", "f"] and spread("ab", 3) == ["a", "b"] and spread("ab", 0) == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_needles_lie_whole_at_even_depths(library: Library, model: LanguageModel, language: Any) -> None:
    samples = haystack_samples(library, language, model.tokenizer, 420, 2)
    first = [sample for sample in samples if sample.asked[0].id.endswith("/0")]
    second = [asked.text for sample in samples[len(first) :] for asked in sample.asked]
    assert second == [f"Secret {n}?" for n in (5, 6, 7, 8, 0, 1, 3, 4)]
    assert len({asked.id for sample in samples for asked in sample.asked}) == 16
    samples = first
    assert len(samples) > 1 and all(len(sample.ids) == 420 for sample in samples)
    questions = [asked.text for sample in samples for asked in sample.asked]
    assert questions == [f"Secret {n}?" for n in range(9) if n != 2]  # 1 and 2 are asked for together
    at = []
    for sample in samples:
        text = model.tokenizer.decode(sample.ids[sample.opening :])
        needle = "Secret {n} is blue as the sea at noon.\n\n" if language == "en" else "秘密{n}是蓝得像正午的海。\n\n"
        places = [text.find(needle.format(n=n)) for n in range(9)]
        found = [place / len(text) for place in places if place >= 0]
        assert found == sorted(found) and len(found) >= len(sample.asked)
        at += found
    assert len(at) == 9 and min(at) < 0.3 and max(at) > 0.6


def test_what_cannot_be_sampled(library: Library, model: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such document"):
        document_sample(library, "nobody", model.tokenizer, TOKENS)
    with pytest.raises(InputError, match="lower --tokens"):
        document_sample(library, "novel_c", model.tokenizer, TOKENS)
    with pytest.raises(InputError, match="too short a haystack"):
        haystack_samples(library, "en", model.tokenizer, 40_000)
    with pytest.raises(InputError, match=r"docs\.jsonl: cannot be read"):
        Library.open(tmp_path)


# one sample through codecs


def test_the_exact_cache_is_itself(bench: Workbench, library: Library) -> None:
    sample = document_sample(library, "novel_a", bench.model.tokenizer, TOKENS, questions=3)
    coarse = Int4Codec(bench.layout, sinks=0, key_group=256, value_group=32)
    codecs = {"exact": ExactCodec(bench.layout), "coarse": coarse}
    found = bench.measure(sample, codecs, on_outcome=lambda _: None)
    exact, lossy = found["exact"], found["coarse"]
    assert list(found) == ["exact", "coarse"]
    assert exact.follow is not None and set(exact.follow.kl) == {0.0} and all(exact.follow.same)
    assert lossy.follow is not None and len(lossy.follow.kl) == FOLLOW and sum(lossy.follow.kl) > 0
    assert list(exact.replies) == list(lossy.replies) == [asked.id for asked in sample.asked]
    layers, heads, _, dim = bench.layout.shape(0)
    assert exact.cost.elements == 2 * layers * heads * dim * TOKENS
    assert 0 < lossy.cost.payload_bytes < lossy.cost.file_bytes < exact.cost.file_bytes


def test_the_loaded_cache_is_the_prefilled_one(bench: Workbench, library: Library) -> None:
    sample = document_sample(library, "joined_x", bench.model.tokenizer, TOKENS)
    cache, _ = bench.through(bench.prefilled(sample.ids), ExactCodec(bench.layout))
    hot = bench.engine.new_cache(TOKENS)
    for _ in bench.engine.read(hot, list(sample.ids)):
        pass
    assert digest(cache) == digest(hot)
    logits = bench.logits(cache, sample.follow)
    assert cache.length == TOKENS and logits.shape == (FOLLOW, bench.engine.config.vocab_size)
    one_by_one = torch.cat([bench.engine.prefill(cache, [token]).clone() for token in sample.follow[:3]])
    assert torch.allclose(logits[:3], one_by_one, atol=1e-4)
    with torch.inference_mode():
        cache.keys[0, 0, 5, 0] += 1
    assert digest(cache) != digest(hot)


def test_what_is_known_is_not_computed_again(
    bench: Workbench, library: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor is anything of it taken for another codec's."""
    sample = document_sample(library, "novel_a", bench.model.tokenizer, TOKENS, questions=3)
    codecs = {"int4": Int4Codec(bench.layout)}
    first = bench.measure(sample, codecs, on_outcome=lambda _: None)

    def forward(*_: object, **__: object) -> Iterator[None]:
        raise AssertionError("the model ran")

    with monkeypatch.context() as patch:
        patch.setattr(bench.engine.decoder, "forward", forward)
        again = bench.measure(sample, codecs, on_outcome=lambda _: None)
        with pytest.raises(AssertionError, match="the model ran"):
            bench.measure(sample, {"int4": Int4Codec(bench.layout, sinks=0)}, on_outcome=lambda _: None)
        with pytest.raises(AssertionError, match="the model ran"):
            stale = Workbench(bench.model, Kept(str(tmp_path / "kept"), fresh=True), torch.float32, max_tokens=4)
            stale.measure(sample, codecs, on_outcome=lambda _: None)
    for name in first:
        assert replace(again[name], cost=first[name].cost) == first[name]


def test_a_stop_leaves_nothing_half_kept(bench: Workbench, tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.kept("x", [1], stop)
    assert list((tmp_path / "kept").iterdir()) == []
    assert bench.kept("x", [1], lambda: {"é": 1}) == {"é": 1}


# the command


def _main(tiny_models: TinyModels, data: Path, *more: str) -> int:
    return command.main(["--model", str(tiny_models.decoder), "--data", str(data), "--dtype", "float32", *more])


def test_the_whole_command(
    tiny_models: TinyModels, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path))  # without the profile that other tests find
    monkeypatch.setattr(command, "ROUNDS", 1)
    monkeypatch.setattr(command, "Workbench", partial(Workbench, max_tokens=3))
    assert _main(tiny_models, data, "--tokens", str(TOKENS + 120)) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert found["documents"] == ["novel_a", "joined_x"]
    rows = {r["name"]: r for r in found["rows"]}
    assert list(rows) == [name for name in command.NAMES if not needs_profile(name)]
    assert len(lines) >= len(rows) + 3 and found["profile"] is None
    assert rows["exact"]["kl"] == 0 and rows["exact"]["needles"] == 2 * 8 and rows["exact"]["answers"] > 3
    assert rows["int4"]["ratio"] > rows["q8_0"]["ratio"] > 1
    assert rows["fp16"]["kl"] < rows["q8_0"]["kl"] < rows["q4_0"]["kl"]
    assert rows["kivi4"]["kl"] < rows["kivi3"]["kl"] < rows["kivi2"]["kl"]
    assert rows["turbo3"]["kl"] < rows["turbo2"]["kl"]


def test_tiers_of_a_calibrated_model(
    tiny_models: TinyModels, data: Path, model: LanguageModel, library: Library, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path))
    profile = calibrate(model, [document_text(library.folder, "novel_b", 10_000)], tokens=1500)
    assert _main(tiny_models, data, "--tokens", str(TOKENS), "--no-needles", "--tiers", "high,small") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    exact, high, small = found["rows"]
    assert found["profile"] == profile.hash
    assert [r["name"] for r in found["rows"]] == ["exact", "high", "small"]
    assert 0 == exact["kl"] < high["kl"] < small["kl"] and exact["ratio"] < high["ratio"] < small["ratio"]


def test_quick_with_a_plot(
    tiny_models: TinyModels, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "p.png"
    assert _main(tiny_models, data, "--quick", "--tiers", "int4,kivi2", "--plot", str(picture)) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["tokens"] == 1024 and found["documents"] == ["novel_a", "joined_x"]
    assert [r["name"] for r in found["rows"]] == ["exact", "int4", "kivi2"]
    assert found["rows"][1]["kl"] > 0 and found["rows"][1]["needle"] is None
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_cannot_be_is_refused_before_anything_is_measured(
    tiny_models: TinyModels, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It was found out after the last document, and the table was lost with it."""
    monkeypatch.setattr(command, "load_model", lambda *_: pytest.fail("measured"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert _main(tiny_models, data, "--plot", str(tmp_path / "p.png")) == 2
    assert "pip install" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", ModuleType("matplotlib"))
    assert _main(tiny_models, data, "--plot", str(tmp_path / "no" / "p.png")) == 2
    assert "is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--tiers", "int4,nine"], "--tiers nine: unknown; choose from exact,int4"),
        (["--tokens", "0"], "--tokens 0"),
        (["--docs", "nobody"], "nobody: no such document"),
        (["--docs", "novel_b", "--tokens", "100000"], "novel_b: "),
        (
            ["--tiers", "small,int4"],
            "small: {model} has no profile; make one: minimemo calibrate {model}\n",
        ),
    ],
)
def test_what_cannot_be_measured(
    tiny_models: TinyModels, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path))
    assert _main(tiny_models, data, *arguments) == 2
    captured = capsys.readouterr()
    says = says.format(model=tiny_models.decoder)
    assert captured.out == "" and captured.err.startswith(f"bench.memory: {says}") and captured.err.count("\n") == 1
