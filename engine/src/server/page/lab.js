// The lab: what /metrics and /server_info say, once a second while it is shown. What the server does
// not say is shown as not available; nothing is estimated.

import { json, key, request } from "./api.js";
import { button, byId, h, svg } from "./elements.js";
import { parsed, sum } from "./metrics.js";
import { bytes, duration, number, t } from "./words.js";

const INTERVAL_MS = 1000;
const N_KEPT = 61;

let samples = [];
let info = null;
let model;
let timer;
let isPaused;
// The requests one by one, or what the server said against it.
let listed;

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
	let cards;
	try {
		const text = await (await request("/metrics")).text();
		// Another model's figures are no part of this one's history.
		if (model !== byId("model").value) [samples, info, model] = [[], null, byId("model").value];
		const all = info ?? (await json("/server_info"));
		info ??= all.models?.find((one) => one.served_model_names.includes(model)) ?? all;
		samples = [...samples, { at: performance.now() / 1000, values: parsed(text) }].slice(-N_KEPT);
		const asked = `/admin/requests?model=${encodeURIComponent(model)}`;
		listed = key("admin") ? await json(asked, { as: "admin" }).catch((error) => ({ error })) : null;
		cards = [steps, pages, speed, queue, memory, cache, speculation, requests].map((card) => card());
	} catch (error) {
		info = null;
		cards = [h("div", { class: "error", role: "alert" }, error.message)];
	}
	byId("lab").lastChild.replaceChildren(...cards);
}

const value = (name, labels, sample = samples.at(-1)) => sum(sample.values, name, { model_name: info.served_model_names?.[0], ...labels });
const growth = (name, labels) => value(name, labels) - value(name, labels, samples[0]);
// Between each two samples, a second.
const rates = (name) => samples.slice(1).map((now, i) => (value(name, {}, now) - value(name, {}, samples[i])) / (now.at - samples[i].at));

// The mean of a histogram in the last minute, or since the start.
function mean(name) {
	const of = growth(`${name}_count`) ? growth : value;
	const n = of(`${name}_count`);
	return n ? duration((1000 * of(`${name}_sum`)) / n) : "–";
}

// A number, or that there is none.
const shown = (x, format = number) => (Number.isFinite(x) ? format(x) : t("none"));
const percent = (part, whole) => (whole ? `${number((100 * part) / whole, 1)} %` : "–");
const row = (label, content, color) => [h("dt", {}, color && h("span", { class: `dot ${color}` }), t(label)), h("dd", {}, content ?? t("none"))];
const figure = (label, name, labels) => row(label, shown(value(name, labels)));

const card = (title, help, big, chart, ...rows) =>
	h("article", { class: "card", id: `lab-${title}` }, h("h2", {}, t(title)), h("p", { class: "dim" }, help), h("div", { class: "big" }, big ?? t("none")), chart, h("dl", {}, ...rows.flat()));

// Parts of a whole: [label, value, colour].
function bar(parts) {
	const whole = parts.reduce((all, [, part]) => all + part, 0) || 1;
	let x = 0;
	const rects = parts.map(([, part, color]) => {
		const width = (100 * part) / whole;
		x += width;
		return svg("rect", { x: x - width, width, height: 10, class: color });
	});
	const label = parts.map(([name, part]) => `${t(name)} ${percent(part, whole)}`).join(", ");
	return svg("svg", { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img", "aria-label": label }, ...rects);
}

// The newest value is at the right.
function line(values) {
	const most = Math.max(...values, 1e-9);
	const points = values.map((v, i) => `${100 + (100 * (i + 1 - values.length)) / (N_KEPT - 1)},${40 - (38 * v) / most}`).join("L");
	return svg("svg", { class: "line", viewBox: "0 0 100 40", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("path", { d: points !== "" && `M${points}` }));
}

function steps() {
	const [n, time] = ["engine_steps_total", "engine_step_seconds_total"];
	const isRecent = growth(n) > 0;
	const of = isRecent ? growth : value;
	const parts = ["plan", "execute", "commit"].map((part, i) => [part, of(time, { part }), `c${i + 1}`]);
	const a = (seconds) => (of(n) ? shown((1000 * seconds) / of(n), duration) : "–");
	const elapsed = samples.at(-1).at - samples[0].at;
	return card(
		"stepTime",
		t(isRecent ? "recent" : "sinceStart"),
		a(of(time)),
		bar(parts),
		...parts.map(([label, part, color]) => row(label, `${a(part)} · ${percent(part, of(time))}`, color)),
		row("idle", isRecent ? percent(Math.max(0, elapsed - of(time)), elapsed) : "–"),
		...["prefill", "decode", "mixed", "failed"].map((kind) => row(`${t("steps")}: ${t(kind)}`, shown(value(n, { kind })))),
	);
}

function pages() {
	const of = (name) => value(`engine_${name}`);
	const [used, cached, total, host] = [of("kv_pages_used"), of("kv_pages_cached"), of("kv_pages_total"), of("host_kv_pages_total")];
	const parts = [["requests", used, "c2"], ["tree", cached, "c3"], ["free", Math.max(0, total - used - cached), "c4"]];
	return card(
		"pages",
		t("pagesHelp") + info.page_tokens,
		`${shown(used + cached)} / ${shown(total)}`,
		bar(parts),
		...parts.map(([label, n, color]) => row(label, `${shown(n)} · ${percent(n, total)}`, color)),
		row("hostTier", host ? `${number(of("host_kv_pages_used"))} / ${number(host)}` : null, "c1"),
		figure("evicted", "engine_kv_pages_lost_total"),
	);
}

function speed() {
	const [output, prompt] = ["generation", "prompt"].map((what) => rates(`vllm:${what}_tokens_total`));
	const newest = (values) => (values.length ? shown(values.at(-1)) : "–");
	return card(
		"speed",
		t("outputRate"),
		newest(output),
		line(output),
		row("promptRate", newest(prompt)),
		row("meanTtft", mean("vllm:time_to_first_token_seconds")),
		row("meanItl", mean("vllm:inter_token_latency_seconds")),
	);
}

function queue() {
	const { policy, max_running_requests: most } = info.engine?.scheduler ?? {};
	const running = "vllm:num_requests_running";
	const reason = (name) => figure(name, "vllm:num_requests_waiting_by_reason", { reason: name });
	return card(
		"queue",
		`${t("policy")}: ${policy ?? t("none")}`,
		`${shown(value(running))} ${t("running")} · ${shown(value("vllm:num_requests_waiting"))} ${t("waitingRequests")}`,
		line(samples.map((sample) => value(running, {}, sample))),
		reason("capacity"),
		reason("deferred"),
		figure("waitingTokens", "engine_waiting_tokens"),
		figure("preempted", "vllm:num_preemptions_total"),
		row("queueTime", mean("vllm:request_queue_time_seconds")),
		row("maxRunning", shown(most)),
	);
}

function memory() {
	const { weight_bytes: weights, kv_pool_bytes: pool, host_tier: tier, device, memory: of = {} } = info.executor ?? {};
	const parts = [["weights", weights, "c1"], ["kvPool", pool, "c2"], ["workspace", of.workspace, "c3"], ["graphs", of.graphs, "c5"], ["reserve", of.reserve, "c6"], ["others", of.others, "c7"]];
	const known = parts.filter(([, n]) => Number.isFinite(n));
	const all = known.reduce((all, [, n]) => all + n, 0);
	const free = Number.isFinite(of.total) ? [["free", Math.max(0, of.total - all), "c4"]] : [];
	const process = sum(samples.at(-1).values, "process_resident_memory_bytes");
	const size = (n) => (Number.isFinite(n) ? bytes(n) : t("notMeasured"));
	return card(
		"memory",
		`${device} · ${size(of.total)}`,
		bytes(all),
		bar([...known, ...free]),
		...[...parts, ...free].map(([label, n, color]) => row(label, size(n), color)),
		row("hostTier", tier ? bytes(tier.n_pages * tier.page_bytes) : null),
		row("process", shown(process, bytes)),
	);
}

// Why a request waits, with the figures that decided it.
function reason({ state, wait }) {
	if (!wait) return t(state);
	const figures = [wait.n_needed, wait.n_available, wait.limit].filter((n) => n !== undefined).map((n) => number(n));
	return `${t(`wait_${wait.reason}`)} ${figures.join(" / ")}`;
}

function requests() {
	const box = (...content) => h("article", { class: "card wide", id: "lab-requests" }, h("h2", {}, t("requests")), ...content);
	if (!listed || listed.error) return box(h("p", { class: "dim" }, listed?.error.message ?? t("requestsHelp")));
	const columns = ["id", "stateOf", "priority", "prompt", "computed", "output", "age"];
	const line = (one) => [one.id ?? "–", reason(one), one.priority, number(one.prompt_tokens), number(one.computed_tokens), `${number(one.output_tokens)} / ${number(one.max_tokens)}`, duration(1000 * one.age_s)];
	const rows = listed.requests.map((one) => h("tr", {}, line(one).map((cell) => h("td", {}, String(cell)))));
	return box(
		h("p", { class: "dim" }, `${t("policy")}: ${listed.policy} · ${number(listed.requests.length)} / ${number(listed.n_requests)}`),
		h("div", { class: "scrolls", tabindex: 0 }, h("table", {}, h("tr", {}, columns.map((name) => h("th", {}, t(name)))), rows)),
	);
}

function cache() {
	const [hits, asked] = ["vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"];
	const results = ["hit", "miss"].map((outcome) => shown(value("engine_result_cache_total", { outcome })));
	return card(
		"cache",
		t("hitRate"),
		percent(value(hits), value(asked)),
		line(rates(hits)),
		row("sinceStart", `${shown(value(hits))} / ${shown(value(asked))}`),
		row("recent", percent(growth(hits), growth(asked))),
		row("resultCache", results.join(" / ")),
	);
}

function speculation() {
	if (!info.engine?.scheduler?.speculation) return card("speculation", t("acceptance"));
	const of = (what) => value(`vllm:spec_decode_num_${what}_total`);
	const [drafted, accepted] = [of("draft_tokens"), of("accepted_tokens")];
	return card(
		"speculation",
		t("acceptance"),
		percent(accepted, drafted),
		bar([["acceptance", accepted, "c1"], ["", drafted - accepted, "c4"]]),
		row("sinceStart", `${shown(accepted)} / ${shown(drafted)}`),
		row("perDraft", of("drafts") ? number(accepted / of("drafts"), 2) : "–"),
	);
}
