// The page's start: views, theme, language, models to choose from, shortcuts.

import { json } from "./api.js";
import * as chat from "./chat.js";
import * as conversations from "./conversations.js";
import { byId, download, h, say } from "./elements.js";
import * as lab from "./lab.js";
import * as models from "./models.js";
import * as settings from "./settings.js";
import { current, setLanguage, t, translate } from "./words.js";

const VIEWS = ["chat", "lab", "models"];
const RETRY_MS = 3000;

let view = "chat";
let retry;

function show(next, hasFocus = false) {
  view = next;
  for (const one of VIEWS) {
    const tab = byId(`tab-${one}`);
    tab.setAttribute("aria-selected", String(one === view));
    tab.tabIndex = one === view ? 0 : -1;
    byId(one).hidden = one !== view;
    if (one === view && hasFocus) tab.focus();
  }
  if (view === "lab") lab.show();
  else lab.hide();
  if (view === "models") models.draw(listModels);
}

function notice(text, button) {
  byId("notice").hidden = !text;
  byId("notice").replaceChildren(...(text ? [h("span", {}, text), button ?? ""] : []));
}

// Also says whether the server can be used at all.
async function listModels() {
  clearTimeout(retry);
  try {
    const { data } = await json("/v1/models");
    const select = byId("model");
    const chosen = select.value || conversations.setting("model");
    const ready = data.map((one) => one.id);
    select.replaceChildren(...ready.map((id) => h("option", { value: id }, id)));
    if (ready.includes(chosen)) select.value = chosen;
    notice(ready.length ? "" : t("noModel"));
  } catch (error) {
    if (error.status === 401) {
      notice(`${error.message} · ${t("needKey")}`, h("button", { type: "button", onclick: () => toggleSettings(true, "api-key") }, t("openSettings")));
      return;
    }
    notice(error.status ? `${error.message}` : t("unreachable"));
    retry = setTimeout(listModels, RETRY_MS);
  }
}

function toggleSettings(isOpen = byId("settings").hidden, focus) {
  byId("settings").hidden = !isOpen;
  byId("open-settings").setAttribute("aria-expanded", String(isOpen));
  if (isOpen) {
    toggleSide(false);
    byId(focus ?? "set-system").focus();
  } else byId("open-settings").focus();
}

function toggleSide(isOpen) {
  byId("side").classList.toggle("open", isOpen);
  byId("menu").setAttribute("aria-expanded", String(isOpen));
}

function theme(next) {
  if (next) conversations.setting("theme", next);
  const chosen = conversations.setting("theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
}

const isDark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

function drawAll() {
  translate();
  byId("language-now").textContent = current() === "ko" ? "EN" : "한";
  settings.draw(whenKeyChanges, () => toggleSettings(false));
  chat.draw();
  chat.drawList();
  show(view);
}

function whenKeyChanges() {
  listModels();
  if (view === "models") models.draw(listModels);
}

function newChat() {
  show("chat");
  toggleSide(false);
  chat.open(null);
}

function grow() {
  const area = byId("message");
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

function submit() {
  if (!chat.send(byId("message").value)) return;
  byId("message").value = "";
  grow();
}

async function importFile(event) {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  try {
    say(`${t("imported")}${conversations.imported(await file.text())}`);
    chat.drawList();
  } catch {
    say(t("notImported"));
  }
}

function onKey(event) {
  if (event.key === "Escape") {
    if (chat.isRunning()) chat.stop();
    else if (byId("side").classList.contains("open")) toggleSide(false);
    else if (!byId("settings").hidden) toggleSettings(false);
    else return;
  } else if (event.altKey && !event.ctrlKey && !event.metaKey) {
    // By place of the key: with Alt, some layouts write another letter.
    const at = ["Digit1", "Digit2", "Digit3"].indexOf(event.code);
    if (at >= 0) show(VIEWS[at], true);
    else if (event.code === "KeyN") newChat();
    else if (event.code === "Comma") toggleSettings();
    else return;
  } else return;
  event.preventDefault();
}

function listen() {
  VIEWS.forEach((one, at) => {
    const tab = byId(`tab-${one}`);
    tab.addEventListener("click", () => show(one));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) show(VIEWS.at((at + step) % VIEWS.length), true);
    });
  });
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  byId("message").addEventListener("input", grow);
  byId("message").addEventListener("keydown", (event) => {
    if (!chat.isSending(event)) return;
    event.preventDefault();
    submit();
  });
  const click = {
    stop: chat.stop,
    menu: () => toggleSide(!byId("side").classList.contains("open")),
    "new-chat": newChat,
    export: () => download("conversations.json", conversations.exported()),
    import: () => byId("import-file").click(),
    theme: () => theme(isDark() ? "light" : "dark"),
    language: () => {
      setLanguage(current() === "ko" ? "en" : "ko");
      drawAll();
    },
    "open-settings": () => toggleSettings(),
  };
  for (const [id, run] of Object.entries(click)) byId(id).addEventListener("click", run);
  byId("import-file").addEventListener("change", importFile);
  byId("model").addEventListener("change", () => conversations.setting("model", byId("model").value));
  byId("conversations").addEventListener("click", (event) => {
    if (!event.target.closest(".title")) return;
    toggleSide(false);
    show("chat");
  });
  document.addEventListener("keydown", onKey);
}

theme();
listen();
drawAll();
listModels();
byId("message").focus();
