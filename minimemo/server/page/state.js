// What the page knows, in one object; `update` changes it and draws the page at the next frame.

let draw = () => {};
let asked = false;

export const state = {
  documents: null, // null until the server was heard once
  chosen: new Set(), // ids of the documents that the next question goes to
  jobs: [],
  uploads: [], // {name, error}
  dismissed: new Set(), // ids of failed jobs that were seen
  turns: [],
  shown: -1, // the turn whose memory the panel shows
  reader: null, // {document, start, end, from, text, page, as, url, error}
  drawer: "", // on narrow screens: "documents" or "panel"
  removing: null, // the document that a dialog asks about
  offline: false,
  locked: "", // "" | "needed" | "wrong"
  dragging: false,
  toast: "",
};

export function update(change) {
  Object.assign(state, change);
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    draw();
  });
}

export function onDraw(callback) {
  draw = callback;
}
