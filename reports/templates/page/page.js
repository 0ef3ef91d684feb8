// Sorts a table by the column whose heading is pressed: numbers by size (with their unit), the
// rest by the alphabet.
"use strict";
const UNITS = { "초": 1000, s: 1000, ms: 1, KiB: 1024, MiB: 1024 ** 2, GiB: 1024 ** 3 };
function sizeOf(text) {
  const found = text.trim().match(/^([−+-]?)([\d,]+(?:\.\d+)?)\s*([A-Za-z초]*)/);
  if (!found) return null;
  const size = Number(found[2].replaceAll(",", "")) * (UNITS[found[3]] ?? 1);
  return found[1] === "−" || found[1] === "-" ? -size : size;
}
function sortBy(table, column, ascending) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => {
    const text = row.cells[column]?.textContent ?? "";
    return { row, text, size: sizeOf(text) };
  });
  rows.sort((a, b) => {
    if (a.size === null && b.size === null) return a.text.localeCompare(b.text);
    if (a.size === null) return 1;
    if (b.size === null) return -1;
    return a.size - b.size;
  });
  if (!ascending) rows.reverse();
  body.append(...rows.map((r) => r.row));
}
for (const table of document.querySelectorAll("table")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const ascending = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sortBy(table, column, ascending);
    });
  });
}
