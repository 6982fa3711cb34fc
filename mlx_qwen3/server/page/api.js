// The server's OpenAI-compatible API, as far as the page uses it.

/** Why a request failed. kind: a key of ERRORS in words.js; detail: the server's own words. */
export class ApiError extends Error {
  constructor(kind, { detail = "", retryAfter = null, status = null } = {}) {
    super(detail || kind);
    Object.assign(this, { kind, detail, retryAfter, status });
  }
}

const KINDS = { 401: "key", 403: "key", 404: "missing", 413: "overflow", 429: "busy", 503: "loading" };
const OVERFLOW = "context_length_exceeded";

export class Api {
  #key;

  /** key: () -> the API key or null. */
  constructor(key) {
    this.#key = key;
  }

  /** The models on offer: [{id, ...}]. Raises ApiError. */
  async models() {
    const response = await this.#fetch("v1/models");
    const data = (await readJson(response))?.data;
    return Array.isArray(data) ? data.filter((model) => typeof model?.id === "string") : [];
  }

  /** The chunks of a streamed reply. Raises ApiError, or AbortError once `signal` is given. */
  async *chat(body, signal) {
    const response = await this.#fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      signal,
    });
    if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
      throw new ApiError("garbled");
    }
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = parseChunk(data);
      if (chunk.error) throw failure(response, chunk.error);
      yield chunk;
    }
    throw new ApiError("broken");
  }

  async #fetch(path, options = {}) {
    const key = this.#key();
    const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    let response;
    try {
      response = await fetch(new URL(path, document.baseURI), { ...options, headers });
    } catch (error) {
      throw error.name === "AbortError" ? error : new ApiError("gone");
    }
    if (response.ok) return response;
    const answer = await response.json().catch(() => null);
    throw failure(response, answer?.error);
  }
}

/** The payloads of a server-sent event stream, as they arrive. Raises ApiError when it breaks. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      // Each of our API's events is one line of data; comments keep the connection open.
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stopped listening; a broken stream is cancelled
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError("broken");
  }
}

async function readJson(response) {
  try {
    return await response.json();
  } catch {
    throw new ApiError("garbled");
  }
}

function parseChunk(data) {
  try {
    return Object(JSON.parse(data));
  } catch {
    throw new ApiError("garbled");
  }
}

function failure({ ok, status, headers }, error) {
  const detail = typeof error === "string" ? error : (error?.message ?? "");
  const overflow = [error?.code, error?.type].includes(OVERFLOW);
  const general = ok || status >= 500 ? "failed" : "refused"; // ok: it failed in the midst of it
  const kind = overflow ? "overflow" : (KINDS[status] ?? general);
  return new ApiError(kind, { detail, status, retryAfter: seconds(headers.get("Retry-After")) });
}

/** Retry-After: seconds, or a date. */
function seconds(header) {
  if (!header) return null;
  const wait = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(wait) ? Math.max(1, Math.ceil(wait)) : null;
}
