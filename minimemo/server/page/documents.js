// The left column: documents, what is being read, and where a new one is dropped.

import * as act from "./actions.js";
import { html } from "./html.js";
import { state, update } from "./state.js";
import { bytes, count, duration, plain, t } from "./strings.js";

export const Cross = () => html`<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M4 4l8 8M12 4l-8 8" /></svg>`;

export function Documents() {
  const { documents, jobs, uploads, dismissed } = state;
  const shown = jobs.filter((job) => act.isActive(job) || (job.state === "failed" && !dismissed.has(job.id)));
  return html`<nav class="documents ${state.drawer === "documents" ? "open" : ""}" id="documents" aria-label=${t("documents")}>
    <div class="brand"><img src="icon.svg" alt="" width="24" height="24" />minimemo</div>
    <ul class="list">
      ${documents?.map((doc) => html`<${Row} key=${doc.id} doc=${doc} />`)}
      ${shown.map((job) => html`<${Job} key=${job.id} job=${job} />`)}
      ${uploads.map((entry) => html`<${Upload} key=${entry.name} entry=${entry} />`)}
    </ul>
    <label class="add">
      <input type="file" multiple onChange=${(event) => { act.add([...event.target.files]); event.target.value = ""; }} />
      <strong>+ ${t("add")}</strong>
      <span class="muted">${t("drop")}. ${t("dropHint")}</span>
    </label>
  </nav>`;
}

function Row({ doc }) {
  const chosen = state.chosen.has(doc.id);
  const pages = doc.pages ? [doc.pages === 1 ? t("onePage") : t("pages", { n: plain(doc.pages) })] : [];
  const facts = [doc.kind?.toUpperCase(), ...pages, t("tokens", { n: count(doc.tokens) })].filter(Boolean);
  const size = [bytes(doc.bytes), t("smaller", { n: plain(Math.round(doc.ratio)) })];
  const quality = doc.quality && t("quality", { n: Math.round(100 * doc.quality) });
  return html`<li class="document ${chosen ? "is-chosen" : ""}">
    <input type="checkbox" checked=${chosen} aria-label=${t("also", { name: doc.name })} onChange=${() => act.toggle(doc.id)} />
    <button class="name" aria-label=${t("only", { name: doc.name })} onClick=${() => act.only(doc.id)}>
      <span class="title" title=${doc.name}>${doc.name}</span>
      <span class="muted facts">${facts.join(" · ")}</span>
      <span class="muted facts">${size.join(" · ")}</span>
      ${quality && html`<span class="quality" title=${quality}><meter min="0" max="1" value=${doc.quality} aria-label=${quality}></meter><span class="muted">${quality}</span></span>`}
    </button>
    <button class="icon remove" aria-label=${t("remove", { name: doc.name })} onClick=${() => update({ removing: doc })}><${Cross} /></button>
  </li>`;
}

function Job({ job }) {
  const name = job.name ?? t("building");
  if (job.state === "failed")
    return html`<li class="job failed" role="alert"><span class="title">${name}</span>
      <span>${job.error}</span><button class="link" onClick=${() => act.dismiss(job)}>${t("dismiss")}</button></li>`;
  const share = job.total ? Math.floor((100 * job.done) / job.total) : null;
  const words = [job.state === "running" ? t("building") : t("waiting")];
  if (share !== null) words.push(`${share} %`);
  if (job.eta_s != null) words.push(t("left", { n: duration(job.eta_s) }));
  return html`<li class="job"><span class="title">${name}</span>
    <progress max="100" value=${share ?? undefined} aria-label=${`${t("building")}: ${name}`}></progress>
    <span class="muted facts">${words.join(" · ")}</span>
    <button class="link" onClick=${() => act.cancel(job)}>${t("cancel")}</button></li>`;
}

function Upload({ entry }) {
  return html`<li class="job ${entry.error ? "failed" : ""}"><span class="title">${entry.name}</span>
    ${entry.error
      ? html`<span role="alert">${entry.error}</span><button class="link" onClick=${() => act.forget(entry)}>${t("dismiss")}</button>`
      : html`<progress aria-label=${`${t("uploading")}: ${entry.name}`}></progress><span class="muted facts">${t("uploading")}</span>`}</li>`;
}

export function Removing({ doc }) {
  const open = (dialog) => dialog && !dialog.open && dialog.showModal();
  return html`<dialog ref=${open} aria-labelledby="removing" onClose=${() => update({ removing: null })}>
    <h2 id="removing">${t("removeAsk", { name: doc.name })}</h2>
    <p>${t("removeBody")}</p>
    <div class="row end">
      <button autofocus onClick=${() => update({ removing: null })}>${t("removeNo")}</button>
      <button class="danger" onClick=${() => act.remove(doc)}>${t("removeYes")}</button>
    </div>
  </dialog>`;
}
