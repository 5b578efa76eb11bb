// Spectra: the eigenvalues of the slider's checkpoint by rank, and some of them through the run.

const LEAST = 1e-7; // share of the largest eigenvalue; smaller ones are rounding errors
const FOLLOWED = [1, 2, 4, 8, 16, 39];
const SHADES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#4d4d4d"];
const NOW = { colour: "#0072b2", dash: "solid", marker: "circle" };
const FIRST = { colour: "#444444", dash: "dotted" };
const LAST = { colour: "#444444", dash: "dashed" };
const SHADE_DASH = ["solid", "dashed", "dotted", "dash-dot", "dash-dot-dot", "solid"];

/** A figure of a spectrum in two parts: {root, draw(width), move()}. */
function spectrumPlot(plot) {
  const card = cardOf(plot, [copyButton(`spectrum of ${plot.title}`, () => spectrumRows(plot))]);

  function make(frame, width) {
    const drawn = drawSpectrum(plot, frame, width);
    card.warn(drawn.below ? [`eigenvalues of less than ${LEAST.toExponential()} of the largest lie below this axis`] : []);
    return drawn;
  }

  function update(frame, drawn) {
    const moment = momentOf(frame);
    const values = moment < 0 ? [] : atMoment(frame, moment);
    drawn.move(values, moment);
    const known = Array.from(values).filter((value) => !Number.isNaN(value));
    const level = plot.at_collapse[frame.run];
    card.read([
      { line: { name: describeFrame(frame, moment), style: NOW }, value: "" },
      ...(frame.checkpoints.length > 1 ? [{ line: { name: "first", style: FIRST }, value: "" }, { line: { name: "last", style: LAST }, value: "" }] : []),
      { name: "largest", value: format(known[0]) },
      ...(level == null ? [] : [{ name: "at collapse", value: `${level} × ${format(1 / level)}` }]),
    ]);
    card.describe(`Spectrum, ${plot.title}, ${describeFrame(frame, moment)}: eigenvalues ` +
      `${known.slice(0, 5).map(format).join(", ")}${known.length > 5 ? ` … ${format(known.at(-1))}` : ""}; beside it some of them through the run`);
  }
  return framedPart(plot, card, make, update);
}

function drawSpectrum(plot, frame, width) {
  const beside = width > 520;
  const each = beside ? Math.floor((width - 12) / 2) : width;
  const all = numbers(frame.values);
  const top = d3.max(all) || 1;
  const low = Math.max(d3.min(all.filter((value) => value > 0)) ?? top, top * LEAST);
  const y = { type: "log", domain: [low, top * 1.15], clamp: true, label: null };
  const ranks = drawRanks(plot, frame, each, y);
  const through = frame.checkpoints.length > 1 ? drawThrough(plot, frame, each, y) : null;
  const root = element("div", { class: beside ? "pair" : "" }, ranks.svg, through?.svg);
  return { root, below: all.some((value) => value < low), move(values, moment) { ranks.move(values); through?.move(moment); } };
}

/** Eigenvalues by rank: the slider's checkpoint, and the first and the last one for comparison. */
function drawRanks(plot, frame, width, yScale) {
  const { ranks } = plot;
  const level = plot.at_collapse[frame.run];
  const ghosts = frame.checkpoints.length > 1 ? [[0, DASH[FIRST.dash]], [frame.checkpoints.length - 1, DASH[LAST.dash]]] : [];
  const curve = (moment) => Array.from(atMoment(frame, moment), (value, i) => ({ x: ranks[i], y: value >= yScale.domain[0] ? value : NaN }));
  const svg = Plot.plot({
    width, height: HEIGHT, marginLeft: 48, marginRight: 14, marginBottom: 34, marginTop: 12,
    style: { background: "none", fontSize: "11px", overflow: "visible" },
    x: { type: "log", domain: [1, Math.max(2, ranks.at(-1))], label: null },
    y: yScale,
    marks: [
      Plot.gridY({ stroke: "var(--rule)", strokeOpacity: 1, ticks: 4 }),
      Plot.axisY({ ticks: 4, tickFormat: tick, tickSize: 0, label: null, fill: "var(--soft)" }),
      Plot.axisX({ ticks: 4, tickFormat: tick, label: "rank of the eigenvalue", labelAnchor: "center", labelArrow: "none", fill: "var(--soft)" }),
      ...(level == null ? [] : [Plot.line([[1, 1 / level], [level, 1 / level]], { stroke: "var(--soft)", strokeDasharray: "1.5 3" })]),
      ...ghosts.map(([moment, dash]) => Plot.line(curve(moment), { x: "x", y: "y", stroke: "var(--soft)", strokeDasharray: dash, strokeWidth: 1.1 })),
    ],
  });
  const [x, y] = [svg.scale("x"), svg.scale("y")];
  const path = svgElement("path", { fill: "none", stroke: "var(--c0072b2, #0072B2)", "stroke-width": 1.8, "aria-label": "line" });
  const dots = ranks.map(() => svgElement("circle", { r: 2.6, fill: "var(--c0072b2, #0072B2)" }));
  const group = svgElement("g", { class: "now", "aria-label": "points" });
  group.append(path, ...dots);
  svg.append(group);
  return {
    svg,
    move(values) {
      let commands = "";
      dots.forEach((dot, i) => {
        const known = values[i] >= yScale.domain[0];
        dot.style.display = known ? "" : "none";
        if (!known) return;
        const [px, py] = [x.apply(ranks[i]), y.apply(values[i])];
        dot.setAttribute("cx", px);
        dot.setAttribute("cy", py);
        commands += `${commands ? "L" : "M"}${px.toFixed(1)},${py.toFixed(1)}`;
      });
      path.setAttribute("d", commands);
    },
  };
}

/** Eigenvalues of a few ranks through the run. */
function drawThrough(plot, frame, width, yScale) {
  const ofRun = tracks.get(frame.run).positions;
  const followed = FOLLOWED.map((rank) => plot.ranks.indexOf(d3.least(plot.ranks, (each) => Math.abs(each - rank))))
    .filter((index, i, every) => every.indexOf(index) === i);
  const log = state.logX ?? data.axis.log;
  const xs = frame.checkpoints.map((checkpoint) => ofRun[checkpoint]);
  const points = followed.map((index) => xs.map((x, t) => ({ x, y: atMoment(frame, t)[index] >= yScale.domain[0] ? atMoment(frame, t)[index] : NaN })));
  const svg = Plot.plot({
    width, height: HEIGHT, marginLeft: 48, marginRight: 34, marginBottom: 34, marginTop: 12,
    style: { background: "none", fontSize: "11px", overflow: "visible" },
    x: { label: null, ...(log ? data.axis.linear_to != null ? { type: "symlog", constant: data.axis.linear_to } : { type: "log" } : { type: "linear" }), domain: [positions[0], positions.at(-1)] },
    y: yScale,
    marks: [
      Plot.gridY({ stroke: "var(--rule)", strokeOpacity: 1, ticks: 4 }),
      Plot.axisY({ ticks: 4, tickFormat: tick, tickSize: 0, label: null, fill: "var(--soft)" }),
      Plot.axisX({ ticks: log && data.axis.linear_to != null ? data.axis.ticks : 4, tickFormat: tick, label: axisLabel(data.axis), labelAnchor: "center", labelArrow: "none", fill: "var(--soft)" }),
      ...points.map((series, i) => Plot.line(series, { x: "x", y: "y", stroke: paint(SHADES[i]), strokeDasharray: DASH[SHADE_DASH[i]], strokeWidth: 1.6 })),
    ],
  });
  const [x, y] = [svg.scale("x"), svg.scale("y")];
  const named = followed.map((index, i) => points[i].map((p) => ({ ...p, line: { name: `#${plot.ranks[index]}` } })));
  nameLines(svg, x, y, named, width - 34);
  const rule = svgElement("line", { y1: 8, y2: HEIGHT - 34, stroke: "var(--accent)", "stroke-width": 1.5, class: "cursor", "aria-label": "slider" });
  svg.append(rule);
  return {
    svg,
    move(moment) {
      const at = moment < 0 ? NaN : x.apply(xs[moment]);
      rule.style.display = Number.isFinite(at) ? "" : "none";
      rule.setAttribute("x1", at);
      rule.setAttribute("x2", at);
    },
  };
}

function spectrumRows(plot) {
  const frame = frameOf(plot);
  const names = frame.checkpoints.map((checkpoint) => tracks.get(frame.run).checkpoints[checkpoint]);
  return [["rank", ...names], ...plot.ranks.map((rank, i) => [rank, ...names.map((_, t) => atMoment(frame, t)[i])])];
}
