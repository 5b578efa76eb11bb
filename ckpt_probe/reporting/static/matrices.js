// Matrices of cosines and of CKA of one checkpoint: drawn once, and coloured again when the slider moves.

const MOST_WRITTEN = 12;
const diverging = (value) => d3.interpolateRdBu((value + 1) / 2);

/** A figure of such a matrix: {root, draw(width), move()}. */
function matrixPlot(plot) {
  const card = cardOf(plot, [copyButton(plot.title, () => matrixRows(plot))]);

  function update(frame, cells) {
    const moment = momentOf(frame);
    const values = moment < 0 ? new Float32Array(frame.shape[1] ** 2).fill(NaN) : atMoment(frame, moment);
    cells.colour(values);
    const size = frame.shape[1];
    const off = values.filter((value, i) => i % (size + 1) !== 0 && !Number.isNaN(value));
    const level = plot.off_diagonal[frame.run];
    card.read([
      { name: describePicture(plot, frame, moment), value: "" },
      { name: `mean of different ${plot.rows}`, value: format(off.length ? d3.mean(off) : NaN) },
      ...(level == null ? [] : [{ name: "at collapse", value: format(level) }]),
    ]);
    card.describe(`${plot.title}: ${plot.unit} of ${size} ${plot.rows}, ${describePicture(plot, frame, moment)}; between different ones ` +
      `from ${format(d3.min(off))} to ${format(d3.max(off))}, mean ${format(d3.mean(off))}`);
  }
  return framedPart(plot, card, (frame, width) => drawMatrix(plot.labels[frame.run], Math.min(width, 460), plot.unit), update);
}

/** Describe a matrix: its checkpoint, or its run if it belongs to all checkpoints. */
function describePicture(plot, frame, moment) {
  if (!plot.of_run) return describeFrame(frame, moment);
  return [data.tracks.length > 1 ? frame.run : "", "all checkpoints", frame.split].filter(Boolean).join(" · ");
}

function drawMatrix(labels, width, unit) {
  const size = labels.length;
  const margin = Math.min(90, 10 + 6.2 * d3.max(labels, (label) => shortened(label, 13).length));
  const side = Math.max(120, width - margin - 8);
  const step = side / size;
  const every = Math.ceil(14 / step);
  const svg = svgElement("svg", { width, height: side + margin + 34, viewBox: `0 0 ${width} ${side + margin + 34}`, class: "matrix" });
  const group = svgElement("g", { transform: `translate(${margin},${margin})`, "aria-label": "cells" });
  const rects = [];
  const texts = [];
  for (let i = 0; i < size; i += 1) {
    for (let j = 0; j < size; j += 1) {
      const rect = svgElement("rect", { x: j * step, y: i * step, width: step - (step > 8 ? 1 : 0), height: step - (step > 8 ? 1 : 0) });
      group.append(rect);
      rects.push(rect);
      if (size <= MOST_WRITTEN) {
        const text = svgElement("text", { x: (j + 0.5) * step, y: (i + 0.5) * step, dy: "0.34em", "text-anchor": "middle", "font-size": Math.min(11, step / 2.7) });
        group.append(text);
        texts.push(text);
      }
    }
  }
  labels.forEach((label, i) => {
    if (i % every) return;
    const left = svgElement("text", { x: margin - 6, y: margin + (i + 0.5) * step, dy: "0.34em", "text-anchor": "end", class: "name" });
    const above = svgElement("text", { transform: `translate(${margin + (i + 0.5) * step},${margin - 6}) rotate(${d3.max(labels, (l) => l.length) > 2 ? -60 : 0})`, "text-anchor": d3.max(labels, (l) => l.length) > 2 ? "start" : "middle", class: "name" });
    left.textContent = shortened(label, 13);
    above.textContent = shortened(label, 13);
    svg.append(left, above);
  });
  svg.append(group, colourKey(margin, margin + side + 12, side, (share) => diverging(2 * share - 1), [format(-1), "0", `1 ${unit}`]));
  return {
    root: svg,
    colour(values) {
      rects.forEach((rect, i) => {
        const value = values[i];
        rect.setAttribute("fill", Number.isNaN(value) ? "none" : diverging(value));
        rect.setAttribute("stroke", Number.isNaN(value) ? "var(--rule)" : "none");
        if (!texts.length) return;
        texts[i].textContent = Number.isNaN(value) ? "–" : value.toFixed(2).replace("-", "−").replace("0.", ".").replace("1.00", "1");
        texts[i].setAttribute("fill", Number.isNaN(value) ? "var(--soft)" : Math.abs(value) > 0.62 ? "#fff" : "#1b1f24");
      });
      this.values = values;
    },
    over(event) {
      const box = svg.getBoundingClientRect();
      const [x, y] = [event.clientX - box.left, event.clientY - box.top].map((distance) => Math.floor(((distance / box.width) * width - margin) / step));
      if (x < 0 || y < 0 || x >= size || y >= size) return "";
      return `${shortened(labels[y], 40)} with ${shortened(labels[x], 40)}: ${format(this.values[y * size + x])}`;
    },
  };
}

function matrixRows(plot) {
  const frame = frameOf(plot);
  const labels = plot.labels[frame.run];
  const moment = momentOf(frame);
  const values = moment < 0 ? [] : atMoment(frame, moment);
  return [["", ...labels], ...labels.map((label, i) => [label, ...labels.map((_, j) => values[i * labels.length + j] ?? NaN)])];
}
