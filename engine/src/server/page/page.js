// The page's start: views, theme, language, the choice of a model, shortcuts.

import { json } from "./api.js";
import * as chat from "./chat.js";
import * as conversations from "./conversations.js";
import { button, byId, h, say } from "./elements.js";
import * as lab from "./lab.js";
import * as models from "./models.js";
import * as settings from "./settings.js";
import { language, switchLanguage, t, translate } from "./words.js";

const VIEWS = ["chat", "lab", "models"];
const RETRY_MS = 3000;

let view = "chat";
let retry;

function show(next) {
	view = next;
	for (const one of VIEWS) {
		const tab = byId(`tab-${one}`);
		tab.ariaSelected = String(one === view);
		tab.tabIndex = one === view ? 0 : -1;
		byId(one).hidden = one !== view;
	}
	lab.hide();
	if (view === "lab") lab.show();
	if (view === "models") models.draw(listModels);
}

function showAndFocus(next) {
	show(next);
	byId(`tab-${next}`).focus();
}

function notice(text, action = "") {
	byId("notice").hidden = !text;
	byId("notice").replaceChildren(text, action);
}

// Also says whether the server can be used at all.
async function listModels() {
	clearTimeout(retry);
	try {
		const names = (await json("/v1/models")).data.map(({ id }) => id);
		const chosen = byId("model").value || conversations.setting("model");
		byId("model").replaceChildren(...names.map((value) => h("option", { value, selected: value === chosen }, value)));
		notice(names.length ? "" : t("noModel"));
	} catch (error) {
		if (error.status === 401) {
			notice(`${error.message} ${t("needKey")}`, button(t("settings"), () => toggleSettings(true, "api-key")));
			return;
		}
		notice(error.status ? error.message : t("unreachable"));
		retry = setTimeout(listModels, RETRY_MS);
	}
}

function toggleSettings(isOpen = byId("settings").hidden, focus = "set-system") {
	byId("settings").hidden = !isOpen;
	byId("open-settings").ariaExpanded = String(isOpen);
	byId(isOpen ? focus : "open-settings").focus();
}

function toggleSide(isOpen = !byId("side").classList.contains("open")) {
	byId("side").classList.toggle("open", isOpen);
	byId("menu").ariaExpanded = String(isOpen);
}

const root = document.documentElement.dataset;

function switchTheme() {
	const isDark = root.theme ? root.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
	root.theme = isDark ? "light" : "dark";
	conversations.setting("theme", root.theme);
}

function drawAll() {
	translate();
	byId("language").textContent = language() === "ko" ? "EN" : "한";
	byId("message").placeholder = t("placeholder");
	settings.draw(whenKeyChanges, () => toggleSettings(false));
	chat.draw();
	chat.drawList();
	show(view);
}

function whenKeyChanges() {
	listModels();
	show(view);
}

function newChat() {
	show("chat");
	toggleSide(false);
	chat.open();
}

function submit(event) {
	event.preventDefault();
	if (chat.send(byId("message").value)) byId("message").value = "";
}

async function importFile({ target }) {
	try {
		say(t("imported") + conversations.imported(await target.files[0].text()));
		chat.drawList();
	} catch {
		say(t("notImported"));
	}
	target.value = "";
}

function exportFile() {
	const href = URL.createObjectURL(new Blob([conversations.exported()], { type: "application/json" }));
	h("a", { href, download: "conversations.json" }).click();
}

function onKey(event) {
	// By the key's place: with Alt, some layouts write another letter.
	const at = ["Digit1", "Digit2", "Digit3"].indexOf(event.code);
	if (event.key === "Escape" && chat.isRunning()) chat.stop();
	else if (event.key === "Escape" && byId("side").classList.contains("open")) toggleSide(false);
	else if (event.key === "Escape" && !byId("settings").hidden) toggleSettings(false);
	else if (!event.altKey || event.ctrlKey || event.metaKey) return;
	else if (at >= 0) showAndFocus(VIEWS[at]);
	else if (event.code === "KeyN") newChat();
	else if (event.code === "Comma") toggleSettings();
	else return;
	event.preventDefault();
}

function on(id, event, run) {
	byId(id).addEventListener(event, run);
}

for (const [at, one] of VIEWS.entries()) {
	on(`tab-${one}`, "click", () => show(one));
	on(`tab-${one}`, "keydown", (event) => {
		const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
		if (step) showAndFocus(VIEWS.at((at + step) % VIEWS.length));
	});
}
on("composer", "submit", submit);
on("message", "keydown", (event) => chat.isSending(event) && submit(event));
on("stop", "click", chat.stop);
on("menu", "click", () => toggleSide());
on("new-chat", "click", newChat);
on("export", "click", exportFile);
on("import", "click", () => byId("import-file").click());
on("import-file", "change", importFile);
on("theme", "click", switchTheme);
on("language", "click", () => {
	switchLanguage();
	drawAll();
});
on("open-settings", "click", () => toggleSettings());
on("model", "change", () => conversations.setting("model", byId("model").value));
on("conversations", "click", ({ target }) => target.closest(".title") && toggleSide(false));
document.addEventListener("keydown", onKey);

root.theme = conversations.setting("theme") ?? "";
drawAll();
listModels();
byId("message").focus();
