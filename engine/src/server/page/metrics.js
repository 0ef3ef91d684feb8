// Prometheus text: name → samples with labels and a value.

export function parsed(text) {
	const samples = new Map();
	for (const [, name, labels = "", value] of text.matchAll(/^([\w:]+)(?:\{(.*)\})? (\S+)$/gm)) {
		const pairs = [...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, label, of]) => [label, of.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c))]);
		samples.set(name, [...(samples.get(name) ?? []), { labels: Object.fromEntries(pairs), value: Number(value) }]);
	}
	return samples;
}

// The sum of the samples with these labels; NaN if there is none.
export function sum(samples, name, labels = {}) {
	const has = (sample) => Object.entries(labels).every(([label, value]) => sample.labels[label] === value);
	const found = (samples.get(name) ?? []).filter(has);
	return found.length ? found.reduce((all, { value }) => all + value, 0) : NaN;
}
