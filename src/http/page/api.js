// Talks to the server this page came from.

const KEY = "expandr-key";

/** The key that the user typed in; it leaves with the tab. */
export const key = () => sessionStorage.getItem(KEY) ?? "";

export function useKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

/** What the server, or the way to it, refused: a problem as RFC 9457 has it. */
export class Refused extends Error {
  constructor(problem) {
    super(problem.detail);
    this.problem = problem;
  }
}

export const asProblem = (error) =>
  error instanceof Refused ? error.problem : { title: "this page failed", detail: String(error?.message ?? error) };

export const isAbort = (error) => error?.name === "AbortError";

async function send(method, path, { body, headers, signal } = {}) {
  const all = { ...headers };
  if (key()) all.authorization = `Bearer ${key()}`;
  if (body !== undefined) all["content-type"] = "application/json";
  let response;
  try {
    const content = body === undefined ? undefined : JSON.stringify(body);
    response = await fetch(path, { method, headers: all, body: content, signal, cache: "no-store" });
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new Refused(unreachable());
  }
  if (!response.ok) throw new Refused(await problemOf(response));
  return response;
}

const unreachable = () =>
  ({ code: "unreachable", title: "the server does not answer", detail: "The connection failed or was cut off." });

async function problemOf(response) {
  const problem = await response.json().catch(() => null);
  return problem ?? { title: `status ${response.status}`, detail: "The answer is not one of this server's." };
}

/** Sends a request and reads the JSON of its answer; null where there is none. */
export async function call(method, path, body, signal) {
  const response = await send(method, path, { body, signal });
  return response.status === 204 ? null : response.json();
}

/** Server-sent events as {id, event, data}, the data read as JSON. Ends with the stream. */
export async function* events(method, path, { body, headers = {}, signal } = {}) {
  const response = await send(method, path, { body, signal, headers: { ...headers, accept: "text/event-stream" } });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      let piece;
      try {
        piece = await reader.read();
      } catch (error) {
        if (isAbort(error) || signal?.aborted) throw error;
        throw new Refused(unreachable());
      }
      if (piece.done) return;
      text += piece.value;
      for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
        const event = parse(text.slice(0, end));
        text = text.slice(end + 2);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parse(block) {
  const event = { event: "message", id: null };
  const data = [];
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon <= 0) continue; // a comment, or no field
    const value = line.slice(colon + 1).replace(/^ /, "");
    const field = line.slice(0, colon);
    if (field === "data") data.push(value);
    else if (field === "event" || field === "id") event[field] = value;
  }
  return data.length ? { ...event, data: JSON.parse(data.join("\n")) } : null;
}
