// Prometheus text: name, labels, value.

const SAMPLE = /^([\w:]+)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const ESCAPED = { "\\n": "\n" };

export class Metrics {
  constructor(text) {
    this.samples = new Map();
    for (const line of text.split("\n")) {
      const found = line.startsWith("#") ? null : line.match(SAMPLE);
      if (!found) continue;
      const labels = {};
      for (const [, name, value] of (found[2] ?? "").matchAll(LABEL)) {
        labels[name] = value.replace(/\\(.)/g, (whole, c) => ESCAPED[whole] ?? c);
      }
      const of = this.samples.get(found[1]) ?? [];
      of.push({ labels, value: Number(found[3]) });
      this.samples.set(found[1], of);
    }
  }

  // The sum of the samples with these labels; null if there is none.
  get(name, labels = {}) {
    const has = (sample) => Object.entries(labels).every(([label, value]) => sample.labels[label] === value);
    const found = (this.samples.get(name) ?? []).filter(has);
    return found.length ? found.reduce((sum, sample) => sum + sample.value, 0) : null;
  }
}
