// The models of this server: with the admin key they can be loaded, put to sleep, woken, unloaded.

import { json, key, setKey } from "./api.js";
import { byId, h, say } from "./elements.js";
import { bytes, number, t } from "./words.js";

const ADMIN = "/admin/models";
const CHANGES = { ready: ["sleep", "unload"], asleep: ["wake", "unload"], unloaded: ["load"], failed: ["load"] };
const STATES = { loading: "loadingState", failed: "failedState" };

// The change that is being made, by model; a message of the last one.
let busy = null;
let problem = "";

export async function draw(whenChanged) {
  const head = h("div", { class: "page-head" }, h("h1", {}, t("models")), keyForm(whenChanged));
  let models;
  let help = t("adminHelp");
  try {
    models = (await json(ADMIN, { as: "admin" })).models;
  } catch (error) {
    if (error.status === 404) help = t("noAdmin");
    else if (error.status === 401) help = key("admin") ? `${t("wrongAdmin")} ${error.message}` : t("adminHelp");
    else problem = error.message;
    const listed = await json("/v1/models").catch((failed) => ({ data: [], failed }));
    if (listed.failed) problem = listed.failed.message;
    models = listed.data.map((one) => ({ name: one.id, state: one.state ?? "ready", max: one.max_model_len, isPlain: true }));
  }
  const change = async (what, body, name) => {
    busy = { what, name };
    problem = "";
    const done = json(`${ADMIN}/${what}`, { method: "POST", body, as: "admin" });
    draw(whenChanged);
    try {
      await done;
      say(`${t("done")}${t(what)} · ${name}`);
    } catch (error) {
      problem = error.message;
    }
    busy = null;
    whenChanged();
    draw(whenChanged);
  };
  const cards = models.map((model) => card(model, change));
  if (models.some((model) => !model.isPlain)) cards.push(loadCard(change));
  byId("models").replaceChildren(
    head,
    h("p", { class: "page-head dim" }, help),
    problem ? h("div", { class: "page-head error", role: "alert" }, problem) : "",
    h("div", { class: "cards" }, ...cards),
  );
}

function keyForm(whenChanged) {
  const input = h("input", { type: "password", autocomplete: "off", id: "models-admin-key", value: key("admin"), placeholder: t("adminKey"), "aria-label": t("adminKey") });
  const onsubmit = (event) => {
    event.preventDefault();
    setKey("admin", input.value.trim());
    problem = "";
    draw(whenChanged);
  };
  return h("form", { class: "row", onsubmit }, h("div", {}, input), h("button", {}, t("use")));
}

function card(model, change) {
  const { name, state } = model;
  const isBusy = busy?.name === name;
  const button = (what) => {
    const onclick = () => {
      if (what !== "unload" || confirm(t("unloadSure").replace("{name}", name))) change(what, { model: name }, name);
    };
    return h("button", { type: "button", class: what === "wake" || what === "load" ? "primary" : "", disabled: Boolean(busy), onclick }, t(what));
  };
  const row = (label, value) => (value === undefined || value === null ? [] : [h("dt", {}, label), h("dd", {}, value)]);
  const isBad = state === "failed" || model.is_healthy === false;
  return h(
    "article",
    { class: "card", "data-model": name, "data-state": state },
    h("h2", {}, name),
    h("span", { class: `badge ${isBad ? "bad" : state === "ready" ? "good" : ""}` }, isBusy ? `${t(busy.what)} · ${t("working")}` : t(STATES[state] ?? state)),
    h(
      "dl",
      {},
      ...row(t("executor"), model.device),
      ...row(t("weights"), model.weight_bytes && bytes(model.weight_bytes)),
      ...row(t("kvPool"), model.kv_pool_bytes && bytes(model.kv_pool_bytes)),
      ...row(t("context"), model.max && `${number(model.max)} ${t("tokens")}`),
      ...row(t("requests"), model.n_requests !== undefined ? number(model.n_requests) : null),
    ),
    model.reason ? h("div", { class: "error" }, model.reason) : null,
    model.isPlain ? null : h("p", { class: "row" }, ...(CHANGES[state] ?? []).map(button)),
  );
}

function loadCard(change) {
  const path = h("input", { required: true, placeholder: "Qwen/Qwen3-0.6B" });
  const name = h("input", {});
  const onsubmit = (event) => {
    event.preventDefault();
    const as = name.value.trim();
    change("load", { "model-path": path.value.trim(), ...(as && { "served-model-name": as }) }, as || path.value.trim());
  };
  return h(
    "form",
    { class: "card", onsubmit },
    h("h2", {}, t("loadNew")),
    h("label", {}, t("loadNewHelp"), path),
    h("label", {}, t("loadName"), name),
    h("p", {}, h("button", { class: "primary", disabled: Boolean(busy) }, t("load"))),
  );
}
