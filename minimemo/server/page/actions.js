// What a reader can do: each action talks to the server and changes the state.

import * as api from "./api.js";
import { state, update } from "./state.js";
import { t } from "./strings.js";
import { conversationAsMarkdown } from "./text.js";

const AROUND = 2500; // characters of text that are shown before and behind a passage
const ACTIVE = new Set(["waiting", "running"]);
export const isActive = (job) => ACTIVE.has(job.state);

let toastTimer;
export function toast(text) {
  update({ toast: text });
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => update({ toast: "" }), 3500);
}

// Tells of a failure where no other place of the page does; true where the page as a whole shows it already.
function general(error) {
  if (error.status === 401) update({ locked: api.hasKey() ? "wrong" : "needed" });
  else if (error.status === 0) update({ offline: true });
  else return false;
  return true;
}

// -- documents --------------------------------------------------------------------------------------------------------

export async function refresh() {
  try {
    const [documents, jobs] = await Promise.all([api.documents(), api.jobs()]);
    const finished = jobs.filter((job) => job.state === "done" && state.jobs.some((old) => old.id === job.id && isActive(old)));
    const ids = new Set(documents.map((d) => d.id));
    const chosen = new Set([...state.chosen].filter((id) => ids.has(id)));
    const fresh = documents.find((d) => state.documents && !state.documents.some((old) => old.id === d.id));
    if (chosen.size === 0 && documents.length) chosen.add((fresh ?? documents[0]).id);
    if (finished.length) toast(t("built", { name: finished[0].name }));
    update({ documents, jobs, chosen, offline: false, locked: "" });
  } catch (error) {
    if (!general(error)) toast(t("failed", { error: error.message }));
  }
  if (!state.locked) watch();
}

// Looks again: soon while something is read or the server is away, rarely else, never behind another tab.
let timer;
function watch() {
  clearTimeout(timer);
  timer = setTimeout(() => (document.hidden ? watch() : refresh()), state.offline || state.jobs.some(isActive) ? 1000 : 10000);
}

export async function add(files) {
  for (const file of files) {
    const entry = { name: file.name, error: "" };
    update({ uploads: [...state.uploads, entry] });
    try {
      await api.upload(file);
      update({ uploads: state.uploads.filter((one) => one !== entry) });
      await refresh();
    } catch (error) {
      general(error);
      entry.error = error.message;
      update({});
    }
  }
}

export const forget = (entry) => update({ uploads: state.uploads.filter((one) => one !== entry) });
export const dismiss = (job) => update({ dismissed: new Set([...state.dismissed, job.id]) });

export async function cancel(job) {
  await attempt(() => api.cancel(job.id));
}

export async function remove(doc) {
  update({ removing: null, reader: state.reader?.document.id === doc.id ? null : state.reader });
  await attempt(() => api.remove(doc.id));
}

async function attempt(work) {
  try {
    await work();
    await refresh();
  } catch (error) {
    if (!general(error)) toast(t("failed", { error: error.message }));
  }
}

export function only(id) {
  update({ chosen: new Set([id]), drawer: "" });
}

export function toggle(id) {
  const chosen = new Set(state.chosen);
  if (!chosen.delete(id)) chosen.add(id);
  update({ chosen });
}

export async function unlock(key) {
  api.setKey(key);
  await refresh();
}

// -- conversation -----------------------------------------------------------------------------------------------------

let running = null; // AbortController of the question that is being answered
export const stop = () => running?.abort();

export async function ask(question, mode) {
  const documents = state.documents.filter((d) => state.chosen.has(d.id));
  if (running || !question.trim() || !documents.length) return;
  const turns = state.turns.filter((turn) => turn.answer).map(({ question, answer }) => ({ question, answer: answer.text }));
  const turn = { question: question.trim(), mode, documents, status: "running", stage: null, text: "", passages: [], ids: {}, clues: [], draft: "", answer: null, error: "" };
  update({ turns: [...state.turns, turn], shown: state.turns.length, reader: null });
  running = new AbortController();
  try {
    await api.ask({ documents: documents.map((d) => d.id), question: turn.question, turns, mode }, (event, data) => heard(turn, event, data), running.signal);
    if (turn.status === "running") Object.assign(turn, { status: "error", error: t("broken") });
  } catch (error) {
    if (error.name === "AbortError") turn.status = "stopped";
    else {
      const away = general(error) && error.status === 0;
      Object.assign(turn, { status: "error", error: away ? t("broken") : t("failed", { error: error.message }) });
    }
  }
  running = null;
  update({});
}

function heard(turn, event, data) {
  if (event === "stage") turn.stage = data;
  else if (event === "clues") Object.assign(turn, { clues: data.clues, draft: data.draft });
  else if (event === "passages") Object.assign(turn, { passages: data.passages, ids: data.ids });
  else if (event === "piece") turn.text += data.text;
  else if (event === "answer") Object.assign(turn, { answer: data, text: data.text, passages: data.passages, ids: data.ids, clues: data.clues, draft: data.draft, status: "done" });
  else if (event === "error") Object.assign(turn, { status: "error", error: t("failed", { error: data.error }) });
  update({});
}

export async function retry(turn) {
  update({ turns: state.turns.filter((one) => one !== turn) });
  await ask(turn.question, turn.mode);
}

export function fresh() {
  stop();
  update({ turns: [], shown: -1, reader: null });
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast(t("copied"));
  } catch {
    toast(t("copyFailed"));
  }
}

export function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([conversationAsMarkdown(state.turns)], { type: "text/markdown" }));
  link.download = `minimemo ${new Date().toISOString().slice(0, 10)}.md`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// -- reading ----------------------------------------------------------------------------------------------------------

// Shows characters [start, end) of a document, marked, with text around them; a place may have page, label, heading.
export async function read(document, place) {
  const { start, end } = place;
  const as = state.reader?.as ?? "text";
  const reader = { ...place, document, as: document.kind === "pdf" && document.file ? as : "text", from: Math.max(0, start - AROUND), text: null, url: "", error: "" };
  update({ reader, drawer: "panel" });
  await Promise.all([fill(reader, reader.from, Math.min(document.characters, end + AROUND)), frame(reader)]);
}

async function fill(reader, from, to) {
  try {
    const { text } = await api.text(reader.document.id, from, to);
    Object.assign(reader, { from, text });
  } catch (error) {
    general(error);
    reader.error = error.message;
  }
  update({});
}

async function frame(reader) {
  if (reader.as !== "page" || reader.url) return;
  try {
    reader.url = await api.framed(reader.document.id, reader.page);
  } catch (error) {
    general(error);
    reader.error = error.message;
  }
  update({});
}

export async function readAs(as) {
  state.reader.as = as;
  update({});
  await frame(state.reader);
}

export async function readMore(before) {
  const { reader } = state;
  const to = reader.from + Array.from(reader.text).length;
  if (before) await fill(reader, Math.max(0, reader.from - 2 * AROUND), to);
  else await fill(reader, reader.from, Math.min(reader.document.characters, to + 2 * AROUND));
}
