// Starts the page: draws it from the state, and listens to the keyboard and to files that are dropped.

import * as act from "./actions.js";
import { Conversation, open } from "./conversation.js";
import { Documents, Removing } from "./documents.js";
import { html, render } from "./html.js";
import { Panel } from "./panel.js";
import { onDraw, state, update } from "./state.js";
import { language, t } from "./strings.js";
import { numbered } from "./text.js";

const root = document.getElementById("app");

function App() {
  const { drawer, offline, locked, dragging, removing, toast } = state;
  const toggle = (name) => () => update({ drawer: drawer === name ? "" : name });
  if (locked) return html`<${Lock} />`;
  return html`
    <a class="skip" href="#question">${t("skip")}</a>
    ${offline && html`<p class="banner" role="alert">${t("offline")}</p>`}
    <div class="columns">
      <header class="bar">
        <button class="quiet" aria-controls="documents" aria-expanded=${drawer === "documents"} onClick=${toggle("documents")}>${t("documents")}</button>
        <strong>minimemo</strong>
        <button class="quiet" aria-controls="panel" aria-expanded=${drawer === "panel"} onClick=${toggle("panel")}>${t("memory")}</button>
      </header>
      <${Documents} /><${Conversation} /><${Panel} />
      ${drawer && html`<div class="veil" onClick=${() => update({ drawer: "" })}></div>`}
    </div>
    ${dragging && html`<div class="dropzone" aria-hidden="true"><strong>${t("dropNow")}</strong></div>`}
    ${removing && html`<${Removing} doc=${removing} />`}
    <div class="toast" role="status">${toast}</div>`;
}

function Lock() {
  const submit = (event) => {
    event.preventDefault();
    act.unlock(event.target.elements.key.value.trim());
  };
  return html`<form class="lock" onSubmit=${submit}><h1>${t("keyTitle")}</h1><p class="muted">${t("keyBody")}</p>
    <label>${t("keyLabel")}<input name="key" type="password" autocomplete="off" required autofocus aria-invalid=${state.locked === "wrong"} /></label>
    ${state.locked === "wrong" && html`<p class="verdict failed" role="alert">${t("keyWrong")}</p>`}
    <button class="primary">${t("keyGo")}</button></form>`;
}

let turnsBefore = 0;
onDraw(() => {
  const list = document.getElementById("turns");
  const atEnd = !list || list.scrollHeight - list.scrollTop - list.clientHeight < 80;
  render(html`<${App} />`, root);
  const now = document.getElementById("turns");
  if (now && (state.turns.length > turnsBefore || (atEnd && state.turns.at(-1)?.status === "running"))) now.scrollTop = now.scrollHeight;
  turnsBefore = state.turns.length;
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || state.removing) return;
  const typing = event.target.matches("textarea, input:not([type=checkbox]), select");
  if (event.key === "Escape") {
    if (state.reader || state.drawer) update({ reader: null, drawer: "" });
    else act.stop();
  } else if (typing) return;
  else if (event.key === "/") {
    event.preventDefault();
    document.getElementById("question")?.focus();
  } else if (/^[1-9]$/.test(event.key)) {
    const turn = state.turns[state.shown];
    const passage = turn?.answer && numbered(turn.passages)[event.key - 1];
    if (passage) open(turn, passage);
  }
});

const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  if (!state.dragging) update({ dragging: true });
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) update({ dragging: false });
});
document.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  update({ dragging: false });
  act.add([...event.dataTransfer.files]);
});

document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
root.replaceChildren();
update({});
act.refresh();
