"""Reads files that people have and measures what came out.

    python -m bench.documents --files ../shared/data/files
    python -m bench.documents --files ../shared/data/files --questions

For every file its verdict, characters, pages and seconds a page. For a PDF with text also: milliseconds of CPU a page
beside PDFium's own; lines drawn at random from what PDFium says, looked for as quotations: how many stand in the text,
on the right page; words still broken where a line ended, against the document's own other words; running heads left.

--questions: asks those of bench/data/documents.jsonl with the default models, and tells of each answer whether a
passage that it cites stands on the right page or in the right chapter, whether all do, and its F1. Memos and
answers are kept in minimemo's cache folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import statistics
import sys
import time
import unicodedata
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from typing import Any

import pypdfium2 as pdfium

import minimemo
from bench.answers.runner import code_version
from bench.common import report
from bench.common.data import SETS, read_rows
from bench.common.kept import Kept
from bench.common.scores import f1
from minimemo.errors import MinimemoError
from minimemo.files import cache_dir
from minimemo.readers import pdf, read_document
from minimemo.readers.prose import Line, Mark, Page, prose
from minimemo.text.document import Document
from minimemo.text.scripts import is_cjk

LINES = 50  # drawn from each PDF
COLUMNS = (
    ("file", "<38.38"), ("verdict", "<9"), ("chars", "7,"), ("pages", "5"), ("s/page", "6.2f"), ("ms/page", "7.1f"),
    ("PDFium", "6.1f"), ("quoted", "<7"), ("broken", "<9"), ("heads", "5"), ("says", "<"),
)  # fmt: skip
_PRINTED_TWICE = re.compile(r"(.{4,}) ?\1$")  # how PDFium says what is printed twice to look bold


def main(arguments: Sequence[str] | None = None) -> int:
    made = report.parser(__doc__, "bench.documents")
    made.add_argument("--files", type=Path, required=True, help="a folder, read with all below it")
    made.add_argument("--password", default="openpassword", help="of the encrypted ones")
    made.add_argument("--questions", action="store_true", help="ask about them instead")
    return report.command(made.parse_args(arguments), "bench.documents", _run)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    if args.questions:
        return asked(args.files)
    rows = [measure(path, args.password) for path in sorted(args.files.rglob("*.*")) if path.suffix != ".md"]
    report.show(COLUMNS, map(_told, rows))
    read = [row for row in rows if "drawn" in row]
    total = {name: sum(row[name] for row in read) for name in ("quoted", "drawn", "broken", "words", "heads", "pages")}
    return {
        "files": len(rows),
        "read": sum(row["verdict"] == "read" for row in rows),
        "quoted": round(total["quoted"] / max(total["drawn"], 1), 4),
        "words_a_broken_one": total["words"] // total["broken"] if total["broken"] else None,
        "heads": total["heads"],
        "ms_page": round(sum(row["ms_page"] * row["pages"] for row in read) / max(total["pages"], 1), 2),
        "rows": rows,
    }


def _told(row: dict[str, Any]) -> dict[str, Any]:
    told = {**row, "s/page": row["s_page"], "ms/page": row.get("ms_page"), "PDFium": row.get("pdfium_ms_page")}
    if "drawn" in row:
        told |= {"quoted": f"{row['quoted']:3}/{row['drawn']}", "broken": f"{row['broken']:3}/{row['words']}"}
    return told


def asked(files: Path) -> dict[str, Any]:
    """Figures of the answers to bench/data/documents.jsonl, file by file, and a row of each."""
    rows, kept = [], Kept("documents")
    (folder := cache_dir() / "bench").mkdir(parents=True, exist_ok=True)
    for name, questions in itertools.groupby(read_rows(SETS / "documents.jsonl"), key=itemgetter("file")):
        memo = minimemo.build(files / name, folder / f"{Path(name).stem}.memo")
        for question in questions:
            made_of = [code_version(), asdict(memo.manifest), question["question"]]
            answer = kept.result(made_of, lambda: memo.ask(question["question"]).to_dict())  # noqa: B023
            cited = [p["page"] or " > ".join(p["heading"]) for p in answer["passages"] if p["cited"]]
            right = [place == question["place"] for place in cited]
            row = {"file": name, "cites": any(right), "only": any(right) and all(right), "cited": cited}
            row |= {"f1": f1(answer["text"], question["answers"]), "s": round(answer["timings"]["total"], 2)}
            rows.append({**row, **question, "answer": answer["text"], "supported": answer["supported"]})
            told = f"{row['cites']:d} {row['f1']:4.2f} {row['s']:5.1f} s  {question['question']}  {answer['text']}"
            print(f"{told}  {cited}", flush=True)
    figures = {}
    for name, of in itertools.groupby(rows, key=itemgetter("file")):
        some = list(of)
        means = {key: round(statistics.mean(row[key] for row in some), 3) for key in ("cites", "only", "f1")}
        figures[name] = {"n": len(some), **means, "s": statistics.median(row["s"] for row in some)}
        print(f"{name}: {figures[name]}")
    return {"figures": figures, "rows": rows}


def measure(path: Path, password: str) -> dict[str, Any]:
    row: dict[str, Any] = {"file": path.name, "verdict": "read", "chars": 0, "pages": 0, "says": ""}
    start = time.perf_counter()
    try:
        document = read_document(path, password=password)
    except MinimemoError as error:
        reason = str(error).removeprefix(f"{path}: ").removeprefix(f"{path.name}: ")
        return {**row, "verdict": "refused", "says": reason, "s_page": time.perf_counter() - start}
    seconds = time.perf_counter() - start
    pages = max((place.page or 0 for place in document.places), default=0)
    row |= {"chars": len(document.text), "pages": pages, "s_page": round(seconds / max(pages, 1), 3)}
    row["says"] = "; ".join(document.notes)
    if path.suffix == ".pdf":
        opened = pdfium.PdfDocument(path, password=password)
        row["pdfium_ms_page"], row["ms_page"] = _milliseconds(path, password)
        said = [page.get_textpage().get_text_range().replace("\ufffe", "\n").splitlines() for page in opened]
        row |= _quoted(document, said) | _broken(document.text)
        row["heads"] = _heads(document.text, list(pdf._read(opened)))
    return row


def _milliseconds(path: Path, password: str) -> tuple[float, float]:
    """CPU a page: of PDFium (parsing a page and giving its text), and of all else. The best of three, of each."""
    own, whole = [], []
    for _ in range(3):
        opened = pdfium.PdfDocument(path, password=password)
        start = time.process_time()
        for page in opened:
            page.get_textpage().get_text_range()
        own.append(time.process_time() - start)
        opened = pdfium.PdfDocument(path, password=password)
        start = time.process_time()
        read = json.loads(json.dumps({"pages": list(pdf._read(opened)), "marks": list(pdf._marks(opened))}))
        pages = [Page._make((*page[:4], tuple(map(Line._make, page[4])))) for page in read["pages"]]
        prose(pages, [Mark(*mark) for mark in read["marks"]])
        whole.append(time.process_time() - start)
    a_page = 1000 / max(len(opened), 1)
    return round(min(own) * a_page, 2), round((min(whole) - min(own)) * a_page, 2)


def _letters(text: str) -> str:
    """What a quotation is compared by: letters and digits, since prose joins words and changes their forms."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKD", text).casefold()))


def _shape(line: str) -> str:
    return re.sub(r"\d+", "#", " ".join(line.split()))


def _heads(text: str, pages: list[Any]) -> int:
    """Running heads and feet (in the margin of three pages and half of all) that are left in the text."""
    on_pages: Counter[str] = Counter()
    for _, _, height, _, lines in pages:
        edges = (line for line in map(Line._make, lines) if line.top < height / 10 or line.bottom > height * 0.9)
        on_pages.update({_shape(line.text) for line in edges})
    heads = [shape for shape, count in on_pages.items() if count >= max(3, len(pages) / 2) and len(shape) > 9]
    text = " ".join(text.split())
    return sum(len(re.findall(re.escape(head).replace("\\#", r"\d+"), text)) for head in heads)


def _quoted(document: Document, said: list[list[str]]) -> dict[str, int]:
    """Lines that are found on their page. Not drawn: those on three pages and more, and those from right to left, whose
    order PDFium turns."""
    on_pages: dict[str, set[int]] = defaultdict(set)
    for number, lines in enumerate(said):
        for line in lines:
            on_pages[_shape(line)].add(number)
    lines = [
        (number, _PRINTED_TWICE.sub(r"\1", line)) for number, of in enumerate(said, 1) for line in of
        if len(_letters(line)) >= 12 and len(on_pages[_shape(line)]) < 3 and not re.search("[\u0590-\u08ff]", line)
    ]  # fmt: skip
    text, offsets = "", []
    for offset, char in enumerate(document.text):
        text += (letters := _letters(char))
        offsets += [offset] * len(letters)
    starts = [place.start for place in document.places]
    drawn = random.Random(22).sample(lines, min(LINES, len(lines)))
    missed = []
    for number, line in drawn:
        wanted = [_letters(line), _letters(re.sub(r"^\s*\d{1,2}\s", "", line))]  # without the number of the line
        at = {match.start() for key in wanted for match in re.finditer(f"(?={key})", text)}
        if number not in {document.places[bisect_right(starts, offsets[one]) - 1].page for one in at}:
            missed.append((number, line))
    for number, line in missed:
        print(f"  not quoted: {document.name}, page {number}: {line.strip()}", file=sys.stderr)
    return {"quoted": len(drawn) - len(missed), "drawn": len(drawn)}


def _broken(text: str) -> dict[str, int]:
    """Words of letters cut by a space, or a hyphen and a space, where the whole word stands elsewhere in the text."""
    words = text.split()
    known = Counter(word.strip(".,;:()").lower() for word in words)
    broken = 0
    for first, second in itertools.pairwise(words):
        one, two = first.removesuffix("-"), second.strip(".,;:)")
        if not (one.isalpha() and two.isalpha()) or is_cjk(one) or not known[(one + two).lower()]:
            continue
        broken += first.endswith("-") or (known[one.lower()] == 1 and known[two.lower()] == 1)
    return {"broken": broken, "words": len(words)}


if __name__ == "__main__":
    sys.exit(main())
