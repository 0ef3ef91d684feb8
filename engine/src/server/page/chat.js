// The chat: streams answers, and lets every message be edited, retried, stopped or continued.

import { ServerError, stream } from "./api.js";
import * as conversations from "./conversations.js";
import { byId, copy, h, iconButton, say } from "./elements.js";
import { codeBlock, rendered } from "./markdown.js";
import * as settings from "./settings.js";
import { duration, number, t } from "./words.js";

const CHAT = "/v1/chat/completions";

let chat = conversations.create();
let running = null;

export const isRunning = () => running !== null;

export function stop() {
  running?.abort();
}

export function open(conversation) {
  stop();
  chat = conversation ?? conversations.create();
  draw();
  drawList();
  byId("message").focus();
}

export function send(text) {
  if (running || !text.trim()) return false;
  chat.messages.push({ role: "user", content: text });
  answer();
  return true;
}

// What the server is sent: the messages' own figures and thoughts stay here.
function sent(messages) {
  const system = settings.system().trim();
  const out = system ? [{ role: "system", content: system }] : [];
  for (const { role, content, calls, id } of messages) {
    if (role === "tool") out.push({ role, content, tool_call_id: id });
    else if (calls?.length) out.push({ role, content: content || null, tool_calls: calls });
    else out.push({ role, content });
  }
  return out;
}

async function answer() {
  const of = chat;
  const message = { role: "assistant", content: "", thoughts: "", calls: [] };
  const before = sent(of.messages);
  of.messages.push(message);
  const abort = new AbortController();
  running = abort;
  draw();
  follow(true);
  const clock = { sent: performance.now() };
  try {
    const model = byId("model").value;
    const body = {
      ...(model && { model }),
      messages: before,
      stream: true,
      // With the counts so far in every chunk, an answer that was stopped has its figures, too.
      stream_options: { include_usage: true, continuous_usage_stats: true },
      ...settings.fields(),
    };
    for await (const chunk of stream(CHAT, body, abort.signal)) {
      take(message, chunk, clock);
      drawSoon(of, message);
    }
  } catch (error) {
    if (abort.signal.aborted) message.stopped = true;
    else message.error = error instanceof ServerError && error.status === 401 ? `${error.message} ${t("needKey")}` : error.message;
  }
  message.stats = stats(message, clock);
  running = running === abort ? null : running;
  if (!conversations.save(of)) say(t("full"));
  if (of === chat) draw();
  drawList();
}

function take(message, chunk, clock) {
  if (chunk.usage) message.usage = chunk.usage;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const { content, reasoning_content: thought, tool_calls: calls = [] } = choice.delta ?? {};
  if (content || thought || calls.length) {
    clock.last = performance.now();
    clock.first ??= clock.last;
    clock.firstTokens ??= chunk.usage?.completion_tokens ?? 1;
  }
  message.content += content ?? "";
  message.thoughts += thought ?? "";
  for (const part of calls) {
    const call = (message.calls[part.index] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
    if (part.id) call.id = part.id;
    call.function.name += part.function?.name ?? "";
    call.function.arguments += part.function?.arguments ?? "";
  }
  if (choice.finish_reason) message.finish = choice.finish_reason;
}

function stats({ usage }, clock) {
  if (clock.first === undefined) return null;
  const out = { ttft: clock.first - clock.sent, total: clock.last - clock.sent };
  if (!usage) return out;
  // The tokens of the first chunk took the time to the first token.
  const n = usage.completion_tokens - clock.firstTokens;
  const seconds = (clock.last - clock.first) / 1000;
  return {
    ...out,
    rate: n > 0 && seconds > 0 ? n / seconds : null,
    prompt: usage.prompt_tokens,
    cached: usage.prompt_tokens_details?.cached_tokens ?? null,
    output: usage.completion_tokens,
    thoughts: usage.completion_tokens_details?.reasoning_tokens ?? null,
  };
}

function statsLine(message) {
  const { stats, stopped, finish } = message;
  const part = (label, value, help) => h("span", { title: help }, h("b", {}, value), ` ${label}`);
  const parts = [];
  if (stats?.rate) parts.push(part(t("rate"), number(stats.rate, stats.rate < 100 ? 1 : 0), t("rateHelp")));
  if (stats) parts.push(h("span", { title: t("ttftHelp") }, `${t("ttft")} `, h("b", {}, duration(stats.ttft))));
  if (stats?.prompt !== undefined) {
    parts.push(part(`${t("prompt")}${stats.cached ? ` (${number(stats.cached)} ${t("cached")})` : ""}`, number(stats.prompt)));
    parts.push(part(`${t("output")}${stats.thoughts ? ` (${number(stats.thoughts)} ${t("thoughts")})` : ""}`, number(stats.output)));
  }
  if (stats) parts.push(part(t("total"), duration(stats.total)));
  if (stopped) parts.push(h("span", {}, t("stopped")));
  if (finish === "length") parts.push(h("span", {}, t("cutOff")));
  return parts.length ? h("div", { class: "stats" }, ...parts) : null;
}

// One drawing a frame, however fast chunks come.
let due = false;
function drawSoon(of, message) {
  if (due || of !== chat) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    if (of !== chat || !running) return;
    const wasAtEnd = isAtEnd();
    byId("messages").lastChild.replaceWith(element(message, chat.messages.length - 1));
    follow(wasAtEnd);
  });
}

const isAtEnd = () => byId("log").scrollHeight - byId("log").scrollTop - byId("log").clientHeight < 80;

function follow(shouldFollow) {
  if (shouldFollow) byId("log").scrollTop = byId("log").scrollHeight;
}

export function draw() {
  const wasAtEnd = isAtEnd();
  byId("send").hidden = isRunning();
  byId("stop").hidden = !isRunning();
  byId("log").setAttribute("aria-busy", String(isRunning()));
  const messages = chat.messages.map(element);
  byId("messages").replaceChildren(...(messages.length ? messages : [hello()]));
  follow(wasAtEnd);
}

function hello() {
  const example = (text) => h("button", { type: "button", onclick: () => send(text) }, text);
  return h(
    "div",
    { class: "hello" },
    h("h1", {}, t("hello")),
    h("div", { class: "dim" }, t("helloSub")),
    h("div", { class: "row" }, ...["example1", "example2", "example3"].map((name) => example(t(name)))),
  );
}

function element(message, at) {
  const isLive = isRunning() && at === chat.messages.length - 1;
  const who = { user: "you", assistant: "assistant", tool: "toolResult" }[message.role];
  const children = message.role === "assistant" ? answerParts(message, at, isLive) : [h("div", { class: "body" }, message.content)];
  return h(
    "article",
    { class: `message ${message.role}${isLive ? " streaming" : ""}`, "aria-label": t(who) },
    ...children,
    isRunning() ? null : actions(message, at),
  );
}

function answerParts(message, at, isLive) {
  const parts = [];
  if (message.thoughts) {
    const fold = h("details", { class: "thought", open: message.isOpen }, h("summary", {}, t(isLive && !message.content ? "thinking" : "thought")), h("div", {}, message.thoughts));
    // Kept while the answer is drawn again.
    fold.addEventListener("toggle", () => (message.isOpen = fold.open));
    parts.push(fold);
  }
  const isForm = /^\s*[{[]/.test(message.content) && !isLive && isJson(message.content);
  if (isForm) parts.push(h("div", { class: "body" }, codeBlock(JSON.stringify(JSON.parse(message.content), null, 2), "json")));
  else if (message.content) parts.push(h("div", { class: "body" }, rendered(message.content)));
  else if (isLive && !message.thoughts && !message.calls.length) parts.push(h("div", { class: "body dim waiting" }, t("waiting")));
  for (const call of message.calls ?? []) parts.push(callElement(call, at, isLive));
  if (message.error) parts.push(h("div", { class: "error", role: "alert" }, message.error));
  parts.push(statsLine(message));
  return parts;
}

function isJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

function callElement(call, at, isLive) {
  const isAnswered = chat.messages.some((message, i) => i > at && message.id === call.id);
  const text = call.function.arguments;
  const area = h("textarea", { rows: 2, class: "mono tool-result", placeholder: t("callPlaceholder") });
  const onsubmit = (event) => {
    event.preventDefault();
    if (running) return;
    chat.messages.push({ role: "tool", id: call.id, content: area.value });
    const isLast = chat.messages[at].calls.every((one) => chat.messages.some((message, i) => i > at && message.id === one.id));
    if (isLast) answer();
    else draw();
  };
  return h(
    "div",
    { class: "call" },
    h("h3", {}, `${t("call")}: ${call.function.name}`),
    codeBlock(isJson(text) ? JSON.stringify(JSON.parse(text), null, 2) : text, "json"),
    isLive || isAnswered ? null : h("form", { onsubmit }, h("label", {}, t("callResult"), area), h("button", { class: "primary" }, t("sendResult"))),
  );
}

function actions(message, at) {
  const again = () => {
    chat.messages.length = at;
    answer();
  };
  return h(
    "div",
    { class: "actions" },
    message.content ? iconButton("copy", t("copy"), async () => say(t((await copy(message.content)) ? "copied" : "notCopied"))) : null,
    message.role === "user" ? iconButton("edit", t("edit"), () => edit(message, at)) : null,
    message.role === "assistant" ? iconButton("retry", t("retry"), again) : null,
  );
}

function edit(message, at) {
  const area = h("textarea", { rows: Math.min(10, message.content.split("\n").length + 1), value: message.content, "aria-label": t("edit") });
  const resend = () => {
    if (running || !area.value.trim()) return;
    chat.messages.length = at;
    send(area.value);
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") draw();
    else if (isSending(event)) resend();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const row = h("div", { class: "row" }, h("button", { type: "button", class: "primary", onclick: resend }, t("resend")), h("button", { type: "button", onclick: draw }, t("cancel")));
  byId("messages").children[at].replaceWith(h("article", { class: "message user editing" }, area, row));
  area.focus();
}

// Enter while a Korean syllable is being composed ends the syllable only.
export const isSending = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;

export function drawList() {
  const item = (one) => {
    const title = one.title || t("untitled");
    const remove = () => {
      if (!confirm(t("removeSure"))) return;
      conversations.remove(one.id);
      if (one.id === chat.id) open(null);
      else drawList();
    };
    return h(
      "li",
      { class: one.id === chat.id && "now" },
      h("button", { type: "button", class: "title", title, "aria-current": one.id === chat.id && "true", onclick: () => open(one) }, title),
      iconButton("trash", `${t("remove")}: ${title}`, remove),
    );
  };
  byId("conversations").replaceChildren(...conversations.list().map(item));
}
