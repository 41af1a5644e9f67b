"""The page in a headless Chromium: asked, read, doubted, refused, broken, with the keyboard and in Chinese.

`MINIMEMO_PICTURES=folder` keeps a picture of each state, to be looked at.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minimemo.memo.manifest import Manifest
from tests.helpers import until
from tests.server.browser import CHROMIUM, Browser
from tests.server.canned import EXAMPLES, PAGE, Canned, serve
from tests.server.conftest import Served

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt install chromium)")
LIT = "The light was lit for the first time on the evening of 9 October 1852."


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture()
def canned() -> Iterator[Canned]:
    canned = Canned()
    server = serve(canned)
    canned.port = server.server_address[1]
    canned.url = f"http://127.0.0.1:{canned.port}/"
    yield canned
    server.shutdown()
    server.server_close()


def picture(browser: Browser, name: str) -> None:
    if folder := os.environ.get("MINIMEMO_PICTURES"):
        browser.picture(Path(folder) / f"{name}.png")


def drop(browser: Browser, name: str) -> None:
    """Drops a file of this name on the page, whose build comes so far."""
    browser.js(f"""{{const d = new DataTransfer(); d.items.add(new File(['text'], '{name}'));
        document.dispatchEvent(new DragEvent('drop', {{dataTransfer: d, bubbles: true, cancelable: true}})); 1}}""")
    browser.until("document.querySelector('.job progress')?.value === 41")


def lit(canned: Canned, **more: Any) -> dict[str, Any]:
    """The answer to when the light was lit, from two passages, one of them cited, with what memory says."""
    at = [canned.text.index(words) for words in ("Old account books", "The oil lamp gave way", LIT)]
    recalled = "The first keeper was Anders Quill, a former sailmaker with one good eye."
    start = canned.text.index(recalled)
    found = [
        canned.passage("The oil lamp gave way", heading=["5. What came after"]),
        canned.passage(LIT, LIT, heading=["2. The tower"]),
    ]
    return canned.answer(**{
        "text": "9 October 1852",
        "passages": found,
        "clues": [{"kind": "recall", "text": recalled}, {"kind": "rewrite", "text": "When was the lamp first lit?"}],
        "draft": "In the autumn of 1852.",
        "recalled": [{"start": start, "end": start + len(recalled), "text": recalled, "document": "d1"}],
        "view": [["lighthouse.txt", a, a + 700] for a in at],
        **more,
    })  # fmt: skip


@needs_browser
def test_a_question_is_answered_and_its_passage_shown_in_the_document(browser: Browser, canned: Canned) -> None:
    canned.answers["When was it lit?"] = lit(canned)
    browser.open(canned.url)
    browser.ask("When was it lit?")
    browser.until("document.querySelector('.foot')")
    assert canned.asked[0] == {"documents": ["d1"], "question": "When was it lit?", "turns": [], "mode": "memorag"}
    # the answer and its passage's number
    assert browser.js("document.querySelector('.words').textContent") == "9 October 1852 1"
    assert "2. The tower" in browser.text(".passages")
    assert browser.js("document.querySelectorAll('.strip .view').length") == 3
    assert "Anders Quill" in browser.text(".recall")
    picture(browser, "answer")
    browser.click(".cite")
    assert browser.until("document.querySelector('.text mark')?.textContent") == LIT  # past an astral character
    seen = "(r => r.top > 0 && r.bottom < innerHeight)(document.querySelector('.text mark').getBoundingClientRect())"
    assert browser.js(seen)
    assert "<b>Notes</b>" in browser.text(".text")
    assert browser.js("document.querySelector('.text b, .text img')") is None
    picture(browser, "reader")
    browser.press("Escape")
    browser.click(".recall button")
    assert browser.until("document.querySelector('.text mark')?.textContent").startswith("The first keeper")
    canned.answers["And by whom?"] = lit(canned)
    browser.ask("And by whom?")
    browser.until("document.querySelectorAll('.foot').length === 2")
    assert canned.asked[1]["turns"] == [{"question": "When was it lit?", "answer": "9 October 1852"}]
    assert browser.errors == []


@needs_browser
def test_doubt_and_refusal_are_said_first(browser: Browser, canned: Canned) -> None:
    canned.answers["Doubted?"] = lit(canned, supported=False, confidence=0.44)
    canned.answers["Refused?"] = lit(canned, supported=False, text="The document does not say.", guess="Karsund")
    for p in canned.answers["Refused?"]["passages"]:
        p |= {"cited": False, "span": None}
    browser.open(canned.url, dark=True)
    browser.ask("Doubted?")
    browser.until("document.querySelector('.doubt')")
    assert browser.text(".answer").startswith("The document does not clearly say this.")
    browser.ask("Refused?")
    browser.until("document.querySelector('.refused')")
    words = browser.text(".turn:last-child .answer")
    assert "does not answer" in words and "Karsund" in words
    assert not browser.js("document.querySelector('.turn:last-child .words')")
    picture(browser, "dark")
    assert browser.errors == []


@needs_browser
def test_what_a_model_writes_is_no_html(browser: Browser, canned: Canned) -> None:
    text = (
        "Two things:\n\n- **one** <img src=x onerror=alert(1)>\n- [two](javascript:alert(1)) ![p](http://x.test/p.png)"
    )
    canned.answers["What?"] = lit(canned, text=text)
    browser.open(canned.url)
    browser.ask("What?")
    browser.until("document.querySelector('.foot')")
    assert browser.js("document.querySelectorAll('.words li').length") == 2
    assert browser.js("document.querySelector('.words strong').textContent") == "one"
    assert browser.js("document.querySelectorAll('.words img, .words a').length") == 0
    assert "<img" in browser.text(".words")
    assert browser.errors == []


@needs_browser
def test_documents_come_are_read_and_go(browser: Browser, canned: Canned) -> None:
    canned.documents = []
    browser.open(canned.url)
    browser.until("document.querySelector('.welcome h1')")
    assert "Nothing to ask yet" in browser.text() and browser.js("document.querySelector('#question').disabled")
    picture(browser, "empty")
    drop(browser, "new.txt")
    assert "41 %" in browser.text(".job") and "75 s" in browser.text(".job")
    picture(browser, "building")
    canned.jobs[0]["state"] = "done"
    canned.documents = [canned.document("n", "new.txt", "txt", None)]
    browser.until("document.querySelector('.document.is-chosen')")
    assert "new.txt is ready" in browser.text() and "25× smaller" in browser.text(".document")
    browser.click(".remove")
    browser.until("document.querySelector('dialog[open]')")
    assert canned.documents  # asked first
    browser.click("dialog .danger")
    browser.until("!document.querySelector('.document')")
    canned.jobs[0].update(state="failed", error="bad.pdf is scanned: it has no text")
    browser.js("import('./actions.js').then(act => act.refresh())")
    browser.until("document.querySelector('.job.failed')")
    assert "it has no text" in browser.text(".job")
    assert browser.errors == []


@needs_browser
def test_a_question_can_be_stopped_fail_and_be_asked_again(browser: Browser, canned: Canned) -> None:
    canned.answers["Fails?"] = lit(canned, finish_reason="error")
    canned.answers["Long?"] = lit(canned, text="word " * 300)
    browser.open(canned.url)
    browser.ask("Fails?")
    browser.until("document.querySelector('.verdict.failed')")
    assert "not enough memory" in browser.text(".answer")
    picture(browser, "error")
    canned.answers["Fails?"] = lit(canned)
    browser.click(".verdict .link")
    browser.until("document.querySelector('.foot')")
    canned.pace = 0.01
    browser.ask("Long?")
    browser.until("document.querySelectorAll('.turn')[1]?.innerText.includes('word word')")
    picture(browser, "streaming")
    browser.press("Escape")
    browser.until("document.querySelectorAll('.turn')[1]?.innerText.includes('Stopped')")
    until(lambda: canned.asked[-1] == {"left": True}, 5)
    assert browser.errors == []


@needs_browser
def test_an_answer_is_copied_and_a_conversation_saved_with_their_sources(browser: Browser, canned: Canned) -> None:
    canned.answers["When was it lit?"] = lit(canned)
    canned.answers["Doubted?"] = lit(canned, text="Karsund", supported=False)
    browser.open(canned.url)
    browser.ask("When was it lit?")
    browser.until("document.querySelector('.foot')")
    browser.js("navigator.clipboard.writeText = text => { window.copied = text; return Promise.resolve(); }; 1")
    browser.click(".foot button")
    copied = browser.until("window.copied")
    start = canned.text.index(LIT, canned.text.index("2. The tower"))
    begin, end = start, start + 460  # of the passage that begins there
    place = f"> — lighthouse.txt, 2. The tower (characters {begin}\N{EN DASH}{end})"
    assert copied.splitlines() == ["9 October 1852 [1]", "", f"> [1] {LIT}", ">", place]
    browser.until("document.body.innerText.includes('Copied')")
    browser.ask("Doubted?")
    browser.until("document.querySelectorAll('.foot').length === 2")
    browser.js("""URL.createObjectURL = blob => { window.saved = blob.text(); return 'blob:x'; };
        HTMLAnchorElement.prototype.click = function () { window.named = this.download; }; 1""")
    browser.click(".composer button.quiet:nth-of-type(2)")
    saved = browser.js("window.saved")
    assert browser.js("window.named").endswith(".md")
    begins = "# Conversation with lighthouse.txt\n\n## When was it lit?\n\n9 October 1852 [1]\n"
    assert saved.startswith(begins)
    assert place in saved and "## Doubted?" in saved and "*The document does not clearly say this.*" in saved
    assert browser.errors == []


@needs_browser
def test_a_build_is_cancelled(browser: Browser, canned: Canned) -> None:
    browser.open(canned.url)
    browser.until("document.querySelector('.document')")
    drop(browser, "long.txt")
    assert canned.jobs
    browser.click(".job button.link")
    browser.until("!document.querySelector('.job')")
    assert not canned.jobs and len(canned.documents) == 2, "the build alone is gone"
    assert browser.errors == []


@needs_browser
def test_the_page_waits_for_a_server_that_is_away_and_asks_for_a_key(browser: Browser, canned: Canned) -> None:
    browser.open(canned.url)
    browser.until("document.querySelector('.document')")
    canned.key = "sesame"
    browser.js("import('./actions.js').then(act => act.refresh())")
    browser.until("document.querySelector('.lock input')")
    picture(browser, "key")
    browser.js("document.querySelector('.lock input').focus()")
    browser.type("sesame")
    browser.press("Enter")
    browser.until("document.querySelector('.document')")
    browser.js("fetch = () => Promise.reject(new TypeError('away')); import('./actions.js').then(act => act.refresh())")
    browser.until("document.querySelector('.banner')")
    picture(browser, "offline")


@needs_browser
def test_narrow_chinese_and_a_page_of_a_pdf(browser: Browser, canned: Canned) -> None:
    canned.answers["灯是什么时候点亮的？"] = lit(canned, text="1852 年 10 月 9 日", language="zh", supported=False)
    canned.documents.reverse()
    for p in canned.answers["灯是什么时候点亮的？"]["passages"]:
        p |= {"page": 2, "label": "ii", "document": "skarn-point.pdf", "heading": []}
    browser.open(canned.url, width=390, height=780, language="zh-CN")
    browser.ask("灯是什么时候点亮的？")
    browser.until("document.querySelector('.foot')")
    assert "文档没有明确说明" in browser.text(".answer") and "第 ii 页" in browser.text(".passages")
    assert browser.js("document.documentElement.scrollWidth <= innerWidth")
    assert browser.js("document.documentElement.lang") == "zh-Hans"
    picture(browser, "chinese")
    browser.click(".cite")
    browser.until("document.querySelector('.panel.open .text mark')")
    picture(browser, "chinese_reader")
    browser.click(".tabs button:last-child")
    assert browser.until("document.querySelector('iframe')?.src").endswith("/documents/d2/file#page=2&navpanes=0")
    assert browser.errors == []


@needs_browser
def test_every_control_has_a_name_and_words_stand_out(browser: Browser, canned: Canned) -> None:
    """Contrast of at least 4.5 to 1, as WCAG AA asks of small words, in light and dark."""
    canned.answers["When?"] = lit(canned, supported=False)
    for dark in (False, True):
        browser.open(canned.url, dark=dark)
        browser.ask("When?")
        browser.until("document.querySelector('.foot')")
        assert browser.js(NAMELESS) == []
        assert browser.js(PALE) == []


CONTROLS = "button, input, select, textarea, iframe, [role=img], meter, progress"
NAMELESS = f"""[...document.querySelectorAll('{CONTROLS}')].filter(e =>
    !(e.textContent || e.getAttribute('aria-label') || e.title || e.labels?.length)).map(e => e.outerHTML)"""
PALE = """(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = color => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c[3] > 250) return c; } return [255, 255, 255]; };
  return [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && !e.disabled &&
    [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).map(e => {
      const a = light(rgb(getComputedStyle(e).color)), b = light(behind(e));
      return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.className, e.textContent.slice(0, 30)];
    }).filter(([ratio]) => ratio < 4.5);
})()"""


def test_what_is_vendored_is_what_was_published() -> None:
    """The file's sums are those of the packages' own files; a changed one is caught."""
    for entry in json.loads((PAGE / "vendor" / "vendored.json").read_text(encoding="utf-8")):
        body = (PAGE / "vendor" / entry["file"]).read_bytes()
        assert hashlib.sha256(body).hexdigest() == entry["sha256"], entry["file"]


def test_the_page_is_light_and_loads_nothing_from_elsewhere() -> None:
    files = [path for path in PAGE.rglob("*") if path.is_file()]
    loaded = [path for path in files if path.suffix in {".html", ".js", ".mjs", ".css", ".svg"}]
    assert sum(path.stat().st_size for path in loaded) < 150_000
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    assert "style=" not in html and "<script>" not in html and "<style" not in html
    for path in files:
        if path.parent == PAGE and path.suffix != ".svg":
            assert "://" not in path.read_text(encoding="utf-8"), path


def test_both_languages_say_the_same_things() -> None:
    words = (PAGE / "strings.js").read_text(encoding="utf-8")
    keys = [set(part) for part in (_keys(words, "EN"), _keys(words, "ZH"))]
    assert keys[0] == keys[1]
    code = "".join(path.read_text(encoding="utf-8") for path in PAGE.glob("*.js"))
    assert [key for key in keys[0] if code.count(key) < 3] == []  # none that nothing says


def _keys(words: str, name: str) -> list[str]:
    block = words[words.index(f"const {name} = {{") :]
    return re.findall(r'(?:^|[,{]\s*|\s{2})(\w+): "', block[: block.index("\n};")])


@needs_browser
def test_the_server_itself_serves_it_within_its_policy(browser: Browser, served: Served) -> None:
    """Through the real routes, headers and events; only the model is tiny."""
    browser.open(served.url)
    browser.ask("What did user 3 say?")
    browser.until("document.querySelector('.foot')")
    browser.click(".passage")
    browser.until("document.querySelector('.text mark')?.textContent")
    browser.js("import('./actions.js').then(act => act.only('notes'))")
    browser.js("import('./actions.js').then(act => act.read({id: 'notes', characters: 200}, {start: 0, end: 9}))")
    browser.until("document.querySelector('.text')?.innerText.includes('<script>')")
    assert browser.errors == []
    picture(browser, "served")


@needs_browser
def test_a_page_of_a_pdf_stands_beside_the_conversation(browser: Browser, served: Served) -> None:
    """In a frame, which the server's own headers have to allow."""
    pdf, memo = served.folder / "skarn.pdf", served.folder / "skarn.memo"
    shutil.copy(EXAMPLES / "skarn-point.pdf", pdf)
    shutil.copytree(served.folder / "notes.memo", memo)
    manifest = Manifest.load(memo)
    replace(manifest, document=replace(manifest.document, name=pdf.name)).save(memo)
    try:
        browser.open(served.url)
        browser.until("document.querySelectorAll('.document').length === 3")
        doc = "import('./state.js').then(({state}) => state.documents.find(d => d.id === 'skarn'))"
        assert browser.js(f"{doc}.then(d => d.kind)") == "pdf"
        place = "{start: 0, end: 9, page: 2, label: '2'}"
        browser.js(f"Promise.all([{doc}, import('./actions.js')]).then(([d, act]) => act.read(d, {place}))")
        browser.click(".tabs button:last-child")
        shown = browser.until("document.querySelector('iframe')?.src")
        assert shown.endswith("/documents/skarn/file#page=2&navpanes=0")
        time.sleep(0.5)  # a frame that is refused is an error by then
        assert browser.errors == []
        picture(browser, "pdf")
    finally:
        pdf.unlink()
        shutil.rmtree(memo)
