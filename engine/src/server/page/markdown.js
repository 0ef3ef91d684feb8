// A small part of Markdown as elements. A model's text only ever becomes text nodes. Links and
// images stay text: an answer makes the browser ask no other server.

import { button, copy, h } from "./elements.js";
import { t } from "./words.js";

const FENCE = /^\s*(```+|~~~+)\s*(\S*)/;
const ITEM = /^\s*(?:[-*+]|(\d+)[.)])\s+(.*)/;
const HEADING = /^(#{1,6})\s+(.*)/;
const QUOTE = /^\s*>\s?(.*)/;
const ROW = /^\s*\|(.*)\|\s*$/;

export function rendered(text) {
	const out = [];
	const lines = text.split("\n");
	// The lines from here that a form goes on with.
	const taken = (form) => {
		const n = lines.findIndex((line) => !form.test(line));
		return lines.splice(0, n < 0 ? lines.length : n).map((line) => line.match(form));
	};
	while (lines.length) {
		const [line] = lines;
		const fence = line.match(FENCE);
		const heading = line.match(HEADING);
		if (fence) {
			const end = lines.findIndex((one, i) => i > 0 && one.trim().startsWith(fence[1]));
			out.push(codeBlock(lines.splice(0, end < 0 ? lines.length : end + 1).slice(1, end < 0 ? undefined : -1).join("\n"), fence[2]));
		} else if (heading) {
			// The page itself has the first two levels.
			out.push(h(`h${Math.min(6, heading[1].length + 2)}`, {}, inline(heading[2])));
			lines.shift();
		} else if (!line.trim()) {
			lines.shift();
		} else if (ITEM.test(line)) {
			const items = taken(ITEM);
			const isOrdered = items[0][1] !== undefined;
			out.push(h(isOrdered ? "ol" : "ul", { start: items[0][1] }, ...items.map((item) => h("li", {}, inline(item[2])))));
		} else if (QUOTE.test(line)) {
			out.push(h("blockquote", {}, ...rendered(taken(QUOTE).map((one) => one[1]).join("\n"))));
		} else if (ROW.test(line) && ROW.test(lines[1] ?? "")) {
			const rows = taken(ROW).map((one) => one[1].split("|")).filter((cells) => !cells.every((cell) => /^\s*:?-+:?\s*$/.test(cell)));
			out.push(h("div", { class: "scrolls", tabindex: "0" }, h("table", {}, ...rows.map((cells, i) => h("tr", {}, ...cells.map((cell) => h(i ? "td" : "th", {}, inline(cell.trim()))))))));
		} else {
			const end = lines.findIndex((one, i) => i > 0 && (!one.trim() || [FENCE, ITEM, HEADING, QUOTE].some((form) => form.test(one))));
			const part = lines.splice(0, end < 0 ? lines.length : end);
			out.push(h("p", {}, ...part.flatMap((one, i) => [i ? h("br") : null, inline(one)])));
		}
	}
	return out.flat();
}

// Code first: nothing within it is marked.
function inline(text) {
	const found = text.match(/(`+)(.+?)\1(?!`)|\*\*(\S.*?)\*\*|(?<![\w*])\*(?=\S)([^*]+)\*(?![\w*])/);
	if (!found) return [text];
	const [whole, , code, bold, italic] = found;
	const element = code ? h("code", {}, code) : h(bold ? "strong" : "em", {}, inline(bold ?? italic));
	return [text.slice(0, found.index), element, ...inline(text.slice(found.index + whole.length))];
}

export function codeBlock(text, language) {
	const copying = button(t("copy"), async () => (copying.textContent = t(await copy(text))), { class: "quiet" });
	return h("figure", { class: "code" }, h("div", { class: "row" }, h("span", { class: "grows" }, language), copying), h("pre", { tabindex: "0" }, h("code", {}, text)));
}
