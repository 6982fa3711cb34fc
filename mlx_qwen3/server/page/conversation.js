// A conversation: plain data, and what it becomes for the API.
//
// {id, created, updated, messages}; a message is {role: "user", content},
// {role: "assistant", ...} (see reply.js) or {role: "tool", id, content}.

import { ApiError } from "./api.js";

export function newConversation() {
  const now = Date.now();
  return { id: newId(), created: now, updated: now, messages: [] };
}

/** randomUUID would need a secure context, and a page from another machine has none. */
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(9));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function titleOf({ messages }) {
  const first = messages.find(({ role }) => role === "user")?.content ?? "";
  return first.trim().replaceAll(/\s+/g, " ").slice(0, 80) || "New chat";
}

/** Where the turn of the last user message begins, or -1. */
export function lastUser({ messages }) {
  return messages.findLastIndex(({ role }) => role === "user");
}

/** The calls of the last reply that still wait for a result. */
export function openCalls({ messages }) {
  const last = messages.at(-1);
  return last?.role === "assistant" && last.state === "done" ? last.calls : [];
}

export function resultOf({ messages }, reply, call) {
  const place = messages.indexOf(reply);
  for (const { role, id, content } of messages.slice(place + 1)) {
    if (role !== "tool") return null;
    if (id === call.id) return content;
  }
  return null;
}

/** The request body for what comes next. Raises ApiError where a setting makes no sense. */
export function requestBody(conversation, settings, model) {
  const body = { model: model.id, messages: apiMessages(conversation, settings.system) };
  if (settings.temperature !== null) body.temperature = settings.temperature;
  if (settings.maxTokens !== null) body.max_tokens = settings.maxTokens;
  const tools = readTools(settings.tools);
  if (tools.length > 0) body.tools = tools;
  return { ...body, ...thinkingOptions(settings, model.thinking) };
}

/** mode: "hybrid", "always", "never", or undefined where the server does not tell. */
function thinkingOptions({ thinking, thinkingBudget }, mode) {
  const thinks = mode === "always" || (thinking && mode !== "never");
  const budget = thinks && thinkingBudget !== null ? { thinking_budget: thinkingBudget } : {};
  // A model of unknown mode is only told what is not its default.
  const told = mode === "hybrid" || (mode === undefined && !thinking);
  return told ? { ...budget, chat_template_kwargs: { enable_thinking: thinking } } : budget;
}

function apiMessages(conversation, system) {
  const turn = lastUser(conversation);
  const said = conversation.messages.flatMap((message, place) => API[message.role](message, place > turn));
  return system.trim() ? [{ role: "system", content: system }, ...said] : said;
}

const API = {
  user: ({ content }) => [{ role: "user", content }],
  tool: ({ id, content }) => [{ role: "tool", tool_call_id: id, content }],
  // Qwen3 reads its own thoughts again only within a turn: between a call and its result.
  assistant: ({ content, reasoning, calls }, sameTurn) => {
    if (!content && calls.length === 0) return []; // stopped or failed before it said anything
    const message = { role: "assistant", content };
    if (sameTurn && reasoning) message.reasoning_content = reasoning;
    if (calls.length > 0) message.tool_calls = calls.map(apiCall);
    return [message];
  },
};

function apiCall({ id, name, arguments: text }) {
  return { id, type: "function", function: { name, arguments: text } };
}

/** Tools as JSON text: a list, in OpenAI's form or as bare functions. "" is none. */
export function readTools(text) {
  if (!text.trim()) return [];
  try {
    const tools = JSON.parse(text);
    if (!Array.isArray(tools)) throw new TypeError("expected a list: [ … ]");
    return tools.map((tool) => (tool?.function ? tool : { type: "function", function: tool }));
  } catch (error) {
    throw new ApiError("options", { detail: `Tools: ${error.message}` });
  }
}
