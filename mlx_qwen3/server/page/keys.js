// What keys mean.

/** Enter sends. Not with Shift, and not while an input method composes a character with it. */
export function submits(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}

const mac = /Mac|iPhone|iPad/.test(navigator.platform);

/** Cmd+K on a Mac, Ctrl+K elsewhere. */
export function startsChat(event) {
  const held = mac ? event.metaKey && !event.ctrlKey : event.ctrlKey && !event.metaKey;
  return held && !event.altKey && !event.shiftKey && event.key.toLowerCase() === "k";
}

export const newChatKeys = mac ? "⌘K" : "Ctrl+K";
