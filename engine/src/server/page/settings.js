// The panel of keys, system prompt, sampling fields, schema and tools; and the fields of a request
// that they make. An empty field is not sent.

import { key, setKey } from "./api.js";
import { setting } from "./conversations.js";
import { byId, h, iconButton } from "./elements.js";
import { t } from "./words.js";

// Name, step of the arrows, and what the server takes at least and at most.
const NUMBERS = [
  ["temperature", 0.1, 0],
  ["top_p", 0.05, 0, 1],
  ["top_k", 1, -1],
  ["min_p", 0.01, 0, 1],
  ["max_tokens", 1, 1],
  ["seed", 1],
  ["presence_penalty", 0.1, -2, 2],
  ["frequency_penalty", 0.1, -2, 2],
  ["repetition_penalty", 0.05, 0.01, 10],
];

const SCHEMA = {
  type: "object",
  properties: { city: { type: "string" }, population: { type: "integer" }, is_capital: { type: "boolean" } },
  required: ["city", "population", "is_capital"],
  additionalProperties: false,
};
const TOOL = {
  name: "get_weather",
  description: "The weather in a city",
  parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false },
};

let values = read();

function read() {
  try {
    return { ...JSON.parse(setting("settings") ?? "{}") };
  } catch {
    return {};
  }
}

const value = (name) => String(values[name] ?? "");

function set(name, text) {
  values[name] = text;
  setting("settings", JSON.stringify(values));
}

export const system = () => value("system");

// The request's fields; throws a message for the reader.
export function fields() {
  const out = {};
  for (const [name] of NUMBERS) {
    const text = value(name).trim();
    if (!text) continue;
    // A seed may have more digits than a JavaScript number holds exactly.
    if (!Number.isFinite(Number(text)) || (name === "seed" && !Number.isSafeInteger(Number(text)))) throw new Error(`${name}: ${text} ${t("notNumber")}`);
    out[name] = Number(text);
  }
  if (value("think")) out.chat_template_kwargs = { enable_thinking: value("think") === "on" };
  const schema = parsed("schema");
  if (schema) out.response_format = { type: "json_schema", json_schema: { name: "answer", schema, strict: true } };
  const tool = parsed("tool");
  if (tool) {
    // Both what stands in `tools` and its `function` alone.
    out.tools = [tool].flat().map((one) => (one.type === "function" ? one : { type: "function", function: one }));
    out.tool_choice = value("toolChoice") || "auto";
  }
  return out;
}

function parsed(name) {
  const text = value(name).trim();
  if (!text) return null;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${t(name)} ${t("badJson")}: ${error.message}`);
  }
}

export function draw(whenKeyChanges, close) {
  const input = (name, attributes) => h("input", { id: `set-${name}`, value: value(name), oninput: (event) => set(name, event.target.value), ...attributes });
  const area = (name, rows, mono = true) =>
    h("textarea", { id: `set-${name}`, rows, class: mono && "mono", spellcheck: mono ? "false" : "true", value: value(name), oninput: (event) => set(name, event.target.value) });
  const choice = (name, options) => {
    const select = h("select", { id: `set-${name}`, onchange: () => set(name, select.value) }, ...options.map(([v, text]) => h("option", { value: v }, text)));
    select.value = value(name) || options[0][0];
    return select;
  };
  const fill = (name, example) => {
    const put = (text) => {
      set(name, text);
      byId(`set-${name}`).value = text;
    };
    return h(
      "div",
      { class: "row" },
      h("button", { type: "button", class: "quiet", id: `example-${name}`, onclick: () => put(JSON.stringify(example, null, 2)) }, t("tryExample")),
      h("button", { type: "button", class: "quiet", onclick: () => put("") }, t("clear")),
    );
  };
  const keyInput = (kind) =>
    h("input", {
      id: `${kind}-key`,
      type: "password",
      autocomplete: "off",
      value: key(kind),
      onchange: (event) => {
        setKey(kind, event.target.value.trim());
        whenKeyChanges();
      },
    });
  const group = (title, ...children) => h("fieldset", {}, h("legend", {}, t(title)), ...children);
  const reset = () => {
    values = {};
    setting("settings", "{}");
    draw(whenKeyChanges, close);
  };
  byId("settings").replaceChildren(
    h("div", { class: "row" }, h("h2", {}, t("settings")), h("span", { class: "grows" }), iconButton("close", t("close"), close)),
    group("system", h("label", {}, h("span", { class: "off-screen" }, t("system")), area("system", 3, false))),
    group(
      "sampling",
      h("div", { class: "two" }, ...NUMBERS.map(([name, step, min, max]) => h("label", {}, name, input(name, { type: "number", step, min, max, inputmode: "decimal" }))),
        h("label", {}, t("think"), choice("think", [["", t("serverDefault")], ["on", t("on")], ["off", t("off")]]))),
      h("p", { class: "help" }, t("samplingHelp")),
    ),
    group(
      "format",
      h("label", {}, t("schema"), area("schema", 4)),
      fill("schema", SCHEMA),
      h("label", {}, t("tool"), area("tool", 4)),
      fill("tool", TOOL),
      h("label", {}, t("toolChoice"), choice("toolChoice", [["auto", "auto"], ["required", "required"], ["none", "none"]])),
    ),
    group("keySection", h("label", {}, t("apiKey"), keyInput("api")), h("label", {}, t("adminKey"), keyInput("admin")), h("p", { class: "help" }, t("keyHelp"))),
    h("p", {}, h("button", { type: "button", onclick: reset }, t("reset"))),
  );
}
