// Heat maps of a number by layer and checkpoint: drawn once; the slider frames its checkpoint's column.

const MOST_CELLS_WRITTEN = 14;

/** A figure of a heat map: {root, draw(width), move()}. */
function layerMap(plot) {
  const copied = copyButton(plot.title, () => layerRows(plot));
  const card = cardOf(plot, [copied], plot.across ? "" : plot.key.replace(/^layers-/, ""));

  function update(frame, drawn) {
    const layers = plot.layers[frame.run];
    const columns = plot.columns[frame.run];
    if (plot.across) {
      card.read([{ name: [data.tracks.length > 1 ? frame.run : "", frame.split].filter(Boolean).join(" · "), value: "" }]);
      card.describe(`${plot.title} of ${layers.length} ${plot.rows} by ${columns.length} columns (${plot.across}), ${frame.split}; ` +
        `from ${format(d3.min(drawn.values))} to ${format(d3.max(drawn.values))}`);
      return;
    }
    const column = Math.min(Math.max(checkpointAt(frame.run), 0), columns.length - 1);
    drawn.mark(column);
    const at = layers.map((_, i) => drawn.values[i * columns.length + column]);
    card.read([
      { name: [data.tracks.length > 1 ? frame.run : "", `at ${columns[column]}`, frame.split].filter(Boolean).join(" · "), value: "" },
      { name: layers[0], value: format(at[0]) },
      { name: layers.at(-1), value: format(at.at(-1)) },
    ]);
    card.describe(`${plot.title} of ${layers.length} layers at ${columns.length} checkpoints, ${frame.split}; ` +
      `from ${format(d3.min(drawn.values))} to ${format(d3.max(drawn.values))}. At ${columns[column]}: ` +
      layers.map((layer, i) => `${shortened(layer, 30)} ${format(at[i])}`).join(", "));
  }
  return framedPart(plot, card, (frame, width) => drawLayers(plot, frame, Math.min(width, 620)), update);
}

function drawLayers(plot, frame, width) {
  const layers = plot.layers[frame.run];
  const columns = plot.columns[frame.run];
  const values = numbers(frame.values);
  const margin = Math.min(120, 12 + 6.2 * d3.max(layers, (label) => shortened(label, 18).length));
  const wide = (width - margin - 8) / columns.length;
  const high = Math.max(14, Math.min(26, 320 / layers.length));
  const height = layers.length * high;
  const finite = values.filter((value) => Number.isFinite(value));
  const scale = (plot.log ? d3.scaleLog : d3.scaleLinear)().domain(d3.extent(finite)).range([0, 1]);
  const ends = [format(d3.min(finite)), `${format(d3.max(finite))}${plot.log ? " (log)" : ""}`];
  const shade = (value) => (finite.length && scale.domain()[0] < scale.domain()[1] ? scale(value) : 0.5);
  const svg = svgElement("svg", { width, height: height + 62, viewBox: `0 0 ${width} ${height + 62}`, class: "matrix" });
  const cells = svgElement("g", { transform: `translate(${margin},0)`, "aria-label": "cells" });
  const written = columns.length <= MOST_CELLS_WRITTEN && wide >= 30;
  layers.forEach((layer, i) => {
    const name = svgElement("text", { x: margin - 6, y: (i + 0.5) * high, dy: "0.34em", "text-anchor": "end", class: "name" });
    name.textContent = shortened(layer, 18);
    svg.append(name);
    columns.forEach((_, j) => {
      const value = values[i * columns.length + j];
      const missing = !Number.isFinite(value);
      cells.append(svgElement("rect", {
        x: j * wide, y: i * high, width: wide - (wide > 6 ? 1 : 0), height: high - 1,
        fill: missing ? "none" : d3.interpolateCividis(shade(value)), stroke: missing ? "var(--rule)" : "none",
      }));
      if (!written) return;
      const text = svgElement("text", { x: (j + 0.5) * wide, y: (i + 0.5) * high, dy: "0.34em", "text-anchor": "middle", "font-size": 9,
        fill: missing ? "var(--soft)" : shade(value) < 0.55 ? "#fff" : "#1b1f24" });
      text.textContent = missing ? "–" : tick(Number(value.toPrecision(2)));
      cells.append(text);
    });
  });
  const every = Math.ceil((8 + 6.2 * d3.max(columns, (column) => shortened(column, 10).length)) / wide);
  columns.forEach((column, j) => {
    if (j % every) return;
    const below = svgElement("text", { x: margin + (j + 0.5) * wide, y: height + 13, "text-anchor": "middle", class: "name" });
    below.textContent = shortened(column, 10);
    svg.append(below);
  });
  const frameOfColumn = svgElement("rect", { y: -0.5, width: wide, height: height + 1, fill: "none", stroke: "var(--ink)", "stroke-width": 2 });
  if (!plot.across) cells.append(frameOfColumn);
  svg.append(cells, colourKey(margin, height + 26, width - margin - 8, d3.interpolateCividis, ends));
  return {
    root: svg,
    values,
    mark(column) { frameOfColumn.setAttribute("x", column * wide); },
    over(event) {
      const box = svg.getBoundingClientRect();
      const x = Math.floor((((event.clientX - box.left) / box.width) * width - margin) / wide);
      const y = Math.floor((((event.clientY - box.top) / box.width) * width) / high);
      if (x < 0 || y < 0 || x >= columns.length || y >= layers.length) return "";
      return `${shortened(layers[y], 40)} ${plot.across ? "·" : "at"} ${columns[x]}: ${format(values[y * columns.length + x])}`;
    },
  };
}

function layerRows(plot) {
  const frame = frameOf(plot);
  const columns = plot.columns[frame.run];
  const values = numbers(frame.values);
  return [[plot.across ? plot.rows : "layer", ...columns], ...plot.layers[frame.run].map((layer, i) => [layer, ...columns.map((_, j) => values[i * columns.length + j])])];
}
