// Conversations in this browser alone: localStorage, newest first.

const STORE = "engine.conversations";
const FORM = "engine-conversations-1";

let all = read();

function read() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORE) ?? "[]");
    return Array.isArray(kept) ? kept.filter(isConversation) : [];
  } catch {
    return [];
  }
}

function isText(value) {
  return typeof value === "string";
}

function isMessage(message) {
  return (
    message !== null &&
    typeof message === "object" &&
    ["user", "assistant", "tool"].includes(message.role) &&
    isText(message.content) &&
    (message.calls === undefined || Array.isArray(message.calls))
  );
}

function isConversation(one) {
  return (
    one !== null &&
    typeof one === "object" &&
    isText(one.id) &&
    isText(one.title) &&
    isText(one.system) &&
    Array.isArray(one.messages) &&
    one.messages.every(isMessage)
  );
}

// Returns false if the browser has no room.
function write() {
  try {
    localStorage.setItem(STORE, JSON.stringify(all));
    return true;
  } catch {
    return false;
  }
}

export const list = () => all;

export function create(system = "") {
  // Without TLS, browsers have no crypto.randomUUID on other hosts than localhost.
  const id = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 10)}`;
  return { id, title: "", system, messages: [], updated: Date.now() };
}

// Another tab may have written meanwhile, so only this conversation is replaced.
export function save(conversation) {
  conversation.updated = Date.now();
  const first = conversation.messages.find((message) => message.role === "user");
  conversation.title = (first?.content ?? "").trim().split("\n")[0].slice(0, 80);
  all = [conversation, ...read().filter((one) => one.id !== conversation.id)];
  return write();
}

export function remove(id) {
  all = read().filter((one) => one.id !== id);
  write();
}

export const exported = () => JSON.stringify({ form: FORM, conversations: all }, null, 1);

// Returns how many were added; throws if the text is something else.
export function imported(text) {
  const { form, conversations } = JSON.parse(text);
  if (form !== FORM || !Array.isArray(conversations) || !conversations.every(isConversation)) throw new Error(FORM);
  const known = new Set(read().map((one) => one.id));
  const added = conversations.filter((one) => !known.has(one.id));
  all = [...added, ...read()].sort((a, b) => (b.updated ?? 0) - (a.updated ?? 0));
  if (!write()) throw new Error("localStorage");
  return added.length;
}

// Small values: settings, language, theme.
export function setting(name, value) {
  const item = `engine.${name}`;
  if (value === undefined) return localStorage.getItem(item);
  try {
    localStorage.setItem(item, value);
  } catch {
    // The setting lasts as long as the page.
  }
  return value;
}
