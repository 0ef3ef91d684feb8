// Conversations and settings in this browser alone: localStorage, the newest conversation first.

const NAME = "conversations";
const FORM = "engine-conversations-1";

// Reads a small value, or keeps one. False if the browser has no room.
export function setting(name, value) {
	if (value === undefined) return localStorage.getItem(`engine.${name}`);
	try {
		localStorage.setItem(`engine.${name}`, value);
		return true;
	} catch {
		return false;
	}
}

// Whether a file of unknown origin, or what another version kept, is of this form.
const isConversation = (one) =>
	[one?.id, one?.title].every((text) => typeof text === "string") && Array.isArray(one.messages) && one.messages.every(isMessage);

const isMessage = (one) =>
	["user", "assistant", "tool"].includes(one?.role) && typeof one.content === "string" && (one.calls ?? []).every((call) => typeof call?.function?.arguments === "string");

export function list() {
	try {
		return JSON.parse(setting(NAME) ?? "[]").filter(isConversation);
	} catch {
		return [];
	}
}

const keep = (all) => setting(NAME, JSON.stringify(all));

// Without TLS, browsers have no crypto.randomUUID on other hosts than localhost.
export const create = () => ({ id: `${Date.now()}-${Math.random()}`, title: "", messages: [] });

export function save(one) {
	one.title = (one.messages[0]?.content ?? "").trim().slice(0, 80) || "…";
	return keep([one, ...list().filter(({ id }) => id !== one.id)]);
}

export const remove = (gone) => keep(list().filter(({ id }) => id !== gone));

export const exported = () => JSON.stringify({ form: FORM, conversations: list() }, null, 1);

// Returns how many were added; throws if the text is something else.
export function imported(text) {
	const { form, conversations } = JSON.parse(text);
	if (form !== FORM || !conversations.every(isConversation)) throw new Error(FORM);
	const known = new Set(list().map(({ id }) => id));
	const added = conversations.filter(({ id }) => !known.has(id));
	if (!keep([...added, ...list()])) throw new Error("full");
	return added.length;
}
