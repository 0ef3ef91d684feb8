// Requests to this server: the key, errors with their message, and streams of events.

const KEYS = { api: "engine.apiKey", admin: "engine.adminKey" };

export const key = (kind) => sessionStorage.getItem(KEYS[kind]) ?? "";

export function setKey(kind, value) {
  if (value) sessionStorage.setItem(KEYS[kind], value);
  else sessionStorage.removeItem(KEYS[kind]);
}

export class ServerError extends Error {
  constructor(status, body) {
    const error = body?.error ?? {};
    super(error.message ?? `HTTP ${status}`);
    this.status = status;
    this.code = error.code ?? "";
  }
}

export async function request(path, { method = "GET", body, signal, as = "api" } = {}) {
  const headers = {};
  if (key(as)) headers.authorization = `Bearer ${key(as)}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const text = body === undefined ? undefined : JSON.stringify(body);
  const response = await fetch(path, { method, headers, body: text, signal, cache: "no-store" });
  if (response.ok) return response;
  throw new ServerError(response.status, await response.json().catch(() => null));
}

export const json = async (path, options) => (await request(path, options)).json();

// The chunks of a streamed answer, until `[DONE]` or the end.
export async function* stream(path, body, signal) {
  const response = await request(path, { method: "POST", body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const events = (rest + value).split(/\r?\n\r?\n/);
      rest = events.pop();
      for (const event of events) {
        const data = dataOf(event);
        if (data === "[DONE]") return;
        if (!data) continue;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ServerError(response.status, chunk);
        yield chunk;
      }
    }
  } finally {
    // Also ends the request at the server if the answer is left early.
    reader.cancel().catch(() => {});
  }
}

function dataOf(event) {
  const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
}
