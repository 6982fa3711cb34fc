// What the browser keeps: conversations and settings in localStorage, the key for this tab only.
//
// Each conversation has an entry of its own, so that two tabs do not overwrite each other's.

const CHAT = "mlx-qwen3.chat.";
const SETTINGS = "mlx-qwen3.settings";
const KEY = "mlx-qwen3.key";

export const DEFAULTS = {
  model: null,
  thinking: true,
  thinkingBudget: null,
  temperature: null,
  maxTokens: null,
  system: "",
  tools: "",
  sidebar: true,
};

/** All conversations, the one used last first. What cannot be read is left alone. */
export function conversations() {
  return Object.keys(localStorage)
    .filter((name) => name.startsWith(CHAT))
    .map((name) => read(localStorage, name))
    .filter(isConversation)
    .sort((one, other) => other.updated - one.updated);
}

export function loadConversation(id) {
  const found = read(localStorage, CHAT + id);
  return isConversation(found) ? interrupted(found) : null;
}

/** Returns whether there was room. */
export function saveConversation(conversation) {
  return write(localStorage, CHAT + conversation.id, conversation);
}

export function removeConversation(id) {
  localStorage.removeItem(CHAT + id);
}

/** Call back when another tab changed the conversation with this id (null: any of them). */
export function watchConversations(changed) {
  window.addEventListener("storage", ({ key, newValue }) => {
    const growing = newValue?.includes('"state":"streaming"'); // wait for the whole reply
    if (key === null) changed(null);
    else if (key.startsWith(CHAT) && !growing) changed(key.slice(CHAT.length));
  });
}

export function loadSettings() {
  return { ...DEFAULTS, ...read(localStorage, SETTINGS) };
}

export function saveSettings(settings) {
  return write(localStorage, SETTINGS, settings);
}

export function loadKey() {
  return read(sessionStorage, KEY);
}

export function saveKey(key) {
  write(sessionStorage, KEY, key);
}

/** Who reads a reply "streaming" from the store did not see its end. */
function interrupted(conversation) {
  for (const message of conversation.messages) {
    if (message.state === "streaming") message.state = "interrupted";
  }
  return conversation;
}

function isConversation(value) {
  return typeof value?.id === "string" && value.messages?.every?.(isMessage);
}

function isMessage({ role, content, calls }) {
  const known = role === "user" || role === "tool" || (role === "assistant" && Array.isArray(calls));
  return known && typeof content === "string";
}

function read(storage, name) {
  try {
    return JSON.parse(storage.getItem(name));
  } catch {
    return null;
  }
}

function write(storage, name, value) {
  try {
    storage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
