// Requests to the server. Every failure is a Failure: `status` 0 when the server was not reached, else the HTTP status.

export class Failure extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const KEY = "minimemo-key"; // of this tab only
export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const setKey = (key) => sessionStorage.setItem(KEY, key);

async function request(path, options = {}) {
  const headers = hasKey() ? { Authorization: `Bearer ${sessionStorage.getItem(KEY)}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(error.message, 0);
  }
  if (!response.ok) throw new Failure(await reason(response), response.status);
  return response;
}

async function reason(response) {
  const text = await response.text();
  const json = response.headers.get("content-type")?.includes("json") ? JSON.parse(text) : null;
  return json?.error?.message ?? json?.error ?? `${response.status} ${response.statusText}`;
}

const json = async (path, options) => (await request(path, options)).json();

export const documents = () => json("api/documents");
export const jobs = () => json("api/jobs");
export const upload = (file) => json(`api/documents?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
export const remove = (id) => request(`api/documents/${encodeURIComponent(id)}`, { method: "DELETE" });
export const cancel = (id) => request(`api/jobs/${encodeURIComponent(id)}`, { method: "DELETE" });
export const text = (id, start, end, signal) => json(`api/documents/${encodeURIComponent(id)}/text?start=${start}&end=${end}`, { signal });
export const fileUrl = (id, page) => `documents/${encodeURIComponent(id)}/file${page ? `#page=${page}` : ""}`;

// A frame sends no key, so where one is needed the file is fetched here and shown from memory. It is narrow: the viewer's
// list of pages would take half of it.
export async function framed(id, page) {
  const at = page ? `#page=${page}&navpanes=0` : "";
  if (!hasKey()) return `${fileUrl(id)}${at}`;
  const blob = await (await request(fileUrl(id))).blob();
  return `${URL.createObjectURL(blob)}${at}`;
}

// Asks, and calls on(event, data) for each event of the stream until it ends.
export async function ask(body, on, signal) {
  const headers = { "Content-Type": "application/json", Accept: "text/event-stream" };
  const response = await request("api/ask", { method: "POST", headers, body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure(error.message, 0);
    }
    if (part.done) return;
    buffer = (buffer + part.value).replace(/\r\n/g, "\n");
    const events = buffer.split("\n\n");
    buffer = events.pop();
    for (const event of events) {
      const fields = event.split("\n").map((line) => /^(\w+): ?(.*)$/.exec(line)).filter(Boolean);
      const data = fields.filter(([, name]) => name === "data").map(([, , value]) => value).join("\n");
      if (data) on(fields.find(([, name]) => name === "event")?.[2] ?? "message", JSON.parse(data));
    }
  }
}
