// Lines along a common x: metrics through the run, loss and error along a path.

const DASH = { solid: null, dashed: "6 3", dotted: "1.5 3", "dash-dot": "8 3 1.5 3", "dash-dot-dot": "6 3 1.5 3 1.5 3" };
const MOST_MARKED = 40;
const MOST_NAMED = 6;
const HEIGHT = 210;

/** A figure of lines: {root, draw(width), move()}. */
function linePlot(plot) {
  const lines = plot.lines.map((line) => ({ ...line, xs: numbers(line.x), ys: numbers(line.y), es: numbers(line.errors) }));
  const along = plot.key.startsWith("metric-");
  let log = plot.y.log;
  let drawn = null;
  let width = 0;
  const visibleLines = () => lines.filter((line) =>
    !along || (!state.hiddenRuns.has(line.condition) && !state.hiddenSplits.has(line.split)));
  const logable = lines.some((line) => line.ys.some((value) => value > 0));
  const toggle = element("button", {
    type: "button", class: "quiet", "aria-pressed": String(log), "aria-label": `${plot.title}: logarithmic y axis`,
    onclick: () => {
      log = !log;
      toggle.setAttribute("aria-pressed", String(log));
      draw(width);
    },
  }, "log y");
  const copied = copyButton(plot.title, () => lineRows(plot, lines));
  const card = cardOf(plot, [logable ? toggle : null, copied], Object.keys(plot.names)[0]);

  function draw(wide) {
    width = wide;
    const visible = visibleLines();
    drawn = drawLines(plot, visible, { log, logX: along && state.logX != null ? state.logX : plot.x.log, width });
    card.show(drawn.svg, lineSummary(plot, visible));
    card.warn(drawn.notes);
    move();
  }

  function move() {
    if (!drawn) return;
    card.read(along ? moveCursor(plot, drawn) : plot.spans.map((span) => ({ name: span.name, value: plot.x.log ? format(span.x) : `${format(span.high - span.low)} at α ${format(span.x)}` })));
  }

  if (along) {
    card.plot.addEventListener("click", (event) => {
      const svg = card.plot.querySelector("svg");
      const box = svg.getBoundingClientRect();
      const x = drawn.x.invert(((event.clientX - box.left) / box.width) * width);
      moveTo(d3.leastIndex(positions, (a, b) => Math.abs(drawn.x.apply(a) - drawn.x.apply(x)) -
        Math.abs(drawn.x.apply(b) - drawn.x.apply(x))));
    });
  }
  return { root: card.root, draw, move };
}

function drawLines(plot, lines, { log, logX, width }) {
  const drawable = (value) => !Number.isNaN(value) && (!log || value > 0);
  const points = lines.map((line) => Array.from(line.xs, (x, i) => ({ x, y: drawable(line.ys[i]) ? line.ys[i] : NaN, error: line.es[i], line })));
  // 95 % intervals; on a logarithmic axis from a tenth of the value where they reach 0.
  const low = (p) => (log ? Math.max(p.y - 1.96 * p.error, p.y / 10) : p.y - 1.96 * p.error);
  const marked = lines.every((line) => line.xs.length <= MOST_MARKED);
  const levels = plot.levels.filter((level) => !log || level.value > 0);
  const named = lines.length <= MOST_NAMED;
  const marginRight = named ? Math.min(92, 14 + 6.2 * d3.max([...lines.map((l) => l.name), ""], (name) => shortened(name, 12).length)) : 12;
  const svg = Plot.plot({
    width, height: HEIGHT, marginLeft: 46, marginRight, marginBottom: 34, marginTop: 12,
    style: { background: "none", fontSize: "11px", overflow: "visible" },
    x: { ...xScale(plot, logX, lines), label: null },
    y: { type: log ? "log" : "linear", label: null, domain: log ? undefined : plot.y.bounds ?? undefined, nice: !plot.y.bounds },
    marks: [
      Plot.gridY({ stroke: "var(--rule)", strokeOpacity: 1, ticks: yTicks(log, lines) }),
      Plot.axisY({ ticks: yTicks(log, lines), tickFormat: tick, tickSize: 0, label: null, fill: "var(--soft)" }),
      Plot.axisX({ ...xTicks(plot, logX, width), tickSize: 4, label: axisLabel(plot.x), labelAnchor: "center", labelArrow: "none", fill: "var(--soft)" }),
      Plot.ruleY(levels, { y: "value", stroke: "var(--soft)", strokeDasharray: "1.5 3" }),
      ...plot.chords.map(([x1, y1, x2, y2, colour]) => Plot.line(d3.range(0, 1.001, 1 / 40).map((t) => [x1 + t * (x2 - x1), y1 + t * (y2 - y1)]), { stroke: paint(colour), strokeDasharray: "1.5 3", strokeWidth: 1.2 })),
      ...lines.map((line, i) => (line.es.length ? Plot.areaY(points[i].filter((p) => p.error >= 0), {
        x: "x", y1: low, y2: (p) => p.y + 1.96 * p.error, fill: paint(line.style.colour), fillOpacity: 0.16,
      }) : null)),
      ...lines.map((line, i) => Plot.line(points[i], {
        x: "x", y: "y", stroke: paint(line.style.colour), strokeWidth: 1.8, strokeDasharray: DASH[line.style.dash],
      })),
      ...(marked ? lines.map((line, i) => Plot.dot(points[i], {
        x: "x", y: "y", symbol: line.style.marker, r: 3, stroke: paint(line.style.colour), strokeWidth: 1.5,
        fill: line.style.hollow ? "var(--card)" : paint(line.style.colour),
      })) : []),
      Plot.ruleX(plot.spans, { x: "x", y1: "low", y2: "high", stroke: (span) => paint(span.colour), strokeWidth: 2.5 }),
      ...spanNames(plot.spans, d3.extent(points.flat(), (p) => p.y)),
      Plot.tip(points.flat(), Plot.pointerX({ x: "x", y: "y", title: (p) => `${p.line.name || plot.title}\n${plot.x.name} ${format(p.x)}\n${formatWithError(p.y, p.error)}`, fill: "var(--card)", stroke: "var(--soft)" })),
    ],
  });
  const [x, y] = [svg.scale("x"), svg.scale("y")];
  if (named) nameLines(svg, x, y, points, width - marginRight);
  return { svg, x, y, points, cursor: plot.key.startsWith("metric-") ? cursorOf(svg, lines) : null, notes: unseen(plot, lines, log) };
}

/** Write the label of a distance above it, or beside it if it is long and another one, which may collide, is higher. */
function spanNames(spans, [low, high]) {
  const halo = { x: "x", text: "label", fill: "var(--ink)", stroke: "var(--card)", strokeWidth: 4 };
  const top = d3.maxIndex(spans, (span) => span.high);
  const above = (span, i) => i === top || span.high - span.low < 0.1 * (high - low);
  return spans.map((span, i) => Plot.text([{ ...span, middle: (span.low + span.high) / 2 }],
    above(span, i) ? { ...halo, y: "high", dy: -9 } : { ...halo, y: "middle", textAnchor: "start", dx: 6 }));
}

function axisLabel(axis) {
  return axis.unit ? `${axis.name} (${axis.unit})` : axis.name;
}

function xScale(plot, log, lines) {
  if (!log) return { type: "linear" };
  // Powers of ten apart beyond the first value above 0, and linear up to it.
  if (plot.x.linear_to != null) return { type: "symlog", constant: plot.x.linear_to, domain: [0, d3.max(lines, (line) => d3.max(line.xs)) || 1] };
  return { type: "log" };
}

function xTicks(plot, log, width) {
  if (!log) return { ticks: Math.max(2, Math.floor(width / 90)), tickFormat: tick };
  return plot.x.linear_to != null ? { ticks: plot.x.ticks, tickFormat: tick } : { tickFormat: tick };
}

function yTicks(log, lines) {
  if (!log) return 4;
  const [low, high] = d3.extent(lines.flatMap((line) => Array.from(line.ys)).filter((value) => value > 0));
  if (low == null) return 4;
  const powers = d3.range(Math.ceil(Math.log10(low)), Math.floor(Math.log10(high)) + 1).map((power) => 10 ** power);
  if (powers.length > 5) return powers.filter((_, i) => i % Math.ceil(powers.length / 5) === 0);
  if (powers.length >= 3) return powers;
  return d3.scaleLog([low, high], [0, 1]).ticks(4).filter((value) => /^[125]/.test(value.toExponential()));
}

/** Write the name of each line at its end, at distances at which names do not overlap. */
function nameLines(svg, x, y, points, right) {
  const ends = points.map((series) => ({ last: series.filter((p) => !Number.isNaN(p.y)).at(-1), line: series[0]?.line }))
    .filter((end) => end.last && end.line.name)
    .map((end) => ({ text: shortened(end.line.name, 12), at: y.apply(end.last.y) }))
    .sort((a, b) => a.at - b.at);
  for (let i = 1; i < ends.length; i += 1) ends[i].at = Math.max(ends[i].at, ends[i - 1].at + 12);
  const over = (ends.at(-1)?.at ?? 0) - (HEIGHT - 36);
  for (const end of ends) {
    const label = svgElement("text", { "text-anchor": "start", x: right + 8, y: end.at - Math.max(0, over), dy: "0.32em", fill: "var(--ink)", class: "name" });
    label.textContent = end.text;
    svg.append(label);
  }
}

function cursorOf(svg, lines) {
  const group = svgElement("g", { class: "cursor", "aria-label": "slider" });
  const rule = svgElement("line", { y1: 8, y2: HEIGHT - 34, stroke: "var(--accent)", "stroke-width": 1.5, "stroke-opacity": 0.55 });
  const dots = lines.map((line) => svgElement("circle", { r: 6, fill: "none", stroke: paint(line.style.colour), "stroke-width": 1.5 }));
  group.append(rule, ...dots);
  svg.append(group);
  return { group, rule, dots };
}

/** Move the cursor to the slider; return the values of the lines there as texts. */
function moveCursor(plot, { x, y, points, cursor }) {
  const position = positions[state.at];
  const at = x.apply(position);
  cursor.group.style.display = Number.isFinite(at) ? "" : "none";
  cursor.rule.setAttribute("x1", at);
  cursor.rule.setAttribute("x2", at);
  const words = points.map((series, i) => {
    // The last point at or before the slider: a run may have fewer checkpoints than another.
    const index = d3.bisector((p) => p.x).right(series, position) - 1;
    const point = series[index];
    const known = point && !Number.isNaN(point.y);
    cursor.dots[i].style.display = known ? "" : "none";
    if (known) {
      cursor.dots[i].setAttribute("cx", x.apply(point.x));
      cursor.dots[i].setAttribute("cy", y.apply(point.y));
    }
    const value = index < 0 ? NaN : series[index].line.ys[index];
    return [series[0]?.line, formatWithError(value, series[index]?.error)];
  });
  return [
    ...words.filter(([line]) => line).map(([line, value]) => ({ line, value })),
    ...plot.levels.map((level) => ({ name: level.name, value: format(level.value) })),
  ];
}

function unseen(plot, lines, log) {
  if (!log) return [];
  const below = d3.sum(lines, (line) => line.ys.filter((value) => value <= 0).length);
  const zero = plot.levels.filter((level) => level.value <= 0);
  return [
    below ? `${below} ${below === 1 ? "value" : "values"} of 0 or less not on this axis` : null,
    zero.length ? `${zero[0].name} ${format(zero[0].value)}: below this axis` : null,
  ].filter(Boolean);
}

function lineSummary(plot, lines) {
  const words = lines.map((line) => {
    const known = Array.from(line.ys, (y, i) => [line.xs[i], y]).filter(([, y]) => !Number.isNaN(y));
    if (!known.length) return `${line.name}: no value`;
    const [first, last] = [known[0], known.at(-1)];
    return `${line.name || plot.title} from ${format(first[1])} at ${format(first[0])} to ${format(last[1])} at ${format(last[0])}`;
  });
  const levels = plot.levels.map((level) => `${level.name} ${format(level.value)}`);
  const spans = plot.spans.map((span) => `${span.label} at ${format(span.x)}`);
  return `${plot.title} against ${plot.x.name}: ${[...words, ...levels, ...spans].slice(0, 12).join("; ")}`;
}

function lineRows(plot, lines) {
  const header = [plot.x.name, ...lines.map((line) => [line.metric, line.condition, line.split].filter(Boolean).join(" "))];
  const xs = [...new Set(lines.flatMap((line) => Array.from(line.xs)))].sort((a, b) => a - b);
  const columns = lines.map((line) => new Map(Array.from(line.xs, (x, i) => [x, line.ys[i]])));
  return [header, ...xs.map((position) => [position, ...columns.map((column) => column.get(position) ?? NaN)])];
}
