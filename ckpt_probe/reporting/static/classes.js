// The table of classes: sorted by any column, filtered by name, copied as CSV; it follows the slider.

/** A table of classes: {root, draw(), move()}. */
function classTable(plot) {
  const order = { column: -1, down: false };
  let rows = [];
  const filter = element("input", { type: "search", id: "class-filter", autocomplete: "off", oninput: () => fill() });
  const count = element("span", { class: "count", role: "status" });
  const headings = ["class", ...plot.columns.map((column) => column.label), "nearest means"];
  const meanings = ["the class", ...plot.columns.map((column) => column.meaning), "class means that its samples are nearest to: how many, most first"];
  const heads = headings.map((label, i) => element("th", { scope: "col", title: meanings[i] },
    element("button", { type: "button", onclick: () => sort(i - 1) }, label, element("span", { "aria-hidden": "true", class: "arrow" }))));
  const body = element("tbody");
  const caption = element("caption");
  const table = element("table", { class: "classes" }, caption, element("thead", {}, element("tr", {}, heads)), body);
  const copied = copyButton("the table of classes", () => [headings, ...visibleRows().map((row) => [row.label, ...row.values, row.nearest])]);
  const root = element("div", { class: "card wide", "data-key": plot.key },
    element("div", { class: "filter" }, element("label", { for: "class-filter" }, "Filter classes "), filter, count, copied),
    element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of classes" }, table));

  function sort(column) {
    order.down = order.column === column ? !order.down : column >= 0;
    order.column = column;
    heads.forEach((head, i) => {
      const isSorted = i - 1 === column;
      head.setAttribute("aria-sort", isSorted ? (order.down ? "descending" : "ascending") : "none");
      head.querySelector(".arrow").textContent = isSorted ? (order.down ? " ▼" : " ▲") : "";
    });
    fill();
    announce(`sorted by ${headings[column + 1]}, ${order.down ? "largest first" : "smallest first"}`);
  }

  function visibleRows() {
    const wanted = filter.value.trim().toLowerCase();
    const matching = rows.filter((row) => row.label.toLowerCase().includes(wanted));
    const value = (row) => (order.column === plot.columns.length ? row.nearest : row.values[order.column]);
    const ordered = order.column < 0 ? matching : [...matching].sort((a, b) => {
      const [first, second] = [value(a), value(b)];
      // Rows without a number are last in either order.
      if (typeof first === "number" && (Number.isNaN(first) || Number.isNaN(second))) return Number.isNaN(first) - Number.isNaN(second);
      return (order.down ? -1 : 1) * d3.ascending(first, second);
    });
    return order.column < 0 && order.down ? ordered.reverse() : ordered;
  }

  function fill() {
    const visible = visibleRows();
    while (body.rows.length > visible.length) body.deleteRow(-1);
    visible.forEach((row, i) => {
      const line = body.rows[i] ?? body.appendChild(element("tr", {}, element("th", { scope: "row" }), headings.slice(1).map(() => element("td"))));
      line.cells[0].textContent = row.label;
      row.values.forEach((value, j) => { line.cells[j + 1].textContent = formatWithError(value, row.errors[j]); });
      line.cells[headings.length - 1].textContent = row.nearest;
    });
    count.textContent = `${visible.length} of ${rows.length} classes`;
  }

  function move() {
    const frame = frameOf(plot);
    const moment = frame ? momentOf(frame) : -1;
    const width = frame ? frame.shape.at(-1) : 0;
    const labels = frame ? plot.labels[frame.run] : [];
    const values = moment < 0 ? [] : atMoment(frame, moment);
    const nearest = moment < 0 ? [] : plot.nearest[plot.frames.indexOf(frame)][moment];
    rows = labels.map((label, c) => ({ label, nearest: nearest[c] ?? "", values: plot.columns.map((_, j) => values[c * width + j] ?? NaN), errors: plot.columns.map((column) => (column.error < 0 ? NaN : values[c * width + column.error])) }));
    caption.textContent = frame ? describeFrame(frame, moment) : `${state.run}: no classes`;
    fill();
  }
  return { root, draw: move, move };
}
