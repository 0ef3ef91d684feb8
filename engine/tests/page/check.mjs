// node check.mjs URL API_KEY ADMIN_KEY CHROMIUM [FOLDER]: the page at `/` in a real browser. Prints
// a line for each check; the first that fails ends it. FOLDER gets screenshots.

import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const [url, apiKey, adminKey, executablePath, folder] = process.argv.slice(2);
const DEADLINE_MS = 15_000;
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

const browser = await chromium.launch({ executablePath, args: FLAGS });
// What no page may do, in any check.
const faults = [];

async function opened({ key = apiKey, ...options } = {}) {
  const context = await browser.newContext({ locale: "en-US", viewport: { width: 1280, height: 800 }, ...options });
  context.setDefaultTimeout(DEADLINE_MS);
  await context.addInitScript((value) => value && sessionStorage.setItem("engine.apiKey", value), key);
  const page = await context.newPage();
  page.on("console", (message) => {
    // The browser reports a refused request itself; checks that provoke one look at the page.
    const isRefusal = message.text().startsWith("Failed to load resource") && key !== apiKey;
    if (["error", "warning"].includes(message.type()) && !isRefusal) faults.push(`console: ${message.text()} ${message.location().url}`);
  });
  page.on("pageerror", (error) => faults.push(`script: ${error.stack}`));
  page.on("request", (request) => {
    if (!request.url().startsWith(`${url}/`) && !request.url().startsWith("blob:")) faults.push(`another origin: ${request.url()}`);
  });
  await page.goto(`${url}/`);
  return page;
}

const settle = (page) => page.waitForFunction(() => document.querySelector("#stop").hidden);
const answers = (page) => page.locator(".message.assistant");
const stats = (page) => answers(page).last().locator(".stats");

async function ask(page, text) {
  await page.fill("#message", text);
  await page.press("#message", "Enter");
}

async function set(page, values) {
  for (const [name, value] of Object.entries(values)) await page.evaluate(([id, v]) => {
    const field = document.getElementById(id);
    field.value = v;
    field.dispatchEvent(new Event(field.tagName === "SELECT" ? "change" : "input"));
  }, [`set-${name}`, String(value)]);
}

const isWide = (page) => page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
const shot = (page, name) => folder && page.screenshot({ path: `${folder}/${name}.png` });
const background = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);

// Chunks that no random weights make: thoughts, Markdown, and text that must stay text.
const SAID = [
  { reasoning_content: "First a thought." },
  { content: "**Bold** and <img src=x onerror=alert(1)>\n\n```rust\nfn main() {}\n```\n\n" },
  { content: "| a | b |\n|---|---|\n| 1 | 2 |\n\n1. one\n2. [two](https://example.org/)" },
];
const scripted = SAID.map((delta) => `data: ${JSON.stringify({ choices: [{ index: 0, delta }] })}\n\n`).join("") + "data: [DONE]\n\n";

const checks = {
  async "an answer streams in with its figures"(page) {
    await page.waitForSelector("#model option", { state: "attached" });
    await shot(page, "start");
    await set(page, { max_tokens: 24, seed: 7 });
    await ask(page, "Hello there");
    await settle(page);
    const text = await stats(page).innerText();
    assert.match(text, /[\d.,]+ tok\/s/);
    assert.match(text, /TTFT\s+[\d.,]+ (µs|ms|s)/);
    assert.match(text, /24 output/);
    assert.ok((await answers(page).last().locator(".body").innerText()).length > 0);
  },
  async "a retry and the edit of a message make another answer"(page) {
    await set(page, { max_tokens: 8 });
    await answers(page).last().getByRole("button", { name: "Retry" }).click();
    await settle(page);
    assert.match(await stats(page).innerText(), /8 output/);
    await page.getByRole("button", { name: "Edit" }).click();
    await page.fill(".editing textarea", "Good evening");
    await page.press(".editing textarea", "Enter");
    await settle(page);
    assert.deepEqual(await page.locator(".message.user .body").allInnerTexts(), ["Good evening"]);
    assert.equal(await answers(page).count(), 1);
  },
  async "Escape stops an answer, which keeps its figures"(page) {
    await set(page, { max_tokens: 4000, seed: "" });
    await ask(page, "Go on");
    await page.waitForFunction(() => document.querySelector(".streaming .body:not(.waiting)")?.textContent.length > 20);
    await page.keyboard.press("Escape");
    await settle(page);
    const text = await stats(page).innerText();
    assert.match(text, /stopped/);
    assert.match(text, /tok\/s/);
  },
  async "a conversation outlives a reload, and is exported, deleted and imported"(page) {
    await page.reload();
    await page.locator("#conversations .title", { hasText: "Good evening" }).click();
    assert.equal(await answers(page).count(), 2);
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("#export")]);
    const file = await download.path();
    page.once("dialog", (dialog) => dialog.accept());
    await page.locator("#conversations li").first().getByRole("button", { name: "Delete" }).click();
    await page.waitForFunction(() => document.querySelectorAll("#conversations li").length === 0);
    await page.setInputFiles("#import-file", file);
    await page.locator("#conversations .title", { hasText: "Good evening" }).waitFor();
  },
  async "a schema is followed, and a wrong one is explained"(page) {
    await page.click("#new-chat");
    const schema = { type: "object", properties: { ok: { type: "boolean" } }, required: ["ok"], additionalProperties: false };
    await set(page, { schema: JSON.stringify(schema), max_tokens: 64 });
    await ask(page, "Is it so?");
    await settle(page);
    assert.match(await answers(page).last().locator("pre").innerText(), /^{\s*"ok": (true|false)\s*}$/);
    await set(page, { schema: "{" });
    await ask(page, "Again");
    await settle(page);
    assert.match(await answers(page).last().locator(".error").innerText(), /JSON schema is not valid JSON/);
    await set(page, { schema: "", top_p: 7 });
    await ask(page, "Again");
    await settle(page);
    assert.match(await answers(page).last().locator(".error").innerText(), /top_p.*7.*from 0 to 1/);
    await set(page, { top_p: "" });
  },
  async "a tool call takes a result"(page) {
    await page.click("#new-chat");
    const parameters = { type: "object", properties: { on: { type: "boolean" } }, required: ["on"], additionalProperties: false };
    await set(page, { tool: JSON.stringify({ name: "lamp", parameters }), toolChoice: "required" });
    await ask(page, "Light");
    await settle(page);
    assert.match(await page.locator(".call").innerText(), /Tool call: lamp[^]*"on": (true|false)/);
    await shot(page, "tool");
    await set(page, { toolChoice: "none", max_tokens: 4 });
    await page.fill(".tool-result", "done");
    await page.click(".call .primary");
    await settle(page);
    assert.equal(await answers(page).count(), 2);
    assert.match(await stats(page).innerText(), /4 output/);
    await set(page, { tool: "" });
  },
  async "thoughts are folded, and Markdown never becomes HTML"(page) {
    await page.click("#new-chat");
    await page.route("**/v1/chat/completions", (route) => route.fulfill({ contentType: "text/event-stream", body: scripted }));
    await ask(page, "Show me");
    await settle(page);
    await page.unroute("**/v1/chat/completions");
    const answer = answers(page).last();
    assert.equal(await answer.locator("details.thought").getAttribute("open"), null);
    assert.equal(await answer.locator("details.thought div").textContent(), "First a thought.");
    assert.equal(await answer.locator("strong").innerText(), "Bold");
    assert.equal(await answer.locator("td").count(), 2);
    assert.equal(await answer.locator("ol li").count(), 2);
    assert.equal(await answer.locator("img, a").count(), 0);
    assert.match(await answer.innerText(), /<img src=x/);
    await answer.locator(".code button").click();
    await answer.locator(".code button", { hasText: /opied/ }).waitFor();
    await shot(page, "chat");
    await page.click("#theme");
    await shot(page, "dark");
    await page.click("#theme");
  },
  async "the lab shows pages and where a step's time goes"(page) {
    await page.click("#tab-lab");
    await page.locator("#kv-pages").waitFor();
    const text = await page.locator("#lab").innerText();
    assert.match(text, /Requests\s+\d+ · [\d.]+ %/);
    assert.match(text, /[\d.,]+ (µs|ms|s) a step/);
    // This server drafts nothing: no figure is made up.
    assert.match(text, /Speculation[^]*?not available/);
    await page.waitForFunction(() => document.querySelectorAll("#lab svg.line path").length >= 6);
    await shot(page, "lab");
  },
  async "a model is put to sleep and woken with the admin key"(page) {
    await page.click("#tab-models");
    await page.fill("#models-admin-key", adminKey);
    await page.press("#models-admin-key", "Enter");
    await page.click("[data-state=ready] button:text-is('Sleep')");
    await page.locator("[data-state=asleep]").waitFor();
    await shot(page, "models");
    await page.click("[data-state=asleep] button:text-is('Wake')");
    await page.locator("[data-state=ready]").waitFor();
  },
  async "the keyboard is enough, and the focus is seen"(page) {
    await page.keyboard.press("Alt+Digit1");
    await page.keyboard.press("ArrowRight");
    assert.ok(await page.locator("#lab").isVisible());
    const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    assert.notEqual(outline, "none");
    await page.keyboard.press("Alt+KeyN");
    assert.equal(await page.evaluate(() => document.activeElement.id), "message");
    await page.keyboard.type("Typed");
    await page.keyboard.press("Enter");
    await settle(page);
    assert.equal(await answers(page).count(), 1);
    await page.keyboard.press("Alt+Comma");
    assert.equal(await page.evaluate(() => document.activeElement.id), "set-system");
    await shot(page, "settings");
    await page.keyboard.press("Escape");
    assert.ok(await page.locator("#settings").isHidden());
    const names = await page.evaluate(() => [...document.querySelectorAll("button")].filter((b) => b.checkVisibility() && !(b.ariaLabel || b.innerText.trim())).length);
    assert.equal(names, 0, "buttons without a name");
  },
};

async function onlyInItsOwnPage(name, options, check) {
  const page = await opened(options);
  await check(page);
  await page.context().close();
  console.log(`ok: ${name}`);
}

let now = "start";
try {
  const page = await opened();
  for (const [name, check] of Object.entries(checks)) {
    now = name;
    await check(page);
    console.log(`ok: ${name}`);
  }
  const storage = await page.context().storageState();
  now = "a wrong key";
  await onlyInItsOwnPage("a wrong key is named, and the right one works", { key: "wrong" }, async (page) => {
    await page.locator("#notice button").click();
    assert.match(await page.locator("#notice").innerText(), /key/i);
    await page.fill("#api-key", apiKey);
    await page.press("#api-key", "Enter");
    await page.waitForSelector("#model option", { state: "attached" });
    await page.locator("#notice").waitFor({ state: "hidden" });
  });
  now = "Korean";
  await onlyInItsOwnPage("Korean by the browser's language, English by the switch", { locale: "ko-KR", storageState: storage }, async (page) => {
    assert.equal(await page.locator("#tab-lab").innerText(), "실험실");
    assert.equal(await page.evaluate(() => document.documentElement.lang), "ko");
    await page.click("#conversations .title >> nth=0");
    await shot(page, "korean");
    await page.click("#language");
    assert.equal(await page.locator("#tab-lab").innerText(), "Lab");
  });
  now = "phone";
  await onlyInItsOwnPage("a phone scrolls downwards only", { viewport: { width: 360, height: 740 }, storageState: storage }, async (page) => {
    await page.click("#menu");
    await page.locator("#conversations .title", { hasText: "Show me" }).click();
    assert.ok(await page.locator("#side").isHidden());
    await shot(page, "phone");
    for (const view of ["chat", "lab", "models"]) {
      await page.click(`#tab-${view}`);
      if (view === "lab") await page.locator("#kv-pages").waitFor();
      assert.ok(!(await isWide(page)), `${view} is too wide`);
      const over = await page.evaluate((id) => document.getElementById(id).scrollWidth - document.getElementById(id).clientWidth, view);
      assert.ok(over <= 0, `${view} scrolls sideways by ${over} px`);
      if (view !== "chat") await shot(page, `phone-${view}`);
    }
    await page.click("#open-settings");
    assert.ok(!(await isWide(page)), "settings are too wide");
    await shot(page, "phone-settings");
  });
  now = "dark";
  await onlyInItsOwnPage("dark by preference, light by the switch", { colorScheme: "dark" }, async (page) => {
    const dark = await background(page);
    await page.click("#theme");
    assert.notEqual(await background(page), dark);
  });
  now = "faults";
  assert.deepEqual(faults, []);
  console.log("ok: no error, no violation of the policy, no other origin");
} catch (error) {
  console.error(`FAILED: ${now}\n${error.stack}\n${faults.join("\n")}`);
  process.exitCode = 1;
} finally {
  await browser.close();
}
