// Without this script the page shows the same figures and tables.
"use strict";
for (const table of document.querySelectorAll("table:not(.pairs)")) {
  table.dataset.sortable = "";
  table.querySelectorAll("th").forEach((head, column) => {
    const value = (row) => row.cells[column].dataset.key;
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const body = table.tBodies[0];
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return down ? -order : order;
      };
      for (const other of table.querySelectorAll("th"))
        other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...[...body.rows].sort(compare));
    };
    head.tabIndex = 0;
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => {
      if (event.key === "Enter") sort();
    });
  });
}
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);
document.addEventListener("pointermove", (event) => {
  const mark = event.target.closest(
    "[aria-roledescription=point], [aria-roledescription=bar]",
  );
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.getAttribute("aria-label");
  const right = event.clientX > innerWidth / 2;
  tip.style.left = right ? "" : `${event.clientX + 14}px`;
  tip.style.right = right ? `${innerWidth - event.clientX + 14}px` : "";
  tip.style.top = `${event.clientY + 14}px`;
});
document.addEventListener("toggle", () => (tip.hidden = true), true);
const closed = () => [...document.querySelectorAll("details:not([open])")];
let opened = [];
addEventListener("beforeprint", () => {
  opened = closed();
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});
