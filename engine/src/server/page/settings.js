// The panel of prompt, sampling fields, schema, tools and keys, and the fields of a request that
// they make. An empty field is not sent.

import { key, setKey } from "./api.js";
import { setting } from "./conversations.js";
import { button, byId, h, iconButton } from "./elements.js";
import { t } from "./words.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty"];
const object = (properties) => ({ type: "object", properties, required: Object.keys(properties), additionalProperties: false });
const EXAMPLES = {
	schema: object({ city: { type: "string" }, population: { type: "integer" }, is_capital: { type: "boolean" } }),
	definition: { name: "get_weather", description: "The weather in a city", parameters: object({ city: { type: "string" } }) },
};

let values = JSON.parse(setting("settings") ?? "{}");

const value = (name) => (values[name] ?? "").trim();

function set(name, text) {
	values[name] = text;
	setting("settings", JSON.stringify(values));
}

export const system = () => value("system");

// The request's fields; throws a message for the reader.
export function fields() {
	const out = {};
	// The server says what is wrong with a number.
	for (const name of NUMBERS) if (value(name)) out[name] = parsed(name);
	if (value("think")) out.chat_template_kwargs = { enable_thinking: value("think") === "on" };
	if (value("schema")) out.response_format = { type: "json_schema", json_schema: { name: "answer", schema: parsed("schema"), strict: true } };
	if (value("definition")) {
		out.tools = [parsed("definition")].flat().map((one) => (one.function ? one : { type: "function", function: one }));
		out.tool_choice = value("toolChoice") || "auto";
	}
	return out;
}

function parsed(name) {
	try {
		return JSON.parse(value(name));
	} catch (error) {
		throw new Error(`${t(name)} ${t("badJson")}: ${error.message}`);
	}
}

export function draw(whenKeyChanges, close) {
	const field = (tag, name, attributes, ...children) =>
		h("label", {}, t(name), h(tag, { id: `set-${name}`, value: values[name] ?? "", oninput: (event) => set(name, event.target.value), ...attributes }, ...children));
	const choice = (name, options) => field("select", name, {}, ...options.map(([value, text]) => h("option", { value, selected: values[name] === value }, text)));
	const example = (name) => {
		const put = () => {
			set(name, JSON.stringify(EXAMPLES[name], null, 2));
			byId(`set-${name}`).value = values[name];
		};
		return button(t("example"), put, { class: "quiet" });
	};
	const onchange = (event) => {
		setKey("api", event.target.value.trim());
		whenKeyChanges();
	};
	const reset = () => {
		values = {};
		set("system", "");
		draw(whenKeyChanges, close);
	};
	byId("settings").replaceChildren(
		h("div", { class: "row" }, h("h2", { class: "grows" }, t("settings")), iconButton("close", t("close"), close)),
		field("textarea", "system", { rows: 3 }),
		h("h3", {}, t("sampling")),
		h("div", { class: "two" }, ...NUMBERS.map((name) => field("input", name, { inputmode: "decimal", autocomplete: "off" })), choice("think", [["", t("unset")], ["on", t("on")], ["off", t("off")]])),
		h("h3", {}, t("format")),
		field("textarea", "schema", { rows: 4, spellcheck: "false" }),
		example("schema"),
		field("textarea", "definition", { rows: 4, spellcheck: "false" }),
		example("definition"),
		choice("toolChoice", ["auto", "required", "none"].map((name) => [name, name])),
		// Browsers complain of a password outside a form.
		h("form", { onsubmit: (event) => event.preventDefault() }, h("label", {}, t("apiKey"), h("input", { id: "api-key", type: "password", autocomplete: "off", value: key("api"), onchange }))),
		h("p", {}, button(t("reset"), reset)),
	);
}
