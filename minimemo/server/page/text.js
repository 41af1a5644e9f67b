// Texts: Markdown of answers, places of passages, citations, the exported conversation.
// Offsets count characters as Python does, code points: a JavaScript string is cut through Array.from.

import { t } from "./strings.js";
import { marked } from "./vendor/marked.esm.js";
import "./vendor/purify.min.js"; // sets globalThis.DOMPurify

const ALLOWED = {
  ALLOWED_TAGS: ["p", "br", "strong", "em", "del", "code", "pre", "ul", "ol", "li", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "table", "thead", "tbody", "tr", "th", "td"],
  ALLOWED_ATTR: ["start"],
  RETURN_DOM_FRAGMENT: true,
};
const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
// HTML in an answer is shown as it is written; links and pictures are shown as their words, so that nothing is loaded.
marked.use({ gfm: true, renderer: { html: ({ text }) => escape(text), image: ({ text }) => escape(text) } });

export const hasBlocks = (answer) => answer.includes("\n");
export const markdown = (answer) => globalThis.DOMPurify.sanitize(marked.parse(answer), ALLOWED);

export function cut(text, start, end) {
  return Array.from(text).slice(start, end).join("");
}

// Cuts a passage into the text before its cited sentence, the sentence, and the text after it.
export function aroundSpan({ text, start, span }) {
  if (!span) return [text, "", ""];
  return [cut(text, 0, span[0] - start), cut(text, span[0] - start, span[1] - start), cut(text, span[1] - start)];
}

export function placeOf({ label, page, heading, time, start, end }) {
  const parts = [];
  if (page != null) parts.push(t("pageN", { n: label || page }));
  if (time) parts.push(time);
  if (heading?.length) parts.push(heading.join(" › "));
  return parts.length ? parts.join(" · ") : t("characters", { a: start, b: end });
}

// Cited passages first: a number means the same in the answer, the list, the strip and on the keyboard.
export function numbered(passages) {
  return [...passages.filter((p) => p.cited), ...passages.filter((p) => !p.cited)].map((p, i) => ({ ...p, number: i + 1 }));
}

export const isRefused = (answer) => answer.guess != null;
export const isDoubted = (answer) => !answer.supported && !isRefused(answer);

export function answerAsMarkdown(turn) {
  const { answer } = turn;
  const cited = numbered(answer.passages).filter((p) => p.cited);
  const lines = [answer.text + cited.map((p) => ` [${p.number}]`).join("")];
  if (isDoubted(answer)) lines.push("", `*${t("doubt")}*`);
  for (const p of cited) {
    const quote = (p.span ? aroundSpan(p)[1] : p.text).trim().replace(/\n/g, "\n> ");
    lines.push("", `> [${p.number}] ${quote}`, ">", `> — ${p.document || turn.documents[0].name}, ${placeOf(p)} (${t("characters", { a: p.start, b: p.end })})`);
  }
  return lines.join("\n");
}

export function conversationAsMarkdown(turns) {
  const names = [...new Set(turns.flatMap((turn) => turn.documents.map((d) => d.name)))];
  const parts = turns.filter((turn) => turn.answer).map((turn) => `## ${turn.question}\n\n${answerAsMarkdown(turn)}\n`);
  return `# ${t("exported", { name: names.join(", ") })}\n\n${parts.join("\n")}`;
}
