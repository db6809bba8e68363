// One network, opened beside the page: seeds, curves, compression, cost.
const SVG = "http://www.w3.org/2000/svg";
const build = (name, attributes = {}, ...children) => {
  const drawn = ["svg", "path", "text", "line"].includes(name);
  const element = drawn
    ? document.createElementNS(SVG, name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes))
    element.setAttribute(key, value);
  element.append(...children);
  return element;
};
const percent = (value, digits = 1) =>
  value === null ? "–" : `${(100 * value).toFixed(digits)}\u00a0%`;
const counted = (value) => (value ?? "–").toLocaleString("en");
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
const row = (cells, name = "td") =>
  build("tr", {}, ...cells.map((cell) => build(name, name === "th" ? { scope: "col" } : {}, cell)));
const grid = (heads, rows) =>
  build(
    "div",
    { class: "wide" },
    build(
      "table",
      {},
      build("thead", {}, row(heads, "th")),
      build("tbody", {}, ...rows),
    ),
  );

const panel = build("aside", {
  id: "network",
  role: "dialog",
  "aria-labelledby": "network-name",
  tabindex: "-1",
  hidden: "",
});
document.body.append(panel);

const WIDTH = 400;
const HEIGHT = 150;
const LEFT = 44;
const BOTTOM = 22;
// A chart of one quantity by epoch; a line for each seed and split.
const chart = (title, curves, columns, logarithmic) => {
  const of = (value) => (logarithmic ? Math.log10(Math.max(value, 1e-6)) : value);
  const values = curves
    .flatMap((curve) => columns.flatMap((column) => curve[column]))
    .filter((value) => value !== null)
    .map(of);
  if (!values.length) return "";
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const last = DATA.epochs.at(-1);
  const first = DATA.epochs[0];
  const x = (epoch) =>
    LEFT + ((epoch - first) / Math.max(last - first, 1)) * (WIDTH - LEFT - 8);
  const y = (value) =>
    8 + (1 - (value - low) / (high - low || 1)) * (HEIGHT - BOTTOM - 16);
  const written = (value) =>
    logarithmic ? (10 ** value).toPrecision(2) : `${(100 * value).toFixed(0)}\u00a0%`;
  const line = (curve, column, kind) => {
    let pen = "M";
    const path = curve[column]
      .map((value, i) => {
        if (value === null) {
          pen = "M";
          return "";
        }
        const step = `${pen}${x(DATA.epochs[i]).toFixed(1)},${y(of(value)).toFixed(1)}`;
        pen = "L";
        return step;
      })
      .join("");
    return build("path", { d: path, class: kind }, build("title", {}, `${curve[0]}, ${kind}`));
  };
  const ends = curves.map((curve) => curve[columns[1]].at(-1)).filter((v) => v !== null);
  const told = ends.length
    ? `${title}: validation ends between ${written(of(Math.min(...ends)))} and ${written(of(Math.max(...ends)))}`
    : title;
  return build(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": told, class: "chart" },
    ...[low, (low + high) / 2, high].flatMap((value) => [
      build("line", { x1: LEFT, x2: WIDTH - 8, y1: y(value), y2: y(value) }),
      build("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, written(value)),
    ]),
    ...[first, last].map((epoch, i) =>
      build(
        "text",
        { x: x(epoch), y: HEIGHT - 6, "text-anchor": i ? "end" : "start" },
        i ? `epoch ${epoch}` : `${epoch}`,
      ),
    ),
    ...curves.flatMap((curve) => [
      line(curve, columns[0], "training"),
      line(curve, columns[1], "validation"),
    ]),
  );
};

const seedsOf = (network) => {
  const accuracies = network.seeds.map((seed) => seed[2]).filter((v) => v !== null);
  const rows = network.seeds.map(([seed, train, val, test, diverged]) =>
    row([`${seed}`, percent(train), percent(val), percent(test), diverged ? "diverged" : ""]),
  );
  const spread = accuracies.length
    ? ` Validation ${percent(Math.min(...accuracies))} to ${percent(Math.max(...accuracies))}, mean ${percent(mean(accuracies))}.`
    : "";
  return [
    build("h3", {}, "Seeds"),
    build("p", {}, `${rows.length} trained alike but for initial values, order and fold of the data.${spread}`),
    grid(["seed", "training", "validation", "test", ""], rows),
  ];
};

const curvesOf = (network) =>
  network.curves.length
    ? [
        build("h3", {}, "Learning curves"),
        build(
          "p",
          { class: "legend" },
          build("span", { class: "validation" }, "validation"),
          " ",
          build("span", { class: "training" }, "training"),
          network.curves[0][0].startsWith("seed")
          ? `; a line for each of ${network.curves.length} seeds`
          : "; least, median and greatest over seeds",
        ),
        chart("Accuracy", network.curves, [1, 2], false),
        build("p", { class: "axis" }, "accuracy"),
        chart("Loss", network.curves, [3, 4], true),
        build("p", { class: "axis" }, "cross-entropy (nats), logarithmic"),
      ]
    : [];

// [pruning, rounding, sparsity, bits, accuracy, bytes]
const cutIn = ([pruning, , sparsity]) =>
  sparsity ? `${Math.round(100 * sparsity)} % pruned (${DATA.prunings[pruning]})` : "not pruned";
const rounded = ([, rounding, , bits]) =>
  bits === 32 ? "32" : `${bits} (${DATA.roundings[rounding]})`;
const asTrained = (rows) => {
  const whole = rows.filter((r) => r[2] === 0 && r[3] === 32);
  const untouched = (r) => DATA.prunings[r[0]].startsWith("oneshot");
  return whole.find(untouched) || whole[0];
};

const costOf = (network) => {
  const rows = network.compressed;
  const whole = asTrained(rows);
  if (!whole) return [];
  const cheapest = (lost) =>
    rows
      .filter((r) => r[5] > 0 && r[4] !== null && whole[4] - r[4] <= lost + 1e-9)
      .sort((a, b) => a[5] - b[5] || b[4] - a[4])[0];
  const line = (name, r) => row([name, cutIn(r), rounded(r), counted(r[5]), percent(r[4])]);
  const lost = [0, 0.005, 0.01, 0.02, 0.05]
    .map((limit) => [limit ? `up to ${100 * limit} points` : "nothing", cheapest(limit)])
    .filter(([, r], i, all) => r && r !== all[i - 1]?.[1]);
  return [
    build("h3", {}, "What it costs in bytes"),
    build(
      "p",
      {},
      `As trained ${counted(whole[5])} bytes. The fewest bytes for what one is ready to lose, chosen on the validation images whose accuracy is shown, so a little optimistic.`,
    ),
    grid(
      ["lost", "weights", "bits", "bytes", "accuracy"],
      [line("as trained", whole), ...lost.map(([name, r]) => line(name, r))],
    ),
  ];
};

const choice = (text, options, act) => {
  const list = build("select", {});
  for (const [value, name] of options) list.append(build("option", { value }, name));
  list.addEventListener("change", act);
  return [build("label", {}, `${text} `, list), list];
};

const compressionOf = (network) => {
  const rows = network.compressed;
  const whole = asTrained(rows);
  if (!rows.length) return [];
  const named = (column, names, keep = () => true) =>
    [...new Set(rows.filter(keep).map((r) => r[column]))].map((i) => [i, names[i]]);
  const map = build("div", {});
  const draw = () => {
    const [p, q] = [+pruning.value, +rounding.value];
    const own = rows.filter((r) => r[0] === p && (r[1] === q || r[3] === 32));
    const bits = [...new Set(own.map((r) => r[3]))].sort((a, b) => b - a);
    const sparsities = [...new Set(own.map((r) => r[2]))].sort((a, b) => a - b);
    const cell = (sparsity, b) => {
      const found = own.find((r) => r[2] === sparsity && r[3] === b);
      if (!found) return build("td", {}, "");
      const lost = whole ? Math.max(0, whole[4] - found[4]) : 0;
      const shade = Math.round(Math.min(1, Math.log1p(100 * lost) / Math.log(60)) * 70);
      return build(
        "td",
        { class: "n", style: `--shade:${shade}%` },
        percent(found[4]),
        build("small", {}, `${counted(found[5])} B`),
      );
    };
    map.replaceChildren(
      grid(
        ["pruned", ...bits.map((b) => `${b} bits`)],
        sparsities.map((s) =>
          build("tr", {}, build("th", { scope: "row" }, `${Math.round(100 * s)} %`), ...bits.map((b) => cell(s, b))),
        ),
      ),
    );
  };
  const fewer = (r) => r[3] < 32;
  const kinds = named(1, DATA.roundings, fewer);
  const [first, pruning] = choice("Pruning", named(0, DATA.prunings), draw);
  const [second, rounding] = choice("Rounding", kinds.length ? kinds : named(1, DATA.roundings), draw);
  draw();
  map.className = "map";
  return [
    build("h3", {}, "Compression"),
    build("p", {}, "Validation accuracy, mean over seeds, and bytes; the stronger the colour, the more is lost."),
    build("p", { class: "choices" }, first, " ", second),
    map,
  ];
};

let before = null;
const render = (key) => {
  const network = DATA.networks[key];
  const { architecture, dataset, family, depth, params, macs, steps, label } = network;
  const close = build("button", { type: "button", class: "close", "aria-label": "close" }, "×");
  close.addEventListener("click", hide);
  panel.replaceChildren(
    close,
    build("h2", { id: "network-name" }, architecture),
    build(
      "p",
      {},
      `${label} · ${family}, depth ${depth} · ${counted(params)} parameters · ${counted(macs)} MACs · ${counted(steps)} steps · ${dataset}`,
    ),
    ...costOf(network),
    ...seedsOf(network),
    ...curvesOf(network),
    ...compressionOf(network),
  );
  if (panel.hidden) before = document.activeElement;
  panel.hidden = false;
  document.body.classList.add("opened");
  panel.scrollTop = 0;
  panel.focus({ preventScroll: true });
  if (!selected.has(key)) select([key]);
};
const show = (key) => {
  if (location.hash === address(key)) render(key);
  else location.hash = address(key);
};
const conceal = () => {
  if (panel.hidden) return;
  panel.hidden = true;
  document.body.classList.remove("opened");
  before?.focus?.({ preventScroll: true });
};
const hide = () => {
  conceal();
  if (location.hash.startsWith("#network/"))
    history.replaceState(null, "", location.pathname + location.search);
};
const follow = () => {
  const [, key] = location.hash.match(/^#network\/(.+)$/) || [];
  const wanted = key && decodeURIComponent(key);
  if (wanted in DATA.networks) render(wanted);
  else conceal();
};
addEventListener("hashchange", follow);
follow();

if (Object.keys(DATA.networks).length) {
  const hint = build(
    "p",
    { class: "note" },
    "A click on a network, in a figure, a table or here, opens it: its seeds, curves, compression and bytes. Dragging over a figure selects several, in all figures and tables; Esc lets go.",
  );
  document.querySelector(".answer").after(hint);
}
