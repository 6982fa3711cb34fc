// One reply in the making: from the request to its end, whatever that is.

import { Reply } from "./reply.js";

const SAVE_EVERY = 500; // milliseconds: what a reload in the midst of a reply may lose

export class Run {
  #abort = new AbortController();
  #saved = 0;
  #left = false;

  /**
   * message: a new reply, already the conversation's last.
   * save, changed: called when the conversation should be kept, and shown.
   */
  constructor(conversation, message, { save, changed }) {
    Object.assign(this, { conversation, message, save, changed });
  }

  /** Stream until it ends. body: () -> the request's, or a promise of it. Never rejects. */
  async follow(api, body) {
    const reply = new Reply(this.message);
    const clock = setInterval(() => (reply.tick(), this.changed()), 1000);
    try {
      const chunks = api.chat(await body(), this.#abort.signal);
      for await (const chunk of chunks) {
        reply.take(chunk);
        this.#saveSometimes();
        this.changed();
      }
      reply.end("done");
    } catch (error) {
      this.#fail(reply, error);
    } finally {
      clearInterval(clock);
      this.save();
      this.changed();
    }
  }

  stop() {
    this.#abort.abort();
  }

  /** The page is being closed: keep what there is. That the browser ends the stream is no error. */
  leave() {
    this.#left = true;
    this.save();
  }

  #fail(reply, error) {
    if (this.#abort.signal.aborted) reply.end("stopped");
    else if (this.#left) reply.end("interrupted");
    else reply.end("failed", describe(error));
  }

  #saveSometimes() {
    const now = performance.now();
    if (now - this.#saved < SAVE_EVERY) return;
    this.#saved = now;
    this.save();
  }
}

/** An error as data. One that is not the API's is a fault of the page, and says what it is. */
function describe({ kind = "page", detail, message, retryAfter }) {
  const again = retryAfter ? { retryAt: Date.now() + retryAfter * 1000 } : {};
  return { kind, detail: detail ?? message, ...again };
}
