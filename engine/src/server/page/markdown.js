// A small part of Markdown as elements: code, lists, headings, tables, quotes, bold and italic.
// A model's text only ever becomes text nodes. Links and images stay text: an answer makes the
// browser ask no other server.

import { copy, h, icon } from "./elements.js";
import { t } from "./words.js";

export function rendered(text) {
  const out = document.createDocumentFragment();
  const lines = text.split("\n");
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const fence = line.match(/^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/);
    if (fence) {
      let end = at + 1;
      while (end < lines.length && !lines[end].trim().startsWith(fence[1])) end += 1;
      out.append(codeBlock(lines.slice(at + 1, end).join("\n"), fence[2]));
      at = end + 1;
      continue;
    }
    if (!line.trim()) {
      at += 1;
      continue;
    }
    const heading = line.match(/^(#{1,6})\s+(.*)/);
    if (heading) {
      // The page itself has the first two levels.
      const level = Math.min(6, heading[1].length + 2);
      out.append(h(`h${level}`, {}, ...inline(heading[2])));
      at += 1;
      continue;
    }
    if (/^ {0,3}([-*_])( *\1){2,}\s*$/.test(line)) {
      out.append(h("hr"));
      at += 1;
      continue;
    }
    const block = [LIST, QUOTE].find((one) => one.start.test(line));
    if (block || isTable(lines, at)) {
      const belongs = block ? block.belongs : (next) => next.includes("|");
      let end = at + 1;
      while (end < lines.length && lines[end].trim() && belongs(lines[end])) end += 1;
      const part = lines.slice(at, end);
      out.append(block ? block.make(part) : table(part));
      at = end;
      continue;
    }
    let end = at + 1;
    while (end < lines.length && lines[end].trim() && !/^ {0,3}(`{3,}|~{3,}|#{1,6}\s|>|[-*+]\s|\d+[.)]\s)/.test(lines[end])) end += 1;
    const parts = lines.slice(at, end).flatMap((one, i) => (i ? [h("br"), ...inline(one)] : inline(one)));
    out.append(h("p", {}, ...parts));
    at = end;
  }
  return out;
}

const ITEM = /^(\s*)([-*+]|\d+[.)])\s+(.*)/;

const LIST = {
  start: ITEM,
  belongs: (line) => ITEM.test(line) || /^\s{2,}\S/.test(line),
  make(lines) {
    const depth = (line) => line.match(/^\s*/)[0].length;
    const first = lines[0].match(ITEM);
    const isOrdered = /\d/.test(first[2]);
    const list = h(isOrdered ? "ol" : "ul", isOrdered ? { start: parseInt(first[2], 10) } : {});
    let at = 0;
    while (at < lines.length) {
      const base = depth(lines[at]);
      let end = at + 1;
      while (end < lines.length && depth(lines[end]) > base) end += 1;
      const item = lines[at].match(ITEM);
      const inner = lines.slice(at + 1, end);
      const nested = inner.findIndex((line) => ITEM.test(line));
      const text = nested < 0 ? inner : inner.slice(0, nested);
      const words = [item ? item[3] : lines[at].trim(), ...text.map((line) => line.trim())].join(" ");
      list.append(h("li", {}, ...inline(words), nested < 0 ? null : LIST.make(inner.slice(nested))));
      at = end;
    }
    return list;
  },
};

const QUOTE = {
  start: /^ {0,3}>/,
  belongs: (line) => QUOTE.start.test(line),
  make: (lines) => h("blockquote", {}, rendered(lines.map((line) => line.replace(/^ {0,3}> ?/, "")).join("\n"))),
};

const isTable = (lines, at) => lines[at].includes("|") && /^\s*\|?[\s:|-]*-[\s:|-]*$/.test(lines[at + 1] ?? "") && lines[at + 1].includes("|");

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const row = (line, tag) => h("tr", {}, ...cells(line).map((cell) => h(tag, {}, ...inline(cell))));
  const body = lines.slice(2).map((line) => row(line, "td"));
  return h("div", { class: "scrolls", tabindex: "0" }, h("table", {}, h("thead", {}, row(lines[0], "th")), h("tbody", {}, ...body)));
}

// Code first: nothing within it is marked.
function inline(text) {
  const marks = /(`+)([^`].*?)\1(?!`)|\*\*(\S(?:.*?\S)?)\*\*|(?<![\w*])[*_](?=\S)([^*_]+?)(?<=\S)[*_](?![\w*])|~~(\S(?:.*?\S)?)~~/;
  const parts = [];
  let rest = text;
  for (;;) {
    const found = rest.match(marks);
    if (!found) return [...parts, rest];
    const [whole, , code, bold, italic, struck] = found;
    parts.push(rest.slice(0, found.index));
    if (code !== undefined) parts.push(h("code", {}, code));
    else if (bold !== undefined) parts.push(h("strong", {}, ...inline(bold)));
    else if (italic !== undefined) parts.push(h("em", {}, ...inline(italic)));
    else parts.push(h("s", {}, ...inline(struck)));
    rest = rest.slice(found.index + whole.length);
  }
}

export function codeBlock(text, language) {
  const button = h("button", { type: "button", class: "quiet" }, icon("copy"), t("copy"));
  button.addEventListener("click", async () => {
    const done = await copy(text);
    button.lastChild.textContent = t(done ? "copied" : "notCopied");
    setTimeout(() => (button.lastChild.textContent = t("copy")), 2000);
  });
  const head = h("div", { class: "code-head" }, h("span", {}, language || t("code")), button);
  return h("figure", { class: "code" }, head, h("pre", { tabindex: "0" }, h("code", {}, text)));
}
