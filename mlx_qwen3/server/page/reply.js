// One assistant message, as it comes in. The message is plain data: it is what the store keeps.

export function newReply(model) {
  return { role: "assistant", model, content: "", reasoning: "", calls: [], state: "streaming" };
}

/**
 * Fills a message from the API's chunks.
 *
 * Adds to it: seconds, firstSeconds (until the first token), thinkingSeconds, usage, and at the
 * end state "done", "stopped" or "failed", with the API's finish reason or an error.
 */
export class Reply {
  #started = performance.now();
  #thinkingSince = null;

  constructor(message) {
    this.message = message;
  }

  take({ choices, usage }) {
    const delta = choices?.[0]?.delta ?? {};
    if (delta.reasoning_content) this.#think(delta.reasoning_content);
    if (delta.content) this.#answer(() => (this.message.content += delta.content));
    for (const call of delta.tool_calls ?? []) this.#answer(() => this.#call(call));
    this.message.finish = choices?.[0]?.finish_reason ?? this.message.finish;
    if (usage) this.message.usage = usage;
    this.tick();
  }

  /** Let the clock of a thought go on while nothing arrives. */
  tick() {
    if (this.#thinkingSince === null) return;
    this.message.thinkingSeconds = (performance.now() - this.#thinkingSince) / 1000;
  }

  end(state, error = null) {
    this.tick();
    this.message.seconds = this.#elapsed();
    this.message.state = state;
    if (error) this.message.error = error;
  }

  #think(text) {
    this.#arrived();
    if (!this.message.reasoning) this.#thinkingSince = performance.now();
    this.message.reasoning += text;
  }

  #answer(add) {
    this.#arrived();
    this.tick();
    this.#thinkingSince = null;
    add();
  }

  #call({ index = 0, id, function: made = {} }) {
    const call = (this.message.calls[index] ??= { id: "", name: "", arguments: "" });
    if (id) call.id = id;
    if (made.name) call.name += made.name;
    if (made.arguments) call.arguments += made.arguments;
  }

  #arrived() {
    this.message.firstSeconds ??= this.#elapsed();
  }

  #elapsed() {
    return (performance.now() - this.#started) / 1000;
  }
}
