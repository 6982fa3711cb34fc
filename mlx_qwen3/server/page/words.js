// What the page says: errors and numbers, in words.

const ERRORS = {
  gone: "The server does not answer. Check that “mlx-qwen3 serve” is still running.",
  broken: "The connection broke off. What was said until then is kept.",
  busy: "The server is busy with other requests.",
  loading: "The server is not ready yet.",
  key: "The server wants another API key.",
  missing: "The server does not know this model.",
  empty: "The server has no models.",
  overflow:
    "This conversation no longer fits the model’s context. Start a new chat, or edit your last message.",
  refused: "The server refused this request.",
  failed: "Something went wrong in the server.",
  garbled: "What answered does not look like an mlx-qwen3 server.",
  page: "Something went wrong in this page. Reload it.",
};

/** A sentence or two for a person: what happened, and what the server says about it. */
export function errorText({ kind, detail }) {
  if (kind === "options") return `A setting cannot be used: ${detail}.`;
  const known = ERRORS[kind] ?? ERRORS.failed;
  return detail ? `${known} It says: “${detail}”.` : known;
}

export const ended = {
  stopped: "You stopped this reply.",
  length: "The reply reached the largest number of tokens and was cut off.",
  interrupted: "This reply was cut off when the page was closed.",
};

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const short = (number) => (number < 100 ? tenths : whole).format(number);

export function count(number, noun) {
  return `${whole.format(number)} ${noun}${number === 1 ? "" : "s"}`;
}

export function duration(seconds) {
  if (seconds < 10) return `${tenths.format(seconds)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/** The line above a folded thought. live: it still goes on. */
export function thinkingText({ thinkingSeconds, usage }, live) {
  if (live) return thinkingSeconds < 1 ? "Thinking…" : `Thinking for ${duration(Math.floor(thinkingSeconds))}…`;
  const time = thinkingSeconds >= 0.1 ? ` for ${duration(thinkingSeconds)}` : "";
  const tokens = usage?.completion_tokens_details?.reasoning_tokens;
  return `Thought${time}${tokens ? ` · ${count(tokens, "token")}` : ""}`;
}

/** What a reply took: [[short, for a tooltip], ...]. */
export function statistics({ usage, seconds, firstSeconds, model }) {
  if (!usage) return [];
  const { prompt_tokens: prompt, completion_tokens: made } = usage;
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const decode = seconds - firstSeconds;
  const speed = made > 1 && decode > 0 ? (made - 1) / decode : null;
  const known = cached ? `, ${whole.format(cached)} of them known from before` : "";
  return [
    speed && [`${short(speed)} tokens/s`, "Generated tokens per second, after the first"],
    [count(made, "token"), `${count(prompt, "token")} read${known}; ${count(made, "token")} generated`],
    [duration(seconds), `First token after ${duration(firstSeconds)}`],
    model && [model, "The model that answered"],
  ].filter(Boolean);
}
