"""What bench.documents asks about files, and how it tells whether the right page or chapter is cited."""

from __future__ import annotations

import json
from bisect import bisect_right
from pathlib import Path

import pytest

from bench import documents
from bench.common.data import DATA, SETS, read_rows
from minimemo.readers import read_document
from tests.conftest import TinyModels

FILES = DATA / "files"


@pytest.mark.skipif(not FILES.exists(), reason="../shared is not here")
def test_questions_about_files_have_the_place_that_holds_the_answer() -> None:
    rows = read_rows(SETS / "documents.jsonl")
    assert [row["file"][:3] for row in rows] == ["epu"] * 10 + ["pdf"] * 15
    of = {name: read_document(FILES / name) for name in {row["file"] for row in rows}}
    for row in rows:
        document = of[row["file"]]
        starts = [place.start for place in document.places]
        place = document.places[bisect_right(starts, document.text.index(row["held"])) - 1]
        assert row["place"] == (place.page or " > ".join(place.heading)), row["id"]
        assert row["answers"] and row["question"].endswith("?")


def test_an_answer_cites_the_right_chapter_or_another(
    tmp_path: Path, tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    chapters = {"Mills": "The mill burned in 1852.", "Ships": "Paper came from Oslo by ship."}
    text = "\n\n".join(f"# {name}\n\n{40 * (text + ' ')}" for name, text in chapters.items())
    (tmp_path / "town.md").write_text(text, encoding="utf-8")
    row = {"file": "town.md", "question": "How many ships are named in the text?", "answers": ["1852"]}
    rows = [{**row, "place": "Ships"}, {**row, "place": "Nowhere"}]
    (tmp_path / "documents.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(documents, "SETS", tmp_path)
    monkeypatch.setattr("minimemo.runtime.defaults", lambda: (str(tiny_models.decoder), str(tiny_models.embedder)))
    result = documents.asked(tmp_path)
    assert result["figures"]["town.md"]["n"] == 2
    for row in result["rows"]:
        assert row["cites"] == (row["place"] in row["cited"])
