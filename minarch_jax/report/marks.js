// Marks of figures: named when pointed at, opened by a click, selected by
// dragging over them; what is selected in one figure is in all, and in tables.
const DATA = JSON.parse(document.getElementById("data").textContent);
const known = (element) => element.dataset.network in DATA.networks;
const marks = [...document.querySelectorAll("svg [data-network]")].filter(known);
const described =
  "[aria-roledescription=point], [aria-roledescription=bar]";

const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);
const tell = (mark, x, y) => {
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.getAttribute("aria-label");
  const right = x > innerWidth / 2;
  tip.style.left = right ? "" : `${x + 14}px`;
  tip.style.right = right ? `${innerWidth - x + 14}px` : "";
  tip.style.top = `${Math.min(y + 14, innerHeight - 60)}px`;
};
const near = (mark) => {
  const box = mark.getBoundingClientRect();
  tell(mark, box.right, box.bottom);
};
document.addEventListener("pointermove", (event) =>
  tell(event.target.closest(described), event.clientX, event.clientY),
);
document.addEventListener("toggle", () => (tip.hidden = true), true);
addEventListener("scroll", () => (tip.hidden = true), { passive: true });

// One stop of the Tab key for each figure; arrow keys go on from there.
for (const figure of document.querySelectorAll("figure")) {
  const own = marks.filter((mark) => figure.contains(mark));
  own.forEach((mark, i) => {
    mark.tabIndex = i ? -1 : 0;
    mark.setAttribute("role", "button");
    mark.addEventListener("focus", () => near(mark));
    mark.addEventListener("blur", () => (tip.hidden = true));
    mark.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
      const step = steps[event.key];
      if (event.key === "Enter" || event.key === " ") show(mark.dataset.network);
      else if (step) own[(i + step + own.length) % own.length].focus();
      else return;
      event.preventDefault();
    });
  });
}

// The names of networks become links to what is known of them.
const address = (key) => `#network/${encodeURIComponent(key)}`;
const link = (key, text) => {
  const anchor = document.createElement("a");
  anchor.href = address(key);
  anchor.className = "network";
  anchor.textContent = text;
  return anchor;
};
for (const cell of document.querySelectorAll("td[data-network]"))
  if (known(cell)) cell.replaceChildren(link(cell.dataset.network, cell.textContent));
for (const line of document.querySelectorAll(".answer [data-dataset] dd"))
  for (const part of [...line.childNodes].filter((node) => node.nodeType === 3))
    part.replaceWith(
      ...part.data.split(/([a-z]+:[\w-]+(?:\.\w[\w-]*)*)/).map((text) => {
        const key = `${line.parentNode.dataset.dataset} ${text}`;
        return key in DATA.networks ? link(key, text) : text;
      }),
    );

let selected = new Set();
const bar = document.createElement("div");
bar.id = "selection";
bar.setAttribute("role", "status");
bar.hidden = true;
document.body.append(bar);
let only = false;
const button = (text, act) => {
  const element = document.createElement("button");
  element.type = "button";
  element.textContent = text;
  element.addEventListener("click", act);
  return element;
};
const SHOWN = 6; // names in the bar

const select = (keys) => {
  selected = new Set([...keys].filter((key) => key in DATA.networks));
  if (!selected.size) only = false;
  document.body.classList.toggle("selecting", selected.size > 0);
  for (const mark of marks)
    mark.classList.toggle("on", selected.has(mark.dataset.network));
  const tables = new Set();
  for (const cell of document.querySelectorAll("td[data-network]")) {
    const on = selected.has(cell.dataset.network);
    cell.parentNode.classList.toggle("on", on);
    tables.add(cell.closest("table"));
  }
  for (const table of tables) {
    table.classList.toggle("marked", only);
    table.dispatchEvent(new Event("filter"));
  }
  const names = [...selected].slice(0, SHOWN).map((key) => {
    const { architecture } = DATA.networks[key];
    return link(key, architecture);
  });
  const more = selected.size - names.length;
  bar.hidden = !selected.size;
  bar.replaceChildren(
    `${selected.size} selected: `,
    ...names.flatMap((name) => [name, " "]),
    more > 0 ? `and ${more} more ` : "",
    button(only ? "All rows" : "Only these in tables", () => {
      only = !only;
      select(selected);
    }),
    button("Clear", () => {
      select([]);
      hide();
    }),
  );
};
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (!panel.hidden) hide();
  else select([]);
});

const frame = document.createElement("div");
frame.id = "frame";
frame.hidden = true;
document.body.append(frame);
const within = (mark, left, top, right, bottom) => {
  const box = mark.getBoundingClientRect();
  const [x, y] = [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
  return x >= left && x <= right && y >= top && y <= bottom;
};
for (const svg of new Set(marks.map((mark) => mark.closest("figure svg")))) {
  const own = marks.filter((mark) => svg.contains(mark));
  let start = null;
  svg.classList.add("live");
  svg.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse" && event.button === 0)
      start = [event.clientX, event.clientY];
  });
  const corners = (event) => [
    Math.min(start[0], event.clientX),
    Math.min(start[1], event.clientY),
    Math.max(start[0], event.clientX),
    Math.max(start[1], event.clientY),
  ];
  const far = ([left, top, right, bottom]) => right - left + bottom - top > 6;
  addEventListener("pointermove", (event) => {
    if (!start) return;
    const [left, top, right, bottom] = corners(event);
    frame.hidden = !far([left, top, right, bottom]);
    frame.style.cssText = `left:${left}px;top:${top}px;width:${right - left}px;height:${bottom - top}px`;
  });
  addEventListener("pointerup", (event) => {
    if (!start) return;
    const box = corners(event);
    start = null;
    frame.hidden = true;
    if (!far(box)) return;
    const inside = own.filter((mark) => within(mark, ...box));
    const before = event.shiftKey ? selected : [];
    select([...before, ...inside.map((mark) => mark.dataset.network)]);
  });
  svg.addEventListener("click", (event) => {
    const mark = event.target.closest("[data-network]");
    if (!mark || !known(mark)) return;
    const key = mark.dataset.network;
    if (event.shiftKey) select([...selected, key]);
    else show(key);
  });
}
