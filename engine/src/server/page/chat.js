// The chat: streams answers; messages are edited, retried, stopped, and tools answered.

import { stream } from "./api.js";
import * as conversations from "./conversations.js";
import { button, byId, copy, h, iconButton, say } from "./elements.js";
import { codeBlock, rendered } from "./markdown.js";
import * as settings from "./settings.js";
import { duration, number, t } from "./words.js";

let chat = conversations.create();
let running = null;

export const isRunning = () => running !== null;
export const stop = () => running?.abort();

export function open(conversation = conversations.create()) {
	stop();
	chat = conversation;
	draw();
	drawList();
	byId("message").focus();
}

// The conversation's first messages, a new one, and an answer.
export function send(content, at = chat.messages.length) {
	if (running || !content.trim()) return false;
	chat.messages.splice(at, Infinity, { role: "user", content });
	answer();
	return true;
}

// What the server is sent: figures and thoughts stay here.
function sent(messages) {
	const system = settings.system();
	const of = ({ role, content, calls, id }) => {
		if (role === "tool") return { role, content, tool_call_id: id };
		return calls?.length ? { role, content: content || null, tool_calls: calls } : { role, content };
	};
	return [...(system ? [{ role: "system", content: system }] : []), ...messages.map(of)];
}

async function answer() {
	const [of, abort] = [chat, new AbortController()];
	const message = { role: "assistant", content: "", thoughts: "", calls: [] };
	const messages = sent(of.messages);
	of.messages.push(message);
	running = abort;
	draw();
	follow();
	const clock = { sent: performance.now() };
	try {
		// With the counts so far in every chunk, an answer that was stopped has its figures, too.
		const stream_options = { include_usage: true, continuous_usage_stats: true };
		const body = { model: byId("model").value || undefined, messages, stream: true, stream_options, ...settings.fields() };
		for await (const chunk of stream("/v1/chat/completions", body, abort.signal)) {
			take(message, chunk, clock);
			if (of === chat) drawSoon(message);
		}
	} catch (error) {
		if (abort.signal.aborted) message.stopped = true;
		else message.error = error.message;
	}
	message.stats = stats(message.usage, clock);
	if (running === abort) running = null;
	if (!conversations.save(of)) say(t("full"));
	if (of === chat) draw();
	drawList();
}

function take(message, { usage, choices: [choice] = [] }, clock) {
	message.usage = usage ?? message.usage;
	const { content, reasoning_content: thought, tool_calls: calls = [] } = choice?.delta ?? {};
	if (content || thought || calls.length) {
		clock.last = performance.now();
		clock.first ??= clock.last;
		clock.firstTokens ??= usage?.completion_tokens;
	}
	message.content += content ?? "";
	message.thoughts += thought ?? "";
	for (const { index, id, function: part } of calls) {
		const call = (message.calls[index] ??= { id, type: "function", function: { name: "", arguments: "" } });
		call.function.name += part?.name ?? "";
		call.function.arguments += part?.arguments ?? "";
	}
	message.finish = choice?.finish_reason ?? message.finish;
}

function stats(usage, { sent, first, last, firstTokens }) {
	if (first === undefined) return null;
	// The tokens of the first chunk took the time to the first token. A tool call comes at once when it
	// is whole, and that says no rate.
	const n = usage?.completion_tokens - firstTokens;
	const rate = n > 0 && last - first > 5 ? (1000 * n) / (last - first) : null;
	return { ttft: first - sent, total: last - sent, rate };
}

function statsLine({ stats, usage, stopped, finish }) {
	const part = (value, label) => h("span", {}, h("b", {}, value), ` ${label}`);
	const cached = usage?.prompt_tokens_details?.cached_tokens;
	const thoughts = usage?.completion_tokens_details?.reasoning_tokens;
	return h(
		"div",
		{ class: "stats" },
		stats?.rate && part(number(stats.rate, 1), t("rate")),
		stats && part(duration(stats.ttft), "TTFT"),
		usage && part(number(usage.prompt_tokens), t("prompt") + (cached ? ` (${number(cached)} ${t("cached")})` : "")),
		usage && part(number(usage.completion_tokens), t("output") + (thoughts ? ` (${number(thoughts)} ${t("thought")})` : "")),
		stats && part(duration(stats.total), t("total")),
		stopped && t("stopped"),
		finish === "length" && t("cutOff"),
	);
}

// One drawing a frame, however fast chunks come.
let isDue = false;
function drawSoon(message) {
	if (isDue) return;
	isDue = true;
	requestAnimationFrame(() => {
		isDue = false;
		if (!running || message !== chat.messages.at(-1)) return;
		const wasAtEnd = isAtEnd();
		byId("messages").lastChild.replaceWith(element(message, chat.messages.length - 1));
		if (wasAtEnd) follow();
	});
}

const isAtEnd = () => byId("log").scrollHeight - byId("log").scrollTop - byId("log").clientHeight < 80;
const follow = () => (byId("log").scrollTop = byId("log").scrollHeight);

export function draw() {
	const wasAtEnd = isAtEnd();
	byId("send").hidden = isRunning();
	byId("stop").hidden = !isRunning();
	byId("log").ariaBusy = String(isRunning());
	byId("messages").replaceChildren(...(chat.messages.length ? chat.messages.map(element) : [h("div", { class: "hello" }, h("h1", {}, t("hello")), h("p", { class: "dim" }, t("helloSub")))]));
	if (wasAtEnd) follow();
}

function element(message, at) {
	const { role, content } = message;
	const isLive = isRunning() && at === chat.messages.length - 1;
	const actions = [
		content && iconButton("copy", t("copy"), async () => say(t(await copy(content)))),
		role === "user" && iconButton("edit", t("edit"), () => edit(content, at)),
		role === "assistant" && iconButton("retry", t("retry"), () => {
			chat.messages.length = at;
			answer();
		}),
	];
	const parts = role === "assistant" ? answerParts(message, at, isLive) : [h("div", { class: "body" }, content)];
	return h("article", { class: `message ${role}`, "aria-label": t(role) }, ...parts, h("div", {}, ...(isRunning() ? [] : actions)));
}

function answerParts(message, at, isLive) {
	const { thoughts, content, calls = [], error } = message;
	// Kept open or closed while the answer is drawn again.
	const fold = thoughts && h("details", { open: message.isOpen, ontoggle: (event) => (message.isOpen = event.target.open) }, h("summary", {}, t("thought")), h("div", {}, thoughts));
	const form = /^\s*[{[]/.test(content) && pretty(content);
	const body = form ? [codeBlock(form, "json")] : rendered(content);
	if (isLive && !content && !thoughts && !calls.length) body.push(h("span", { class: "dim" }, t("waiting")));
	return [fold, h("div", { class: "body" }, ...body), ...calls.map((call) => callElement(call, at, isLive)), error && h("div", { class: "error", role: "alert" }, error), statsLine(message)];
}

function pretty(text) {
	try {
		return JSON.stringify(JSON.parse(text), null, 2);
	} catch {
		return null;
	}
}

function callElement(call, at, isLive) {
	const isAnswered = ({ id }) => chat.messages.some((message, i) => i > at && message.id === id);
	const area = h("textarea", { rows: 2, class: "result" });
	const onsubmit = (event) => {
		event.preventDefault();
		if (running) return;
		chat.messages.push({ role: "tool", id: call.id, content: area.value });
		if (chat.messages[at].calls.every(isAnswered)) answer();
		else draw();
	};
	const { name, arguments: text } = call.function;
	const form = !isLive && !isAnswered(call) && h("form", { onsubmit }, h("label", {}, t("callResult"), area), h("button", {}, t("send")));
	return h("div", { class: "card call" }, h("h3", {}, `${t("tool")}: ${name}`), codeBlock(pretty(text) ?? text, "json"), form);
}

function edit(content, at) {
	const area = h("textarea", { rows: 4, value: content, "aria-label": t("edit") });
	const resend = () => send(area.value, at);
	area.addEventListener("keydown", (event) => {
		if (event.key === "Escape") draw();
		else if (isSending(event)) resend();
		else return;
		event.preventDefault();
		event.stopPropagation();
	});
	const row = h("div", { class: "row" }, button(t("send"), resend), button(t("cancel"), draw));
	byId("messages").children[at].replaceWith(h("article", { class: "message editing" }, area, row));
	area.focus();
}

// Enter while a Korean syllable is being composed ends the syllable only.
export const isSending = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;

export function drawList() {
	const item = (one) => {
		const remove = () => {
			if (!confirm(t("removeSure"))) return;
			conversations.remove(one.id);
			if (one.id === chat.id) open();
			else drawList();
		};
		const isNow = one.id === chat.id;
		return h("li", { class: isNow && "now" }, button(one.title, () => open(one), { class: "title", title: one.title, "aria-current": isNow && "true" }), iconButton("trash", `${t("remove")}: ${one.title}`, remove));
	};
	byId("conversations").replaceChildren(...conversations.list().map(item));
}
