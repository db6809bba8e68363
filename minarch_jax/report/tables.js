// Tables that sort by a click on a column and show the rows one asks for.
// Without any script the page shows the same figures and tables.
const FEW = 6; // rows that need no filter

const sortable = (table) => {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const value = (row) => row.cells[column].dataset.key;
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return down ? -order : order;
      };
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    };
    head.tabIndex = 0;
    head.title = "sort";
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      sort();
    });
  });
};

// A row is shown if every word, or number compared as in params>1000, is true
// of it, and if it is selected where only those are wanted.
const asked = (text, names) =>
  text.toLowerCase().split(/\s+/).filter(Boolean).map((word) => {
    const found = word.match(/^([^<>=]+)(<=|>=|<|>|=)(.+)$/);
    const column = found ? names.findIndex((n) => n.startsWith(found[1])) : -1;
    if (column < 0) return (row) => row.textContent.toLowerCase().includes(word);
    const [sign, limit] = [found[2], found[3]];
    return (row) => {
      // As it is shown: in per cent where the column is, and before a bracket.
      const shown = row.cells[column].textContent.toLowerCase();
      const number = parseFloat(shown.replaceAll(",", "").replace("−", "-"));
      if (sign === "=") return shown === limit || number === +limit;
      const over = number - limit;
      return (over === 0 && sign[1] === "=") || (sign[0] === "<" ? over < 0 : over > 0);
    };
  });

const filterable = (table) => {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < FEW) return;
  const names = [...table.tHead.rows[0].cells].map((head) =>
    head.textContent.toLowerCase().replace(/\s+/g, "_"),
  );
  const box = document.createElement("label");
  box.className = "filter";
  const input = document.createElement("input");
  input.type = "search";
  input.placeholder = names.includes("params") ? "cnn params<9000" : "filter";
  const count = document.createElement("output");
  box.append("Filter ", input, " ", count);
  const filter = () => {
    const tests = asked(input.value, names);
    const marked = table.classList.contains("marked");
    for (const row of rows)
      row.hidden =
        !tests.every((test) => test(row)) ||
        (marked && !row.classList.contains("on"));
    const left = rows.filter((row) => !row.hidden).length;
    count.textContent =
      left < rows.length ? `${left} of ${rows.length} rows` : "";
  };
  input.addEventListener("input", filter);
  table.addEventListener("filter", filter);
  table.closest(".box").before(box);
};

// Where there is no room for columns of prose, each row becomes a paragraph.
const stackable = (table) => {
  table.classList.add("prose");
  const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent);
  for (const row of table.tBodies[0].rows)
    heads.forEach((head, column) => (row.cells[column].dataset.head = head));
};

for (const table of document.querySelectorAll("table:not(.pairs)")) {
  table.dataset.sortable = "";
  if (table.querySelector("td.long")) stackable(table);
  sortable(table);
  filterable(table);
}

const closed = () => [...document.querySelectorAll("details:not([open])")];
let opened = [];
addEventListener("beforeprint", () => {
  opened = closed();
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});
