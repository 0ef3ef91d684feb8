// The notebook's page: experiments to start, the progress of one, and the reports.

import { button, byId, h } from "/notebook/elements.js";

const TEXTS = {
	notebook: ["Notebook", "노트북"],
	engine: ["The engine's page", "엔진 페이지"],
	experiments: ["Experiments", "실험"],
	reports: ["Reports", "보고서"],
	noReports: ["None is rendered yet: cargo xtask report", "아직 렌더링된 보고서가 없습니다: cargo xtask report"],
	quick: ["Quick: a small workload of about two minutes", "빠르게: 약 2분의 작은 부하"],
	run: ["Progress", "진행 상황"],
	start: ["Start", "시작"],
	stop: ["Stop", "중지"],
	none: ["No experiment has been started.", "시작된 실험이 없습니다."],
	running: ["runs", "실행 중"],
	stopping: ["is being stopped", "중지하는 중"],
	succeeded: ["is complete", "완료"],
	failed: ["failed", "실패"],
	stopped: ["was stopped", "중지됨"],
	noVerdict: ["The reports have no verdict on it.", "보고서에 이 실험의 판정이 없습니다."],
	lost: ["The notebook cannot be reached.", "노트북 서버에 연결할 수 없습니다."],
	token: ["To start an experiment, open the address that was printed at the start: it has the token.", "실험을 시작하려면 시작할 때 출력된 주소로 여세요. 그 주소에 토큰이 있습니다."],
};
const KEPT_LINES = 2000;

// The token comes after the `#` of the printed address, and stays in this tab.
const given = location.hash.match(/^#token=(\w+)$/)?.[1];
if (given) sessionStorage.setItem("notebook.token", given);
history.replaceState(null, "", location.pathname);
const token = sessionStorage.getItem("notebook.token");

let at = Number(navigator.language.startsWith("ko"));
let all = { experiments: [], reports: [] };
let run = null;

const t = (name) => TEXTS[name][at];

function notice(text) {
	byId("notice").hidden = !text;
	byId("notice").textContent = text;
}

async function post(what, body = {}) {
	notice("");
	const headers = { "content-type": "application/json", "x-notebook-token": token ?? "" };
	try {
		const response = await fetch(`/notebook/api/${what}`, { method: "POST", headers, body: JSON.stringify(body) });
		if (!response.ok) notice((await response.json()).error);
	} catch {
		notice(t("lost"));
	}
}

const isBusy = () => ["running", "stopping"].includes(run?.phase);

function draw() {
	document.documentElement.lang = ["en", "ko"][at];
	byId("language").textContent = ["한국어", "English"][at];
	for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
	const reports = all.reports.map((name) => h("li", {}, h("a", { href: `/notebook/reports/${encodeURIComponent(name)}` }, name.replace(/\.(html|md)$/, ""))));
	byId("reports").replaceChildren(...(reports.length ? reports : [h("li", {}, t("noReports"))]));
	const experiments = all.experiments.map(({ name, title, verdicts }) => {
		const start = () => post("start", { name, quick: byId("quick").checked });
		return h(
			"div",
			{},
			h("div", { class: "row" }, h("b", {}, name), h("span", { class: "grows dim" }, title), button(t("start"), start, { disabled: isBusy() || !token, "aria-label": `${t("start")} ${name}` })),
			h("ul", { class: "dim" }, verdicts.map((line) => h("li", {}, line))),
		);
	});
	byId("experiments").replaceChildren(...experiments);
	const text = run ? `${run.name}${run.quick ? " --quick" : ""} ${t(run.phase)}` : t("none");
	if (byId("phase").textContent !== text) byId("phase").textContent = text;
	byId("stop").hidden = !isBusy() || !token;
	const verdicts = run?.verdicts?.length ? run.verdicts : run?.phase === "succeeded" ? [t("noVerdict")] : [];
	byId("verdicts").replaceChildren(...verdicts.map((line) => h("li", {}, line)));
	byId("lines").hidden = !run;
}

async function list() {
	all = await (await fetch("/notebook/api/experiments")).json();
	draw();
}

const events = new EventSource("/notebook/api/events");
events.addEventListener("run", ({ data }) => {
	const before = run;
	run = JSON.parse(data);
	if (run?.number !== before?.number) byId("lines").replaceChildren();
	draw();
	if (run && before && !isBusy()) list();
});
events.addEventListener("line", ({ data }) => {
	const lines = byId("lines");
	const isAtEnd = lines.scrollTop + lines.clientHeight > lines.scrollHeight - 40;
	lines.append(`${JSON.parse(data)}\n`);
	while (lines.childNodes.length > KEPT_LINES) lines.firstChild.remove();
	if (isAtEnd) lines.scrollTop = lines.scrollHeight;
});
events.addEventListener("open", () => notice(token ? "" : t("token")));
events.addEventListener("error", () => notice(t("lost")));
byId("stop").addEventListener("click", () => post("stop"));
byId("language").addEventListener("click", () => {
	at = 1 - at;
	draw();
});
draw();
list().catch(() => notice(t("lost")));
