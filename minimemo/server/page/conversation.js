// The middle: questions and answers, streamed, with numbered passages behind them, and the line to ask in.

import * as act from "./actions.js";
import { html } from "./html.js";
import { state, update } from "./state.js";
import { plain, t } from "./strings.js";
import { answerAsMarkdown, aroundSpan, hasBlocks, isDoubted, isRefused, markdown, numbered, placeOf } from "./text.js";

const STAGES = { "load model": "loadModel", memory: "loading", "load memory": "loading", choose: "recalling", recall: "recalling", retrieve: "searching", weigh: "weighing", answer: "writing" };
const MODES = { memorag: "memorag", rag: "rag", memory: "memoryMode", gist: "gist" };

export function Conversation() {
  const { turns, chosen, documents } = state;
  return html`<main class="conversation" aria-label=${t("conversation")}>
    <div class="turns" id="turns">
      ${turns.length === 0 ? html`<${Welcome} />` : turns.map((turn, i) => html`<${Turn} key=${i} turn=${turn} index=${i} />`)}
    </div>
    <form class="composer" onSubmit=${submit}>
      <label class="hidden" for="question">${t("question")}</label>
      <textarea id="question" rows="1" placeholder=${t("placeholder")} disabled=${!documents?.length} onInput=${grow} onKeyDown=${onKey}></textarea>
      <div class="row">
        <select id="mode" aria-label=${t("mode")}>${Object.entries(MODES).map(([mode, name]) => html`<option value=${mode}>${t(name)}</option>`)}</select>
        ${turns.length > 0 && html`<button type="button" class="quiet" onClick=${act.fresh}>${t("fresh")}</button>
          <button type="button" class="quiet" onClick=${act.save}>${t("exportMd")}</button>`}
        <span class="grow"></span>
        ${turns.at(-1)?.status === "running"
          ? html`<button type="button" class="primary" onClick=${act.stop}>${t("stop")}</button>`
          : html`<button class="primary" disabled=${!chosen.size}>${t("ask")}</button>`}
      </div>
    </form>
    <p class="hints muted">${t("hints")}</p>
  </main>`;
}

function grow({ target }) {
  target.style.height = "auto";
  target.style.height = `${target.scrollHeight}px`;
}

function onKey(event) {
  // Enter also ends the choice of a Chinese word, which asks nothing yet.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  event.target.form.requestSubmit();
}

function submit(event) {
  event.preventDefault();
  const field = document.getElementById("question");
  if (!field.value.trim() || state.turns.at(-1)?.status === "running" || !state.chosen.size) return;
  act.ask(field.value, document.getElementById("mode").value);
  field.value = "";
  field.style.height = "";
}

function Welcome() {
  const picked = (state.documents ?? []).filter((d) => state.chosen.has(d.id));
  if (state.documents === null) return html`<div class="welcome" aria-busy="true"></div>`;
  const [title, body] = !state.documents.length ? [t("emptyTitle"), t("emptyBody")]
    : !picked.length ? [t("pickTitle"), t("pickBody")]
    : [picked.length === 1 ? t("askTitle", { name: picked[0].name }) : t("askTitleMany", { n: picked.length }), t("askBody")];
  return html`<div class="welcome"><h1>${title}</h1><p class="muted">${body}</p>
    ${picked.length > 0 && html`<button class="example" onClick=${() => act.ask(t("example"), "gist")}>${t("example")}</button>`}</div>`;
}

function Turn({ turn, index }) {
  const { answer, status } = turn;
  return html`<article class="turn ${state.shown === index ? "is-shown" : ""}" onFocusIn=${() => look(index)} onClick=${() => look(index)}>
    <h2 class="question"><span class="hidden">${t("you")}: </span>${turn.question}</h2>
    <div class="answer" aria-live="polite" aria-busy=${status === "running"}>
      ${answer && isRefused(answer) && html`<p class="verdict refused"><${Sign} />${t("refused")}</p>`}
      ${answer && isDoubted(answer) && html`<p class="verdict doubt"><${Sign} /><span>${t("doubt")} <span class="muted">${answer.passages.length > 0 && t("doubtMore")}</span></span></p>`}
      ${answer && isRefused(answer) ? answer.guess && html`<p class="muted">${t("guess")}<em>${answer.guess}</em></p>` : html`<${Words} turn=${turn} />`}
      ${status === "running" && html`<${Stage} stage=${turn.stage} />`}
      ${status === "stopped" && html`<p class="muted">${t("stopped")}</p>`}
      ${status === "error" && html`<p class="verdict failed" role="alert"><${Sign} /><span>${turn.error} <button class="link" onClick=${() => act.retry(turn)}>${t("retry")}</button></span></p>`}
      ${answer?.finish_reason === "length" && html`<p class="muted">${t("cut")}</p>`}
    </div>
    ${answer && html`<${Passages} turn=${turn} /><${Foot} turn=${turn} />`}
  </article>`;
}

const look = (index) => state.shown !== index && update({ shown: index });

const Sign = () => html`<svg viewBox="0 0 16 16" aria-hidden="true"><circle cx="8" cy="8" r="7" /><path d="M8 4.5v4M8 11.2v.3" /></svg>`;

function Stage({ stage }) {
  const name = STAGES[stage?.stage];
  const words = stage?.stage === "waiting" ? t("queued", { n: stage.total }) : name ? t(name) : t("thinking");
  return html`<p class="stage muted"><span class="pulse" aria-hidden="true"></span>${words}…</p>`;
}

function Words({ turn }) {
  const cited = turn.answer ? numbered(turn.passages).filter((p) => p.cited) : [];
  const marks = cited.map((p) => html`<button key=${p.number} class="cite" aria-label=${t("source", { n: p.number })} onClick=${() => open(turn, p)}>${p.number}</button>`);
  if (!turn.text) return null;
  if (!hasBlocks(turn.text)) return html`<p class="words">${turn.text} ${marks}</p>`;
  const fill = (node) => node && node.lastText !== turn.text && (node.replaceChildren(markdown(turn.text)), (node.lastText = turn.text));
  return html`<div class="words blocks" ref=${fill}></div>${marks.length > 0 && html`<p>${marks}</p>`}`;
}

export function documentOf(turn, passage) {
  const id = turn.ids[passage.document] ?? passage.document;
  return turn.documents.find((d) => d.id === id) ?? turn.documents[0];
}

export function open(turn, passage) {
  const [start, end] = passage.span ?? [passage.start, passage.end];
  update({ shown: state.turns.indexOf(turn) });
  act.read(documentOf(turn, passage), { ...passage, start, end });
}

function Passages({ turn }) {
  const all = numbered(turn.passages);
  const cited = all.filter((p) => p.cited);
  const rest = all.filter((p) => !p.cited);
  if (!all.length) return null;
  return html`<section aria-label=${t("sources")}>
    ${cited.length > 0 && html`<ol class="passages">${cited.map((p) => html`<${Passage} key=${p.number} turn=${turn} passage=${p} />`)}</ol>`}
    ${rest.length > 0 && html`<details open=${cited.length === 0}><summary class="muted">${cited.length ? t("othersRead", { n: rest.length }) : t("sources")}</summary>
      <ol class="passages">${rest.map((p) => html`<${Passage} key=${p.number} turn=${turn} passage=${p} />`)}</ol></details>`}
  </section>`;
}

function Passage({ turn, passage }) {
  const [before, span, after] = aroundSpan(passage);
  const isOpen = state.reader?.number === passage.number && state.turns[state.shown] === turn;
  const lead = before.length > 90 ? `…${before.slice(-80)}` : before; // the cited sentence stays in view
  return html`<li><button class="passage ${isOpen ? "is-open" : ""} ${passage.cited ? "is-cited" : ""}" onClick=${() => open(turn, passage)}>
    <span class="number" aria-hidden="true">${passage.number}</span>
    <span class="place">${turn.documents.length > 1 && html`<strong>${documentOf(turn, passage).name}</strong> · `}${placeOf(passage)}</span>
    <span class="quote">${span ? html`${lead}<mark>${span}</mark>${after}` : before}</span>
  </button></li>`;
}

function Foot({ turn }) {
  const { answer } = turn;
  const facts = [];
  if (!isRefused(answer) && answer.confidence > 0 && answer.confidence < 1) facts.push(t("sure", { n: Math.round(100 * answer.confidence) }));
  if (answer.timings?.total) facts.push(t("seconds", { n: plain(answer.timings.total) }));
  return html`<p class="foot muted"><span>${facts.join(" · ")}</span>
    <button class="quiet" onClick=${() => act.copy(answerAsMarkdown(turn))}>${t("copy")}</button></p>`;
}
