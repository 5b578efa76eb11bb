// Tables of examples and of pairs of runs: those of the chosen run and split, with small pictures if there are any.

/** A table of rows: {root, draw(), move()}. */
function rowTable(plot) {
  const caption = element("caption");
  const head = element("tr");
  const body = element("tbody");
  const copied = copyButton(plot.title, () => [plot.columns, ...(chosenTable(plot)?.cells ?? [])]);
  const root = element("div", { class: "card wide", "data-key": plot.key },
    element("h4", {}, plot.title), element("p", { class: "meaning" }, plot.meaning),
    element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": plot.title },
      element("table", { class: "classes rows" }, caption, element("thead", {}, head), body)),
    element("div", { class: "tools" }, copied));
  let drawnTable = null;

  function move() {
    const table = chosenTable(plot);
    if (table === drawnTable) return;
    drawnTable = table;
    const columns = plot.columns.map((label, i) => [label, i]).filter(([, i]) => table?.cells.some((row) => row[i] !== ""));
    caption.textContent = table ? [table.run, table.split, table.summary].filter(Boolean).join(" · ") : `${state.run}: none`;
    head.replaceChildren(...(table?.pictures ? [element("th", { scope: "col" }, "picture")] : []),
      ...columns.map(([label]) => element("th", { scope: "col" }, label)));
    body.replaceChildren(...(table?.cells ?? []).map((row, number) => element("tr", {},
      table.pictures ? element("td", {}, picture(table, number)) : null,
      columns.map(([, i]) => element("td", {}, typeof row[i] === "number" ? format(row[i]) : shortened(row[i], 80))))));
  }
  return { root, draw: () => { drawnTable = undefined; move(); }, move };
}

/** The rows of the chosen run and split, of the run's other split where it has none, or those of all runs. */
function chosenTable(plot) {
  const tables = plot.tables.filter((table) => table.run === state.run || !table.run);
  return tables.find((table) => table.split === state.split) ?? tables[0];
}

/** A picture of a row, drawn from its bytes: three for each pixel. */
function picture(table, number) {
  const [, height, width] = table.shape;
  const canvas = element("canvas", { width, height, class: "picture", role: "img", "aria-label": `picture of row ${number + 1}` });
  const image = canvas.getContext("2d").createImageData(width, height);
  const bytes = numbers(table.pictures).subarray(number * height * width * 3);
  for (let pixel = 0; pixel < height * width; pixel += 1) {
    for (let channel = 0; channel < 3; channel += 1) image.data[4 * pixel + channel] = bytes[3 * pixel + channel];
    image.data[4 * pixel + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}
