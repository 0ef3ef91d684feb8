// The lab: what /metrics and /server_info say, once a second while it is shown. What the server does
// not say is shown as not available; nothing is estimated.

import { json, request } from "./api.js";
import { byId, h, svg } from "./elements.js";
import { Metrics } from "./metrics.js";
import { bytes, duration, number, t } from "./words.js";

const INTERVAL_MS = 1000;
const N_KEPT = 61;

let samples = [];
let info = null;
let timer = null;
let isPaused = false;
let shownModel;

export function show() {
  drawHead();
  clearInterval(timer);
  timer = setInterval(tick, INTERVAL_MS);
  tick();
}

export function hide() {
  clearInterval(timer);
  timer = null;
}

function drawHead() {
  const button = h("button", { type: "button", id: "pause", "aria-pressed": String(isPaused) });
  const label = () => (button.textContent = t(isPaused ? "paused" : "live"));
  button.addEventListener("click", () => {
    isPaused = !isPaused;
    button.setAttribute("aria-pressed", String(isPaused));
    label();
  });
  label();
  byId("lab").replaceChildren(
    h("div", { class: "page-head" }, h("h1", {}, t("lab")), button, h("span", { class: "dim" }, t("every"))),
    h("div", { id: "lab-cards" }),
    h("p", { class: "page-head help" }, t("footer")),
  );
  if (samples.length) draw();
}

async function tick() {
  if (isPaused || document.hidden) return;
  try {
    const text = await (await request("/metrics")).text();
    // Another model's figures are no part of this one's history.
    const model = byId("model").value;
    if (model !== shownModel) [samples, info, shownModel] = [[], null, model];
    info ??= of(await json("/server_info"), model);
    samples = [...samples, { at: performance.now(), metrics: new Metrics(text) }].slice(-N_KEPT);
    draw();
  } catch (error) {
    info = null;
    byId("lab-cards").replaceChildren(h("div", { class: "page-head error", role: "alert" }, error.message || t("unreachable")));
  }
}

const of = (all, model) => all.models?.find((one) => one.served_model_names.includes(model)) ?? all;

const value = (name, labels, sample = samples.at(-1)) => sample.metrics.get(name, { model_name: info.served_model_names?.[0], ...labels });

// The growth of a counter in the last minute; since the start if nothing happened in it.
function growth(name, labels) {
  const [now, then] = [value(name, labels), value(name, labels, samples[0])];
  return now === null ? null : now - (then ?? 0);
}

const seconds = () => (samples.at(-1).at - samples[0].at) / 1000;

// The mean of a histogram in the last minute, or since the start; null if it is empty.
function mean(name) {
  const n = growth(`${name}_count`);
  if (n) return growth(`${name}_sum`) / n;
  return value(`${name}_count`) ? value(`${name}_sum`) / value(`${name}_count`) : null;
}

const shown = (x, format = number) => (x === null || x === undefined ? h("span", { class: "dim" }, t("notAvailable")) : format(x));
const yet = (x, format) => (x === null ? h("span", { class: "dim" }, t("unknownYet")) : format(x));
const percent = (part, whole) => (whole ? `${number((100 * part) / whole, 1)} %` : "–");

const row = (label, content, color) => [h("dt", {}, color ? h("span", { class: `dot ${color}` }) : null, label), h("dd", {}, content)];

const card = (title, help, ...children) => h("article", { class: "card" }, h("h2", {}, t(title)), help ? h("p", { class: "help" }, help) : null, ...children);

const big = (content) => h("div", { class: "big" }, content);

// Parts of a whole: [label, value, colour].
function bar(parts) {
  const whole = parts.reduce((sum, [, part]) => sum + part, 0) || 1;
  let x = 0;
  const rects = parts.map(([label, part, color]) => {
    const width = (100 * part) / whole;
    const rect = svg("rect", { x, y: 0, width, height: 10, class: color }, svg("title", {}, `${label}: ${percent(part, whole)}`));
    x += width;
    return rect;
  });
  const label = parts.map(([name, part]) => `${name} ${percent(part, whole)}`).join(", ");
  return svg("svg", { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img", "aria-label": label }, ...rects);
}

function line(values, most) {
  const top = most || Math.max(...values, 1e-9);
  const points = values.map((v, i) => `${(100 * i) / (N_KEPT - 2)},${(40 - (38 * Math.min(v, top)) / top).toFixed(2)}`);
  if (points.length < 2) return svg("svg", { class: "line", viewBox: "0 0 100 40" });
  const last = (100 * (points.length - 1)) / (N_KEPT - 2);
  return svg(
    "svg",
    { class: "line", viewBox: "0 0 100 40", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("path", { class: "area", d: `M0,40 L${points.join(" L")} L${last},40 Z` }),
    svg("path", { d: `M${points.join(" L")}` }),
  );
}

// Between each two samples, for each second.
function rates(name) {
  return samples.slice(1).map((sample, i) => {
    const before = samples[i];
    return Math.max(0, ((value(name, {}, sample) ?? 0) - (value(name, {}, before) ?? 0)) / ((sample.at - before.at) / 1000));
  });
}

function draw() {
  const cards = [steps(), pages(), speed(), queue(), memory(), cache(), speculation(), server()];
  byId("lab-cards").replaceChildren(h("div", { class: "cards" }, ...cards));
}

function steps() {
  const name = "engine_step_seconds_total";
  const kinds = ["prefill", "decode", "mixed", "failed"];
  const nRecent = kinds.reduce((sum, kind) => sum + (growth("engine_steps_total", { kind }) ?? 0), 0);
  const take = nRecent ? growth : value;
  const n = kinds.reduce((sum, kind) => sum + (take("engine_steps_total", { kind }) ?? 0), 0);
  const parts = [["plan", "c3"], ["execute", "c1"], ["commit", "c2"]].map(([part, color]) => [t(part), take(name, { part }), color]);
  const whole = parts.reduce((sum, [, part]) => sum + part, 0);
  const help = `${t("stepTimeHelp")}${nRecent ? "" : ` → ${t("sinceStart")}`}`;
  if (parts.some(([, part]) => part === null)) return card("stepTime", help, big(shown(null)));
  const idle = nRecent && seconds() > 0 ? percent(Math.max(0, seconds() - whole), seconds()) : "–";
  return card(
    "stepTime",
    help,
    big(n ? `${duration((1000 * whole) / n)} ${t("perStep")}` : yet(null)),
    bar(parts),
    h(
      "dl",
      {},
      ...parts.flatMap(([label, part, color]) => row(label, n ? `${duration((1000 * part) / n)} · ${percent(part, whole)}` : "–", color)),
      ...row(t("idle"), idle),
      ...kinds.flatMap((kind) => row(t(kind), shown(value("engine_steps_total", { kind })))),
    ),
  );
}

function pages() {
  const [used, cached, total] = ["used", "cached", "total"].map((what) => value(`engine_kv_pages_${what}`));
  const help = t("pagesHelp").replace("{n}", info.page_tokens ?? "?");
  if (total === null) return card("pages", help, big(shown(null)));
  const parts = [[t("requests"), used, "c1"], [t("tree"), cached, "c2"], [t("free"), Math.max(0, total - used - cached), "c4"]];
  const [hostUsed, hostTotal] = [value("engine_host_kv_pages_used"), value("engine_host_kv_pages_total")];
  return card(
    "pages",
    help,
    big(`${number(used)} / ${number(total)}`),
    bar(parts),
    h(
      "dl",
      { id: "kv-pages" },
      ...parts.flatMap(([label, n, color]) => row(label, `${number(n)} · ${percent(n, total)}`, color)),
      ...row(t("hostTier"), hostTotal ? `${number(hostUsed)} / ${number(hostTotal)}` : shown(null), "c3"),
      ...row(t("evicted"), shown(value("engine_kv_pages_lost_total"))),
    ),
    line(samples.map((sample) => value("engine_kv_pages_used", {}, sample)), total),
  );
}

function speed() {
  const output = rates("vllm:generation_tokens_total");
  const prompt = rates("vllm:prompt_tokens_total");
  const [ttft, itl] = [mean("vllm:time_to_first_token_seconds"), mean("vllm:inter_token_latency_seconds")];
  return card(
    "speed",
    t("outputRate"),
    big(output.length ? number(output.at(-1), 1) : "–"),
    line(output),
    h(
      "dl",
      {},
      ...row(t("promptRate"), prompt.length ? number(prompt.at(-1), 1) : "–"),
      ...row(t("meanTtft"), yet(ttft, (s) => duration(1000 * s))),
      ...row(t("meanItl"), yet(itl, (s) => duration(1000 * s))),
    ),
  );
}

function queue() {
  const scheduler = info.engine?.scheduler ?? {};
  const wait = mean("vllm:request_queue_time_seconds");
  const reason = (of) => shown(value("vllm:num_requests_waiting_by_reason", { reason: of }));
  const running = value("vllm:num_requests_running");
  return card(
    "queue",
    `${t("policy")}: ${scheduler.policy ?? t("notAvailable")}`,
    big(`${shownText(running)} ${t("running")} · ${shownText(value("vllm:num_requests_waiting"))} ${t("waitingRequests")}`),
    line(samples.map((sample) => value("vllm:num_requests_running", {}, sample) ?? 0)),
    h(
      "dl",
      {},
      ...row(t("forCapacity"), reason("capacity")),
      ...row(t("forPrefix"), reason("deferred")),
      ...row(t("waitingTokens"), shown(value("engine_waiting_tokens"))),
      ...row(t("queueTime"), yet(wait, (s) => duration(1000 * s))),
      ...row(t("preempted"), shown(value("vllm:num_preemptions_total"))),
      ...row(t("maxRunning"), shown(scheduler.max_running_requests)),
    ),
  );
}

const shownText = (x) => (x === null ? "–" : number(x));

function memory() {
  const { weight_bytes: weights = null, kv_pool_bytes: pool = null, host_tier: tier } = info.executor ?? {};
  const host = tier ? tier.n_pages * tier.page_bytes : null;
  const parts = [[t("weights"), weights, "c1"], [t("kvPool"), pool, "c2"], [t("hostPool"), host, "c3"]];
  const known = parts.filter(([, n]) => n !== null);
  return card(
    "memory",
    "",
    big(known.length ? bytes(known.reduce((sum, [, n]) => sum + n, 0)) : shown(null)),
    bar(known),
    h("dl", {}, ...parts.flatMap(([label, n, color]) => row(label, shown(n, bytes), color)), ...row(t("process"), shown(samples.at(-1).metrics.get("process_resident_memory_bytes"), bytes))),
  );
}

function cache() {
  const [hits, asked] = ["hits", "queries"].map((what) => `vllm:prefix_cache_${what}_total`);
  const outcome = (of) => shown(value("engine_result_cache_total", { outcome: of }));
  if (info.engine?.scheduler?.radix_cache === false) return card("cache", t("hitRate"), big(shown(null)));
  return card(
    "cache",
    t("hitRate"),
    big(percent(value(hits), value(asked))),
    bar([[t("hits"), value(hits), "c2"], [t("misses"), value(asked) - value(hits), "c4"]]),
    h(
      "dl",
      {},
      ...row(t("sinceStart"), `${number(value(hits))} / ${number(value(asked))}`),
      ...row(t("lastMinute"), percent(growth(hits), growth(asked))),
      ...row(`${t("resultCache")}: ${t("hits")}`, outcome("hit")),
      ...row(`${t("resultCache")}: ${t("misses")}`, outcome("miss")),
    ),
  );
}

function speculation() {
  const name = (what) => value(`vllm:spec_decode_num_${what}_total`);
  const [drafted, accepted, rows] = [name("draft_tokens"), name("accepted_tokens"), name("drafts")];
  const asked = info.engine?.scheduler?.speculation;
  if (!asked) return card("speculation", t("acceptance"), big(shown(null)));
  const positions = (samples.at(-1).metrics.samples.get("vllm:spec_decode_num_accepted_tokens_per_pos_total") ?? []).filter((s) => s.labels.model_name === info.served_model_names[0]);
  return card(
    "speculation",
    t("acceptance"),
    big(percent(accepted, drafted)),
    bar([[t("acceptance"), accepted, "c1"], ["", drafted - accepted, "c4"]]),
    h(
      "dl",
      {},
      ...row(t("sinceStart"), `${number(accepted)} / ${number(drafted)}`),
      ...row(t("perDraft"), rows ? number(accepted / rows, 2) : "–"),
      ...row(t("byPosition"), positions.map((s) => number(s.value)).join(" · ") || "–"),
    ),
  );
}

function server() {
  const { executor = {}, max_sequence_tokens: context, loaded_model: model = {} } = info;
  const kernels = executor.kernels?.map((kernel) => kernel.join(": ")).join(", ");
  return card(
    "server",
    "",
    h(
      "dl",
      {},
      ...row(t("model"), shown(model.name, String)),
      ...row(t("executor"), shown(executor.name, String)),
      ...row(t("device"), shown(executor.device, String)),
      ...row(t("context"), shown(context, (n) => `${number(n)} ${t("tokens")}`)),
      ...row(t("kernels"), shown(kernels, String)),
      ...row(t("version"), shown(info.version, String)),
    ),
  );
}
