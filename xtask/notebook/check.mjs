// node notebook.mjs URL CHROMIUM: the notebook's page in a browser. URL has the token after its `#`.

import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const [url, executablePath] = process.argv.slice(2);
const { origin, pathname } = new URL(url);
const faults = [];
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-quic"] });

async function opened(address, options = {}) {
	const context = await browser.newContext({ locale: "en-US", ...options });
	context.setDefaultTimeout(20_000);
	const page = await context.newPage();
	page.on("console", (message) => faults.push(message.text()));
	page.on("pageerror", (error) => faults.push(error.stack));
	page.on("request", (request) => request.url().startsWith(`${origin}/`) || faults.push(request.url()));
	await page.goto(address);
	return page;
}

const says = (page, selector, wanted) =>
	page.waitForFunction(([one, text]) => document.querySelector(one).innerText.includes(text), [selector, wanted]);
const start = (page, name) => page.getByRole("button", { name: `Start ${name}` });

let now;
async function check(name, run) {
	now = name;
	await run();
	console.log(`ok: ${name}`);
}

try {
	const page = await opened(url);
	await check("the token leaves the address, and stays through a reload", async () => {
		assert.equal(page.url(), `${origin}${pathname}`);
		await page.reload();
		await start(page, "02-ends").waitFor();
	});
	await check("an experiment runs, its lines arrive, and its verdict and report follow", async () => {
		await start(page, "02-ends").click();
		await says(page, "#phase", "02-ends --quick is complete");
		assert.match(await page.locator("#lines").innerText(), /exp 02-ends true\nthe end/);
		await says(page, "#verdicts", "card: ttft faster +7.4 % (against 01-runs, 8 starts)");
		await page.getByRole("link", { name: "index.ko" }).click();
		await says(page, "body", "A report");
		await page.goBack();
	});
	await check("one at a time, followed by a second reader, and stopped", async () => {
		await page.locator("#quick").uncheck();
		await start(page, "01-runs").click();
		await says(page, "#lines", "exp 01-runs false");
		assert.ok(await start(page, "02-ends").isDisabled());
		const reader = await opened(`${origin}${pathname}`, { locale: "ko-KR" });
		await says(reader, "#lines", "exp 01-runs false");
		await says(reader, "#phase", "실행 중");
		assert.ok(await reader.getByRole("button", { name: "시작 02-ends" }).isDisabled());
		assert.ok(await reader.locator("#stop").isHidden());
		await page.click("#stop");
		await says(page, "#phase", "was stopped");
		await says(reader, "#phase", "중지됨");
	});
	await check("the engine's page is beside it, and its answers stream", async () => {
		await page.goto(`${origin}/`);
		await page.fill("#message", "Hello");
		await page.press("#message", "Enter");
		await page.locator(".assistant .stats").first().waitFor();
	});
	await check("no error, no violation of the policy, no other origin", () => assert.deepEqual(faults, []));
} catch (error) {
	console.error(`FAILED: ${now}\n${error.stack}\n${faults.join("\n")}`);
	process.exitCode = 1;
} finally {
	await browser.close();
}
