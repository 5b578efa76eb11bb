// The loss over a plane of weights: filled contours, levels evenly spaced in the logarithm, checkpoints in it.

/** A contour map: {root, draw(width), move()}. */
function contourPlot(plot) {
  const card = cardOf(plot, [copyButton(`loss over the plane, ${plot.title}`, () => planeRows(plot))]);
  const values = Float64Array.from(numbers(plot.values));
  function draw(width) {
    const wide = Math.min(width, 520);
    card.show(drawPlane(plot, values, wide), planeSummary(plot, values));
    const without = values.filter(Number.isNaN).length;
    card.warn(without && plot.unit ? [`${without} of ${values.length} points have no loss, and are left blank`] : []);
  }
  return { root: card.root, draw, move() {} };
}

function drawPlane(plot, values, width) {
  const [columns, rows] = [plot.xs.length, plot.ys.length];
  const [left, right, low, high] = [plot.xs[0], plot.xs.at(-1), plot.ys[0], plot.ys.at(-1)];
  const [stepX, stepY] = [(right - left) / (columns - 1), (high - low) / (rows - 1)];
  const ratio = (high - low) / (right - left);
  const inner = width - 64;
  const height = Math.min(Math.max(inner * (ratio > 0.25 && ratio < 4 ? ratio : 0.8), 160), 520) + 48;
  const { levels } = plot;
  const svg = Plot.plot({
    width, height, marginLeft: 50, marginRight: 14, marginBottom: 36, marginTop: 12,
    style: { background: "none", fontSize: "11px" },
    x: { domain: [left, right], label: axisLabel(plot.x), labelAnchor: "center", labelArrow: "none", tickFormat: tick, ticks: 5 },
    y: { domain: [low, high], label: null, tickFormat: tick, ticks: 5 },
    color: { type: "log", scheme: "viridis", domain: levels.length ? [levels[0], levels.at(-1)] : [1, 10] },
    marks: [
      levels.length ? Plot.contour(values.map((value) => (Number.isNaN(value) ? NaN : Math.max(value, levels[0]))), {
        // A grid's values stand in the middle of its cells.
        width: columns, height: rows, x1: left - stepX / 2, x2: right + stepX / 2, y1: low - stepY / 2, y2: high + stepY / 2,
        fill: Plot.identity, stroke: "var(--card)", strokeWidth: 0.6, strokeOpacity: 0.7, thresholds: levels, clip: true,
      }) : null,
      Plot.axisX({ label: axisLabel(plot.x), labelAnchor: "center", labelArrow: "none", tickFormat: tick, ticks: 5, fill: "var(--soft)" }),
      Plot.axisY({ label: axisLabel(plot.y), labelArrow: "none", tickFormat: tick, ticks: 5, fill: "var(--soft)" }),
      plot.joined ? Plot.line(plot.points, { x: "x", y: "y", stroke: "var(--ink)", strokeWidth: 1.2 }) : null,
      Plot.dot(plot.points, { x: "x", y: "y", r: plot.joined ? 3.5 : 5, fill: "#fff", stroke: "#000", strokeWidth: 1.5 }),
      Plot.text(plot.points, { x: "x", y: "y", text: "name", dy: -13, fontSize: 13, fontWeight: 600, fill: "#000", stroke: "#fff", strokeWidth: 4 }),
    ],
  });
  return element("div", {}, svg, levels.length ? lossKey(svg, levels) : plot.unit ? element("p", { class: "none" }, "The loss is the same everywhere.") : "",
    element("p", { class: "meaning" }, plot.points.filter((point) => point.label).map((point) => `${point.name}: ${point.label}`).join("  ")));
}

/** The key of the colours: each level's own number, from low to high. */
function lossKey(svg, levels) {
  const colour = svg.scale("color");
  return element("ul", { class: "key", "aria-label": "Loss at the levels" }, levels.slice(0, -1).filter((_, i) => i % 2 === 0).map((level) => {
    const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.background = colour.apply(level);
    return element("li", {}, swatch, format(level));
  }));
}

function planeSummary(plot, values) {
  const lowest = d3.minIndex(values);
  const points = plot.points.map((point) => `${point.name} at ${format(point.x)}, ${format(point.y)}`);
  if (!plot.unit) return `Trajectory of ${plot.points.length} checkpoints in the plane of its two main directions`;
  const where = lowest < 0 ? "no loss anywhere" : `lowest loss ${format(values[lowest])} at ${format(plot.xs[lowest % plot.xs.length])}, ${format(plot.ys[Math.floor(lowest / plot.xs.length)])}`;
  return `Contour map of the loss, ${plot.title}: ${[where, ...points].join("; ")}`;
}

function planeRows(plot) {
  if (!plot.unit) return [["checkpoint", "x", "y"], ...plot.points.map(({ name, x, y }) => [name, x, y])];
  const values = numbers(plot.values);
  return [["x", "y", "loss"], ...plot.ys.flatMap((y, i) => plot.xs.map((x, j) => [x, y, values[i * plot.xs.length + j]]))];
}
