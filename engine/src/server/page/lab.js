// The lab: what /metrics and /server_info say, once a second while it is shown. What the server does
// not say is shown as not available; nothing is estimated.

import { json, request } from "./api.js";
import { button, byId, h, svg } from "./elements.js";
import { parsed, sum } from "./metrics.js";
import { bytes, duration, number, t } from "./words.js";

const INTERVAL_MS = 1000;
const N_KEPT = 61;

let samples = [];
let info = null;
let model;
let timer;
let isPaused = false;

export function show() {
  const pause = button(t("live"), () => {
    isPaused = !isPaused;
    pause.ariaPressed = String(isPaused);
    pause.textContent = t(isPaused ? "paused" : "live");
  });
  isPaused = false;
  byId("lab").replaceChildren(h("div", { class: "row" }, h("h1", {}, t("lab")), pause), h("div", { class: "cards" }));
  hide();
  timer = setInterval(tick, INTERVAL_MS);
  tick();
}

export const hide = () => clearInterval(timer);

async function tick() {
  if (isPaused || document.hidden) return;
  let shown;
  try {
    const text = await (await request("/metrics")).text();
    // Another model's figures are no part of this one's history.
    if (model !== byId("model").value) [samples, info, model] = [[], null, byId("model").value];
    const all = info ?? (await json("/server_info"));
    info ??= all.models?.find((one) => one.served_model_names.includes(model)) ?? all;
    samples = [...samples, { at: performance.now() / 1000, values: parsed(text) }].slice(-N_KEPT);
    shown = [steps, pages, speed, queue, memory, cache, speculation, server].map((card) => card());
  } catch (error) {
    info = null;
    shown = [h("div", { class: "error", role: "alert" }, error.message)];
  }
  byId("lab").lastChild.replaceChildren(...shown);
}

const value = (name, labels, sample = samples.at(-1)) => sum(sample.values, name, { model_name: info.served_model_names?.[0], ...labels });
const growth = (name, labels) => value(name, labels) - value(name, labels, samples[0]);

// The mean of a histogram in the last minute, or since the start.
function mean(name) {
  const of = growth(`${name}_count`) ? growth : value;
  const n = of(`${name}_count`);
  return n ? duration((1000 * of(`${name}_sum`)) / n) : "–";
}

// A number, or that there is none.
const shown = (x, format = number) => (Number.isFinite(x) ? format(x) : t("none"));
const percent = (part, whole) => (whole ? `${number((100 * part) / whole, 1)} %` : "–");
const row = (label, content, color) => [h("dt", {}, color && h("span", { class: `dot ${color}` }), label), h("dd", {}, content)];
const figure = (label, name, labels) => row(t(label), shown(value(name, labels)));

const card = (title, help, big, chart, ...rows) =>
  h("article", { class: "card", id: `lab-${title}` }, h("h2", {}, t(title)), h("p", { class: "dim" }, help), h("div", { class: "big" }, big), chart, h("dl", {}, ...rows.flat()));

// Parts of a whole: [label, value, colour].
function bar(parts) {
  const whole = parts.reduce((all, [, part]) => all + part, 0) || 1;
  let x = 0;
  const rects = parts.map(([, part, color]) => {
    x += (100 * part) / whole;
    return svg("rect", { x: x - (100 * part) / whole, width: (100 * part) / whole, height: 10, class: color });
  });
  const label = parts.map(([name, part]) => `${name} ${percent(part, whole)}`).join(", ");
  return svg("svg", { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img", "aria-label": label }, ...rects);
}

// The newest value is at the right.
function line(values, most = Math.max(...values, 1e-9)) {
  const points = values.map((v, i) => `${100 + (100 * (i + 1 - values.length)) / (N_KEPT - 1)},${40 - (38 * v) / most}`).join("L");
  return svg("svg", { class: "line", viewBox: "0 0 100 40", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("path", { d: values.length > 0 && `M${points.join("L")}` }));
}

// Between each two samples, a second.
const rates = (name) => samples.slice(1).map((now, i) => (value(name, {}, now) - value(name, {}, samples[i])) / (now.at - samples[i].at));
const gauges = (name) => samples.map((sample) => value(name, {}, sample));

function steps() {
  const kinds = ["prefill", "decode", "mixed", "failed"];
  const isRecent = kinds.some((kind) => growth("engine_steps_total", { kind }) > 0);
  const of = isRecent ? growth : value;
  const n = of("engine_steps_total");
  const parts = ["plan", "execute", "commit"].map((part, i) => [t(part), of("engine_step_seconds_total", { part }), `c${i + 1}`]);
  const whole = of("engine_step_seconds_total");
  const elapsed = samples.at(-1).at - samples[0].at;
  return card(
    "stepTime",
    t(isRecent ? "recent" : "sinceStart"),
    n ? `${shown((1000 * whole) / n, duration)} ${t("perStep")}` : "–",
    bar(parts),
    ...parts.map(([label, part, color]) => row(label, n ? `${duration((1000 * part) / n)} · ${percent(part, whole)}` : "–", color)),
    row(t("idle"), isRecent ? percent(Math.max(0, elapsed - whole), elapsed) : "–"),
    ...kinds.map((kind) => row(`${t("steps")}: ${t(kind)}`, shown(value("engine_steps_total", { kind })))),
  );
}

function pages() {
  const [used, cached, total, hostUsed, hostTotal] = ["kv_pages_used", "kv_pages_cached", "kv_pages_total", "host_kv_pages_used", "host_kv_pages_total"].map((name) => value(`engine_${name}`));
  const parts = [[t("requests"), used, "c2"], [t("tree"), cached, "c3"], [t("free"), Math.max(0, total - used - cached), "c4"]];
  return card(
    "pages",
    t("pagesHelp") + info.page_tokens,
    `${shown(used + cached)} / ${shown(total)}`,
    bar(parts),
    ...parts.map(([label, n, color]) => row(label, `${shown(n)} · ${percent(n, total)}`, color)),
    row(t("hostTier"), hostTotal ? `${number(hostUsed)} / ${number(hostTotal)}` : t("none"), "c1"),
    figure("evicted", "engine_kv_pages_lost_total"),
  );
}

function speed() {
  const [output, prompt] = ["generation", "prompt"].map((what) => rates(`vllm:${what}_tokens_total`));
  return card(
    "speed",
    t("outputRate"),
    shown(output.at(-1)),
    line(output),
    row(t("promptRate"), shown(prompt.at(-1))),
    row(t("meanTtft"), mean("vllm:time_to_first_token_seconds")),
    row(t("meanItl"), mean("vllm:inter_token_latency_seconds")),
  );
}

function queue() {
  const { policy = t("none"), max_running_requests: most } = info.engine?.scheduler ?? {};
  const [running, waiting] = ["running", "waiting"].map((what) => shown(value(`vllm:num_requests_${what}`)));
  const reason = (name) => figure(name, "vllm:num_requests_waiting_by_reason", { reason: name });
  return card(
    "queue",
    `${t("policy")}: ${policy}`,
    `${running} ${t("running")} · ${waiting} ${t("waitingRequests")}`,
    line(gauges("vllm:num_requests_running")),
    reason("capacity"),
    reason("deferred"),
    figure("waitingTokens", "engine_waiting_tokens"),
    figure("preempted", "vllm:num_preemptions_total"),
    row(t("queueTime"), mean("vllm:request_queue_time_seconds")),
    row(t("maxRunning"), shown(most)),
  );
}

function memory() {
  const { weight_bytes, kv_pool_bytes, host_tier } = info.executor ?? {};
  const parts = [[t("weights"), weight_bytes, "c1"], [t("kvPool"), kv_pool_bytes, "c2"], [t("hostTier"), host_tier?.n_pages * host_tier?.page_bytes, "c3"]];
  const known = parts.filter(([, n]) => Number.isFinite(n));
  const process = sum(samples.at(-1).values, "process_resident_memory_bytes");
  return card("memory", info.executor?.device, bytes(known.reduce((all, [, n]) => all + n, 0)), bar(known), ...parts.map(([label, n, color]) => row(label, shown(n, bytes), color)), row(t("process"), shown(process, bytes)));
}

function cache() {
  const [hits, asked] = ["vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"];
  const [hit, miss] = ["hit", "miss"].map((outcome) => shown(value("engine_result_cache_total", { outcome })));
  return card(
    "cache",
    t("hitRate"),
    percent(value(hits), value(asked)),
    line(rates(hits)),
    row(t("sinceStart"), `${shown(value(hits))} / ${shown(value(asked))}`),
    row(t("recent"), percent(growth(hits), growth(asked))),
    row(t("resultCache"), `${hit} / ${miss}`),
  );
}

function speculation() {
  if (!info.engine?.scheduler?.speculation) return card("speculation", t("acceptance"), t("none"), null);
  const [drafted, accepted, rows] = ["draft_tokens", "accepted_tokens", "drafts"].map((what) => value(`vllm:spec_decode_num_${what}_total`));
  const at = (position) => value("vllm:spec_decode_num_accepted_tokens_per_pos_total", { position: String(position) });
  const positions = [...Array(32).keys()].map(at).filter(Number.isFinite).map((n) => number(n));
  return card(
    "speculation",
    t("acceptance"),
    percent(accepted, drafted),
    bar([["", accepted, "c1"], ["", drafted - accepted, "c4"]]),
    row(t("sinceStart"), `${shown(accepted)} / ${shown(drafted)}`),
    row(t("perDraft"), rows ? number(accepted / rows, 2) : "–"),
    row(t("byPosition"), positions.join(" · ")),
  );
}

function server() {
  const { executor, max_sequence_tokens, loaded_model, version } = info;
  const kernels = executor?.kernels.map((kernel) => kernel.join(": ")).join(", ");
  return card("server", `${t("version")} ${version}`, loaded_model?.name ?? t("none"), null, row(t("executor"), executor?.name ?? t("none")), row(t("context"), shown(max_sequence_tokens)), row(t("kernels"), kernels ?? t("none")));
}
