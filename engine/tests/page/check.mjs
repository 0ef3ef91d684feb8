// node check.mjs URL API_KEY ADMIN_KEY CHROMIUM: the page at `/` in a browser.

import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const [url, apiKey, adminKey, executablePath] = process.argv.slice(2);
// What no page may do, in any check.
const faults = [];
// What no random weights write.
const said = [
	{ reasoning_content: "First a thought." },
	{ content: "**Bold** and <img src=x onerror=alert(1)>\n\n```rust\nfn main() {}\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n1. one\n2. [two](https://example.org/)" },
].map((delta) => `data: ${JSON.stringify({ choices: [{ delta }] })}\n\n`);

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-quic"] });

async function opened({ key = apiKey, ...options }) {
	const context = await browser.newContext({ locale: "en-US", viewport: { width: 1280, height: 800 }, ...options });
	context.setDefaultTimeout(10_000);
	await context.addInitScript((value) => sessionStorage.setItem("engine.apiKey", value), key);
	const page = await context.newPage();
	page.on("console", (message) => {
		// The browser reports every refused request itself; checks that provoke one look at the page.
		if (!/Failed to load resource.* 40[01] /.test(message.text())) faults.push(message.text());
	});
	page.on("pageerror", (error) => faults.push(error.stack));
	page.on("request", (request) => request.url().startsWith(`${url}/`) || request.url().startsWith("blob:") || faults.push(request.url()));
	await page.goto(url);
	return page;
}

const object = (name) => ({ type: "object", properties: { [name]: { type: "boolean" } }, required: [name], additionalProperties: false });
const settled = (page) => page.locator("#stop").waitFor({ state: "hidden" });
const answer = (page) => page.locator(".assistant").last();
const named = (page, name) => page.getByRole("button", { name });
const count = (page, selector) => page.locator(selector).count();
const text = (page, selector) => page.locator(selector).innerText();
const focused = (page) => page.evaluate(() => document.activeElement.id);
const back = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);

// Sets fields of the panel, sends a message, and returns the answer's text.
async function ask(page, message, fields = {}) {
	await page.keyboard.press("Alt+Comma");
	for (const [name, value] of Object.entries(fields)) {
		const field = page.locator(`#set-${name}`);
		if (["think", "toolChoice"].includes(name)) await field.selectOption(value);
		else await field.fill(String(value));
	}
	await page.keyboard.press("Alt+Comma");
	await page.fill("#message", message);
	await page.press("#message", "Enter");
	await settled(page);
	return answer(page).innerText();
}

const inOne = {
	async "an answer streams in with its figures"(page) {
		// Long enough that its chunks cannot all arrive at once, which says no rate.
		assert.match(await ask(page, "Hello", { max_tokens: 600 }), /\S[^]*[\d.,]+ tok\/s[^]*[\d.]+ (µs|ms|s) TTFT[^]*600 output/);
	},
	async "a message is edited, and an answer retried"(page) {
		await named(page, "Edit").click();
		await page.fill(".editing textarea", "Good evening");
		await page.press(".editing textarea", "Enter");
		await settled(page);
		const before = await text(page, ".assistant .body");
		await named(page, "Retry").click();
		await settled(page);
		assert.notEqual(await text(page, ".assistant .body"), before);
		assert.equal(await text(page, ".user .body"), "Good evening");
	},
	async "Escape stops an answer, which keeps its figures"(page) {
		const stopped = ask(page, "Go on", { max_tokens: 3000 });
		await page.waitForFunction(() => document.querySelectorAll(".assistant .body")[1]?.innerText.length > 80);
		await page.keyboard.press("Escape");
		assert.match(await stopped, /tok\/s[^]*stopped/);
	},
	async "a conversation outlives a reload, and is exported, deleted and imported"(page) {
		await page.reload();
		await page.click(".title");
		assert.equal(await count(page, ".assistant"), 2);
		const [file] = await Promise.all([page.waitForEvent("download"), page.click("#export")]);
		page.once("dialog", (dialog) => dialog.accept());
		await named(page, "Delete").click();
		assert.equal(await count(page, ".title"), 0);
		await page.setInputFiles("#import-file", await file.path());
		await page.locator(".title[title='Good evening']").waitFor();
	},
	async "a schema is followed; a wrong one and a refused field are explained"(page) {
		assert.match(await ask(page, "So?", { schema: JSON.stringify(object("ok")), think: "off", max_tokens: 99 }), /"ok": (true|false)/);
		assert.match(await ask(page, "So?", { schema: "{" }), /JSON schema is not valid JSON/);
		assert.match(await ask(page, "So?", { schema: "", top_p: 7 }), /top_p is 7.* 0 to 1/);
	},
	async "a tool call takes a result"(page) {
		await page.click("#new-chat");
		const definition = JSON.stringify({ name: "lamp", parameters: object("on") });
		assert.match(await ask(page, "Light", { definition, toolChoice: "required", top_p: "" }), /Tool call: lamp[^]*"on": (true|false)/);
		// Random weights may call the tool more than once; the answer goes on when every call has its result.
		for (let left = await count(page, ".result"); left > 0; left--) {
			await page.locator(".result").first().fill("done");
			await page.locator(".call form button").first().click();
		}
		await page.locator(".assistant >> nth=1").waitFor();
		await settled(page);
		assert.equal(await count(page, ".message .error"), 0);
	},
	async "thoughts are folded, and Markdown never becomes HTML"(page) {
		await page.click("#new-chat");
		const chat = "**/v1/chat/completions";
		await page.route(chat, (route) => route.fulfill({ contentType: "text/event-stream", body: said.join("") }));
		assert.match(await ask(page, "Show me", { definition: "" }), /Bold and <img src=x/);
		await page.unroute(chat);
		assert.ok(await page.getByText("First a thought.").isHidden());
		const found = await Promise.all(["strong", "td", "ol li", "pre", "img", "a"].map((tag) => count(page, `.assistant ${tag}`)));
		assert.deepEqual(found, [1, 2, 2, 1, 0, 0]);
	},
	async "the lab shows pages and where a step's time goes"(page) {
		await page.click("#tab-lab");
		await page.waitForFunction(() => document.querySelector("#lab-speed path")?.getAttribute("d")?.includes("L"));
		const lab = await text(page, "#lab");
		assert.match(lab, /Time of a step[^]*Execute\s+[\d.]+ (µs|ms|s)[^]*Prefix tree\s+\d+ · [\d.]+ %[^]*Host tier\s+not available[^]*Speculation[^]*not available/);
		assert.match(lab, /Weights\s+[\d.]+ [KM]iB[^]*Workspace\s+not measured[^]*Graphs \(at most\)\s+not measured/);
		assert.match(lab, /The admin key \(Models view\) shows/);
		assert.doesNotMatch(lab, /NaN|undefined|∞/);
	},
	async "a model is put to sleep and woken with the admin key"(page) {
		await page.click("#tab-models");
		await page.fill("#models-key", adminKey);
		await page.press("#models-key", "Enter");
		await named(page, "Sleep").click();
		await page.locator("[data-state=asleep]").waitFor();
		await named(page, "Wake").click();
		await page.locator("[data-state=ready]").waitFor();
	},
	async "with the admin key the lab lists the requests, and why one waits"(page) {
		const begin = (rid) =>
			page.evaluate(([key, id]) => fetch("/v1/completions", { method: "POST", headers: { authorization: `Bearer ${key}`, "content-type": "application/json" }, body: JSON.stringify({ prompt: "a", max_tokens: 3000, ignore_eos: true, rid: id }) }).then((response) => response.status), [apiKey, rid]);
		const listed = ({ source }) => page.waitForFunction((wanted) => new RegExp(wanted).test(document.querySelector("#lab-requests")?.innerText ?? ""), source);
		await page.click("#tab-lab");
		const answers = [begin("first")];
		await listed(/first\s+running\s+0\s+1\s/);
		answers.push(begin("second"));
		await listed(/second\s+(batch is full: 1|arrived after the last plan)\s+0\s+1\s+0\s+0 \/ 3,000/);
		await page.evaluate((key) => fetch("/abort_request", { method: "POST", headers: { authorization: `Bearer ${key}`, "content-type": "application/json" }, body: "{\"abort_all\": true}" }), adminKey);
		await Promise.all(answers);
	},
	async "the keyboard is enough, and the focus is seen"(page) {
		await page.keyboard.press("Alt+Digit1");
		await page.keyboard.press("ArrowRight");
		assert.equal(await focused(page), "tab-lab");
		assert.notEqual(await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle), "none");
		await page.keyboard.press("Alt+KeyN");
		await page.keyboard.type("Typed");
		await page.keyboard.press("Enter");
		await answer(page).waitFor();
		await settled(page);
		await page.keyboard.press("Alt+Comma");
		assert.equal(await focused(page), "set-system");
		await page.keyboard.press("Escape");
		assert.equal(await focused(page), "open-settings");
		assert.equal(await page.evaluate(() => [...document.querySelectorAll("button")].filter((one) => !one.ariaLabel && !one.textContent).length), 0);
	},
};

// Each in a browser of its own, with the conversations of the first.
const apart = {
	"a wrong key is named, and the right one works": [{ key: "wrong" }, async (page) => {
		await page.getByRole("alert").getByRole("button").click();
		await page.fill("#api-key", apiKey);
		await page.press("#api-key", "Enter");
		await page.locator("#notice").waitFor({ state: "hidden" });
	}],
	"Korean by the browser's language, English by the switch": [{ locale: "ko-KR" }, async (page) => {
		assert.equal(await text(page, "#tab-lab"), "실험실");
		await page.click("#language");
		assert.equal(await text(page, "#tab-lab"), "Lab");
	}],
	"a phone scrolls downwards only": [{ viewport: { width: 360, height: 740 } }, async (page) => {
		await page.click("#menu");
		await page.click(".title[title='Show me']");
		for (const view of ["chat", "lab", "models", "settings"]) {
			await page.click(view === "settings" ? "#open-settings" : `#tab-${view}`);
			if (view === "lab") await page.locator("#lab-pages").waitFor();
			const over = await page.evaluate((id) => ["html", `#${id}`].map((one) => document.querySelector(one)).map((one) => one.scrollWidth - one.clientWidth), view);
			assert.deepEqual(over, [0, 0], view);
		}
	}],
	"dark by preference, light by the switch": [{ colorScheme: "dark" }, async (page) => {
		const dark = await back(page);
		await page.click("#theme");
		assert.notEqual(await back(page), dark);
	}],
};

let now;
try {
	const page = await opened({});
	for (const [name, check] of Object.entries(inOne)) {
		now = name;
		await check(page);
		console.log(`ok: ${name}`);
	}
	const storageState = await page.context().storageState();
	for (const [name, [options, check]] of Object.entries(apart)) {
		now = name;
		await check(await opened({ storageState, ...options }));
		console.log(`ok: ${name}`);
	}
	now = "no error, no violation of the policy, no other origin";
	assert.deepEqual(faults, []);
	console.log(`ok: ${now}`);
} catch (error) {
	console.error(`FAILED: ${now}\n${error.stack}\n${faults.join("\n")}`);
	process.exitCode = 1;
} finally {
	await browser.close();
}
