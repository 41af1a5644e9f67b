// The right: which places of the documents a question touched, what memory recalled, and the text or page of a passage.

import * as act from "./actions.js";
import { fileUrl } from "./api.js";
import { documentOf, open } from "./conversation.js";
import { Cross } from "./documents.js";
import { html } from "./html.js";
import { state, update } from "./state.js";
import { t } from "./strings.js";
import { cut, numbered, placeOf } from "./text.js";

export function Panel() {
  const turn = state.turns[state.shown];
  return html`<aside class="panel ${state.drawer === "panel" ? "open" : ""}" id="panel" aria-label=${t("memory")}>
    ${turn ? html`<${Touched} turn=${turn} />` : !state.reader && html`<div class="panel-empty"><${Sketch} /><p class="muted">${t("memoryEmpty")}</p></div>`}
    ${state.reader ? html`<${Reader} reader=${state.reader} />` : turn && html`<${Recalled} turn=${turn} />`}
  </aside>`;
}

// -- the strip: a document as a line, its beginning left, and what the question touched on it --------------------------

const WIDTH = 1000;
const LEGEND = { view: "legendView", recalled: "legendRecalled", passage: "legendPassage", cited: "legendCited" };

function Touched({ turn }) {
  return html`<section class="touched"><h2>${t("touched")}
      <button class="icon only-narrow" aria-label=${t("close")} onClick=${() => update({ drawer: "" })}><${Cross} /></button></h2>
    ${turn.documents.map((doc) => html`<${Strip} key=${doc.id} turn=${turn} doc=${doc} />`)}
    <ul class="legend muted" aria-hidden="true">
      ${Object.entries(LEGEND).map(([name, words]) => html`<li class=${name}>${t(words)}</li>`)}</ul>
  </section>`;
}

function Strip({ turn, doc }) {
  const here = (place) => documentOf(turn, place).id === doc.id;
  const passages = numbered(turn.passages).filter(here);
  const view = (turn.answer?.view ?? []).map(([document, start, end]) => ({ document, start, end })).filter(here);
  const recalled = (turn.answer?.recalled ?? []).filter(here);
  const cited = passages.filter((p) => p.cited);
  const x = (offset) => (WIDTH * offset) / Math.max(1, doc.characters);
  const bar = (place, name, y, height, least) => {
    const width = Math.max(x(place.end - place.start), least);
    return html`<rect class=${name} x=${Math.min(x(place.start), WIDTH - width)} y=${y} width=${width} height=${height} />`;
  };
  const { reader } = state;
  const label = t("stripLabel", { name: doc.name, view: view.length, recalled: recalled.length, passages: passages.length, cited: cited.length });
  const go = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const at = Math.round((doc.characters * (event.clientX - box.left)) / box.width);
    const near = passages.find((p) => Math.abs(x((p.start + p.end) / 2) - x(at)) < Math.max(8, x(p.end - p.start) / 2));
    if (near) open(turn, near);
    else act.read(doc, { start: at, end: at });
  };
  return html`<div class="strip">
    ${turn.documents.length > 1 && html`<span class="title">${doc.name}</span>`}
    <svg viewBox="0 0 ${WIDTH} 44" preserveAspectRatio="none" role="img" aria-label=${label} onClick=${go}>
      <rect class="track" x="0" y="8" width=${WIDTH} height="28" rx="4" />
      ${view.map((place) => bar(place, "view", 8, 28, 3))}
      ${recalled.map((place) => bar(place, "recalled", 8, 10, 6))}
      ${passages.filter((p) => !p.cited).map((p) => bar(p, "passage", 22, 14, 6))}
      ${cited.map((p) => bar(p, "cited", 4, 36, 7))}
      ${reader?.document.id === doc.id && bar(reader, "here", 39, 4, 7)}
    </svg></div>`;
}

const Sketch = () => html`<svg class="sketch" viewBox="0 0 100 44" preserveAspectRatio="none" aria-hidden="true">
  <rect class="track" y="8" width="100" height="28" /><rect class="view" x="9" y="8" width="15" height="28" /><rect class="view" x="52" y="8" width="21" height="28" />
  <rect class="recalled" x="15" y="8" width="3" height="10" /><rect class="recalled" x="61" y="8" width="3" height="10" /><rect class="cited" x="65" y="4" width="2" height="36" /></svg>`;

// -- what memory recalled ---------------------------------------------------------------------------------------------

function Recalled({ turn }) {
  const { answer } = turn;
  const of = (...kinds) => turn.clues.filter((clue) => kinds.includes(clue.kind));
  const sentences = of("recall", "point");
  const spans = answer?.recalled ?? [];
  const closer = of("rewrite");
  const nothing = answer && !turn.clues.length && !turn.draft;
  return html`<section class="recall" aria-label=${t("recalled")}>
    <h2>${t("recalled")}</h2>
    ${nothing && html`<p class="muted">${t("nothingRecalled")}</p>`}
    ${sentences.length > 0 && html`<ul>${sentences.map((clue) => {
      const span = spans.find((one) => one.text === clue.text);
      return html`<li>${span
        ? html`<button class="recalled" onClick=${() => act.read(documentOf(turn, span), span)}>${clue.text}</button>`
        : html`<span class="recalled">${clue.text}</span>`}</li>`;
    })}</ul>`}
    ${closer.length > 0 && html`<h3>${t("closer")}</h3><ul class="plain">${closer.map((clue) => html`<li>${clue.text}</li>`)}</ul>`}
    ${turn.draft && html`<h3>${t("draft")}</h3><p class="draft">${turn.draft}</p>`}
  </section>`;
}

// -- the document -----------------------------------------------------------------------------------------------------

function Reader({ reader }) {
  const { document: doc } = reader;
  const place = reader.end > reader.start ? placeOf(reader) : "";
  return html`<section class="reader" aria-label=${doc.name}>
    <header>
      <button class="quiet back" onClick=${() => update({ reader: null })}>‹ ${t("memory")}</button>
      <span class="title" title=${doc.name}>${doc.name}</span><span class="muted place">${place}</span>
      ${doc.kind === "pdf" && doc.file && html`<span class="tabs" role="group" aria-label=${doc.name}>${["text", "page"].map((as) => html`<button aria-pressed=${reader.as === as} onClick=${() => act.readAs(as)}>${t(as)}</button>`)}</span>`}
    </header>
    ${reader.error && html`<p class="verdict failed" role="alert">${t("failed", { error: reader.error })}</p>`}
    ${reader.as === "page"
      ? html`${reader.url && html`<iframe key=${reader.url} title="${doc.name} ${place}" src=${reader.url}></iframe>`}
          <a class="muted" href=${fileUrl(doc.id, reader.page)} target="_blank" rel="noreferrer">${t("newTab")} ↗</a>`
      : html`<${Text} reader=${reader} />`}
  </section>`;
}

function Text({ reader }) {
  const { text, from, start, end, document: doc } = reader;
  if (text === null) return html`<div class="text" aria-busy="true"></div>`;
  const to = from + Array.from(text).length;
  // Scrolls once for each place that is opened, not when more text is read around it.
  const show = (mark) => {
    if (!mark || reader.scrolled) return;
    reader.scrolled = true;
    mark.scrollIntoView({ block: "center" });
    mark.focus({ preventScroll: true });
  };
  return html`<div class="text" key=${`${doc.id} ${start} ${end}`} tabindex="0">
    ${from > 0 && html`<button class="link" onClick=${() => act.readMore(true)}>↑ ${t("earlier")}</button>`}
    <p>${cut(text, 0, start - from)}<mark ref=${show} tabindex="-1">${cut(text, start - from, end - from)}</mark>${cut(text, end - from)}</p>
    ${to < doc.characters && html`<button class="link" onClick=${() => act.readMore(false)}>↓ ${t("later")}</button>`}
  </div>`;
}
