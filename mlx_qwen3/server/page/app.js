// The page: which conversation is on show, which replies are in the making, and what happens when.

import { Api } from "./api.js";
import { Composer } from "./composer.js";
import { lastUser, newConversation, openCalls, requestBody, titleOf } from "./conversation.js";
import { KeyDialog } from "./key_dialog.js";
import { newChatKeys, startsChat } from "./keys.js";
import { Models } from "./models.js";
import { newReply } from "./reply.js";
import { Run } from "./run.js";
import { SettingsDialog } from "./settings_dialog.js";
import { Sidebar } from "./sidebar.js";
import * as store from "./store.js";
import { Toast } from "./toast.js";
import { Transcript } from "./transcript.js";

const MOST_RETRIES = 5; // without being asked

const byId = (id) => document.getElementById(id);
const all = (...ids) => Object.fromEntries(ids.map((id) => [id, byId(id)]));

class App {
  #runs = new Map(); // conversation id -> Run
  #settings = store.loadSettings();
  #api = new Api(store.loadKey);
  #toast = new Toast(byId("toast"));

  constructor() {
    this.models = new Models(all("model", "trouble"), this.#api, this.#settings, {
      changed: () => this.#changedSettings(),
      refused: () => this.key.ask(),
    });
    this.transcript = new Transcript(all("scroller", "column", "latest", "live"), {
      edit: (text) => this.#edit(text),
      regenerate: () => this.#regenerate(),
      retry: (automatic) => this.#retry(automatic),
      answer: (results) => this.#answer(results),
    });
    this.composer = new Composer(all("form", "field", "send", "stop", "think"), {
      send: (text) => this.#send(text),
      stop: () => this.#stop(),
      think: (on) => this.#set({ thinking: on }),
      editLast: () => this.transcript.editLast(),
    });
    this.sidebar = new Sidebar(
      all("panel", "list", "toggle", "close", "scrim"),
      { remove: (one) => this.#remove(one), toggled: (open) => this.#set({ sidebar: open }) },
      this.#settings.sidebar,
    );
    this.settings = new SettingsDialog(byId("settings"), this.#settings, () => this.#changedSettings());
    this.key = new KeyDialog(byId("key"), () => this.#keyGiven());
    this.#listen();
  }

  start() {
    this.#route();
    this.models.load();
    this.composer.focus();
  }

  #listen() {
    byId("new").title = `New chat (${newChatKeys})`;
    for (const id of ["new", "new-small"]) byId(id).addEventListener("click", () => this.#newChat());
    byId("open-settings").addEventListener("click", () => this.settings.open());
    window.addEventListener("hashchange", () => this.#route());
    window.addEventListener("pagehide", () => this.#runs.forEach((run) => run.leave()));
    document.addEventListener("keydown", (event) => this.#key(event));
    store.watchConversations((id) => this.#changedElsewhere(id));
  }

  #key(event) {
    if (startsChat(event)) {
      event.preventDefault();
      this.#newChat();
    } else if (event.key === "Escape" && !event.isComposing && !document.querySelector("dialog[open]")) {
      if (!this.sidebar.closeDrawer()) this.#stop();
    }
  }

  // Conversations. The address names the one on show: #id, so that a reload and "back" find it.

  #route() {
    const id = location.hash.slice(1);
    const known = id && (this.#runs.get(id)?.conversation ?? store.loadConversation(id));
    if (id && !known) history.replaceState(null, "", "#");
    this.#open(known || newConversation());
  }

  #open(conversation) {
    this.conversation = conversation;
    this.transcript.show(conversation);
    this.#refresh();
  }

  #newChat() {
    if (location.hash.length > 1) history.pushState(null, "", "#");
    this.#open(newConversation());
    this.sidebar.closeDrawer();
    this.composer.focus();
  }

  #remove(conversation) {
    const current = conversation.id === this.conversation.id;
    this.#runs.get(conversation.id)?.stop();
    store.removeConversation(conversation.id);
    if (current) this.#newChat();
    this.#refresh();
    this.#toast.show("Chat deleted.", "Undo", () => {
      store.saveConversation(conversation);
      this.#refresh();
    });
  }

  #changedElsewhere(id) {
    const stored = id && store.loadConversation(id);
    if (id === this.conversation.id && stored && !this.#runs.has(id)) this.#open(stored);
    else this.#refresh();
  }

  #save(conversation) {
    conversation.updated = Date.now();
    if (store.saveConversation(conversation)) return;
    this.#toast.show("This browser has no room left: the chat is not kept. Delete old chats.");
  }

  // Turns. Each ends in #respond, which asks for the reply to all that was said.

  #send(text) {
    this.conversation.messages.push({ role: "user", content: text });
    this.#respond();
  }

  #edit(text) {
    this.conversation.messages.splice(lastUser(this.conversation));
    this.#send(text);
    this.composer.focus();
  }

  #answer(results) {
    if (openCalls(this.conversation).length === 0) return;
    const said = results.map(({ id, content }) => ({ role: "tool", id, content }));
    this.conversation.messages.push(...said);
    this.#respond();
  }

  #regenerate(attempt = 0) {
    if (this.conversation.messages.at(-1)?.role !== "assistant") return;
    this.conversation.messages.pop();
    this.#respond(attempt);
  }

  #retry(automatic) {
    const attempt = this.conversation.messages.at(-1)?.attempt ?? 0;
    this.#regenerate(automatic ? attempt + 1 : 0);
  }

  async #respond(attempt = 0) {
    const { conversation } = this;
    if (this.#runs.has(conversation.id)) return;
    const message = { ...newReply(this.models.current?.id), attempt };
    conversation.messages.push(message);
    const run = new Run(conversation, message, {
      save: () => this.#saveRun(run),
      changed: () => conversation === this.conversation && this.transcript.grow(),
    });
    this.#runs.set(conversation.id, run);
    this.#began(conversation);
    await run.follow(this.#api, () => this.#body(conversation, message));
    this.#runs.delete(conversation.id);
    this.#ended(conversation, message);
  }

  async #body(conversation, message) {
    const model = await this.models.need();
    message.model = model.id;
    return requestBody(conversation, this.#settings, model);
  }

  #began(conversation) {
    this.#save(conversation);
    history.replaceState(null, "", `#${conversation.id}`);
    this.transcript.sync();
    this.transcript.follow();
    this.#refresh();
  }

  #ended(conversation, { error, attempt }) {
    if (error && attempt >= MOST_RETRIES) delete error.retryAt;
    if (error?.kind === "key") this.key.ask();
    if (error?.kind === "gone") this.models.load();
    if (conversation === this.conversation) this.transcript.sync();
    this.#refresh();
  }

  /** Not one that was deleted meanwhile. */
  #saveRun({ conversation }) {
    if (this.#runs.has(conversation.id) && store.loadConversation(conversation.id)) {
      this.#save(conversation);
    }
  }

  #stop() {
    this.#runs.get(this.conversation.id)?.stop();
  }

  #keyGiven() {
    this.models.load();
    if (this.conversation.messages.at(-1)?.error?.kind === "key") this.#regenerate();
    this.composer.focus();
  }

  // Settings.

  #set(changes) {
    Object.assign(this.#settings, changes);
    this.#changedSettings();
  }

  #changedSettings() {
    store.saveSettings(this.#settings);
    this.#refreshComposer();
  }

  #refresh() {
    const empty = this.conversation.messages.length === 0;
    document.title = empty ? "mlx-qwen3" : `${titleOf(this.conversation)} – mlx-qwen3`;
    document.body.classList.toggle("empty", empty);
    this.sidebar.refresh(store.conversations(), this.conversation.id, new Set(this.#runs.keys()));
    this.#refreshComposer();
  }

  #refreshComposer() {
    const busy = this.#runs.has(this.conversation.id);
    this.composer?.refresh({ busy, mode: this.models.current?.thinking, ...this.#settings });
  }
}

function listenToTheme() {
  const [button, order] = [byId("theme"), [null, "light", "dark"]];
  const show = () => {
    const name = window.pageTheme.get() ?? "system";
    button.querySelector("span").textContent = `Theme: ${name}`;
  };
  button.addEventListener("click", () => {
    const next = order[(order.indexOf(window.pageTheme.get()) + 1) % order.length];
    window.pageTheme.set(next);
    show();
  });
  show();
}

listenToTheme();
new App().start();
