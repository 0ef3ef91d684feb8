// The models of this server; with the admin key they are loaded, put to sleep, woken and unloaded.

import { json, key, setKey } from "./api.js";
import { button, byId, h } from "./elements.js";
import { bytes, number, t } from "./words.js";

const ADMIN = "/admin/models";
const CHANGES = { ready: ["sleep", "unload"], asleep: ["wake", "unload"], unloaded: ["load"], failed: ["load"] };

// The model that is being changed, and what the server said against it.
let busy = null;
let problem = "";

export async function draw(whenChanged) {
	const again = () => draw(whenChanged);
	const isAdmin = key("admin") !== "";
	let models = [];
	try {
		models = isAdmin ? (await json(ADMIN, { as: "admin" })).models : (await json("/v1/models")).data;
	} catch (error) {
		problem ||= error.message;
		models = (await json("/v1/models").catch(() => ({ data: [] }))).data;
	}
	const change = async (what, name, body) => {
		busy = name;
		problem = "";
		const done = json(`${ADMIN}/${what}`, { body, as: "admin" }).catch((error) => (problem = error.message));
		again();
		await done;
		busy = null;
		whenChanged();
		again();
	};
	const input = h("input", { type: "password", autocomplete: "off", id: "models-key", value: key("admin"), placeholder: t("adminKey"), "aria-label": t("adminKey") });
	const onsubmit = (event) => {
		event.preventDefault();
		setKey("admin", input.value.trim());
		problem = "";
		again();
	};
	byId("models").replaceChildren(
		h("form", { class: "row", onsubmit }, h("h1", {}, t("models")), h("div", {}, input), h("button", {}, t("use")), h("span", { class: "dim" }, t("adminHelp"))),
		problem && h("div", { class: "error", role: "alert" }, problem),
		h("div", { class: "cards" }, ...models.map((model) => card(model, change)), isAdmin && !problem ? loadCard(change) : ""),
	);
}

function card({ id, name = id, state = "ready", reason, ...model }, change) {
	const row = (label, value) => (value === undefined ? [] : [h("dt", {}, t(label)), h("dd", {}, value)]);
	const size = (n) => n && bytes(n);
	const changes = (id ? [] : (CHANGES[state] ?? [])).map((what) => {
		const run = () => (what !== "unload" || confirm(t("unloadSure") + name)) && change(what, name, { model: name });
		return button(t(what), run, { disabled: busy !== null });
	});
	return h(
		"article",
		{ class: "card", "data-state": state },
		h("h2", {}, name),
		h("p", { class: "dim" }, busy === name ? t("working") : t(state)),
		h("dl", {}, ...row("executor", model.device), ...row("weights", size(model.weight_bytes)), ...row("kvPool", size(model.kv_pool_bytes)), ...row("requests", model.n_requests), ...row("context", model.max_model_len && number(model.max_model_len))),
		reason && h("div", { class: "error" }, reason),
		h("p", { class: "row" }, ...changes),
	);
}

function loadCard(change) {
	const [path, name] = [h("input", { required: true }), h("input")];
	const onsubmit = (event) => {
		event.preventDefault();
		const as = name.value.trim();
		change("load", as || path.value, { "model-path": path.value.trim(), ...(as && { "served-model-name": as }) });
	};
	return h("form", { class: "card", onsubmit }, h("h2", {}, t("loadNew")), h("label", {}, t("loadNewHelp"), path), h("label", {}, t("loadName"), name), h("p", {}, h("button", { disabled: busy !== null }, t("load"))));
}
