// Elements without a framework: every text becomes a text node, never HTML.

export const h = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);

export const svg = (tag, attributes, ...children) => filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

// Attributes: `on…` are listeners; false, null and undefined leave one out. So do children.
function filled(element, attributes, children) {
	for (const [name, value] of Object.entries(attributes ?? {})) {
		if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
		else if (name === "value") element.value = value;
		else if (value !== false && value !== undefined && value !== null) element.setAttribute(name, value === true ? "" : value);
	}
	element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
	return element;
}

// With a symbol of index.html.
export const iconButton = (name, label, onclick) =>
	h("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick }, svg("svg", { "aria-hidden": "true" }, svg("use", { href: `#i-${name}` })));

export const button = (text, onclick, attributes) => h("button", { type: "button", onclick, ...attributes }, text);

export const byId = (id) => document.getElementById(id);

// Says something for a moment, to screen readers, too.
let timer;
export function say(text) {
	byId("toast").textContent = text;
	clearTimeout(timer);
	timer = setTimeout(() => (byId("toast").textContent = ""), 4000);
}

export async function copy(text) {
	// Without TLS, browsers have no clipboard on other hosts than localhost.
	try {
		await navigator.clipboard.writeText(text);
		return "copied";
	} catch {
		return "notCopied";
	}
}
