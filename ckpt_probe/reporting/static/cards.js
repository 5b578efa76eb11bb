// A card: heading, meaning, values at the slider, the plot, its buttons.

let cards = 0;

/** A figure with the plot's title and buttons; `code`: the name that records have for it. */
function cardOf(plot, tools, code) {
  cards += 1;
  const heading = element("h4", { id: `card-${cards}` }, shortened(plot.title, 120));
  const hint = element("span", { class: "hint" });
  const readout = element("p", { class: "readout" });
  const notes = element("p", { class: "warning" });
  const image = element("div", { class: "plot", role: "img", "aria-label": plot.title });
  const root = element("figure", { class: "card", "data-key": plot.key, "aria-labelledby": `card-${cards}` },
    element("figcaption", {}, heading, code && code !== plot.title ? element("code", {}, shortened(code, 60)) : null,
      plot.meaning ? element("p", { class: "meaning" }, plot.meaning) : null),
    readout, image, notes, element("div", { class: "tools" }, hint, tools));
  return {
    root,
    plot: image,
    show(drawing, summary) {
      // The label of the image describes the plot; its parts have labels of the drawing library.
      drawing.setAttribute("aria-hidden", "true");
      image.replaceChildren(drawing);
      if (summary) image.setAttribute("aria-label", summary);
    },
    describe(summary) { image.setAttribute("aria-label", summary); },
    hint(text) { hint.textContent = text; },
    warn(texts) { notes.textContent = texts.join("; "); },
    read(parts) { fillReadout(readout, parts); },
  };
}

/** A part of the page that shows a frame of a plot: {root, draw(width), move()}.
 * `make(frame, width)` draws another frame or width, as {root, over(event)}, and `update(frame, drawing)` follows the slider. */
function framedPart(plot, card, make, update) {
  let drawing = null;
  let shown = null;
  let width = 0;
  function draw(wide) {
    width = wide;
    shown = frameOf(plot);
    drawing = null;
    card.warn([]);
    if (!shown) {
      card.show(element("p", { class: "none" }, `${state.run}: none`), `${plot.title}: none`);
      return;
    }
    drawing = make(shown, width);
    card.show(drawing.root, "");
    if (drawing.over) {
      drawing.root.addEventListener("pointermove", (event) => card.hint(drawing.over(event)));
      drawing.root.addEventListener("pointerleave", () => card.hint(""));
    }
    update(shown, drawing);
  }
  function move() {
    if (frameOf(plot) !== shown) draw(width);
    else if (drawing) update(shown, drawing);
  }
  return { root: card.root, draw, move };
}

/** The key of the colours of a picture, with texts from its start to its end. */
function colourKey(x, y, width, colourAt, texts) {
  const group = svgElement("g", { transform: `translate(${x},${y})`, "aria-label": "key" });
  const steps = 21;
  for (let i = 0; i < steps; i += 1) {
    group.append(svgElement("rect", { x: (i * width) / steps, width: width / steps + 0.5, height: 7, fill: colourAt(i / (steps - 1)) }));
  }
  const last = texts.length - 1;
  texts.forEach((content, i) => {
    const text = svgElement("text", { x: (i * width) / last, y: 19, "text-anchor": i === 0 ? "start" : i === last ? "end" : "middle", class: "name" });
    text.textContent = content;
    group.append(text);
  });
  return group;
}

/** Write names and values, each after the sign of its line; elements are reused, and only their texts change. */
function fillReadout(readout, parts) {
  while (readout.children.length > parts.length) readout.lastChild.remove();
  parts.forEach((part, i) => {
    let item = readout.children[i];
    if (!item || item.lineStyle !== part.line?.style) {
      const node = element("span", { class: "item" }, part.line ? sign(part.line.style) : null, element("span", { class: "label" }), element("b"));
      node.lineStyle = part.line?.style;
      if (item) item.replaceWith(node);
      else readout.append(node);
      item = node;
    }
    item.querySelector(".label").textContent = shortened(part.line ? part.line.name : part.name, 40, 12);
    item.querySelector("b").textContent = part.value;
  });
}

/** A line's colour, dash and mark in small. */
function sign(style) {
  const svg = svgElement("svg", { width: 26, height: 10, viewBox: "0 0 26 10", "aria-hidden": "true", class: "sign" });
  const line = svgElement("line", { x1: 0, x2: 26, y1: 5, y2: 5, stroke: paint(style.colour), "stroke-width": 2 });
  if (DASH[style.dash]) line.setAttribute("stroke-dasharray", DASH[style.dash]);
  svg.append(line);
  if (!style.marker) return svg;
  const symbol = d3[`symbol${style.marker[0].toUpperCase()}${style.marker.slice(1)}`] ?? d3.symbolCircle;
  const mark = svgElement("path", {
    d: d3.symbol(symbol, 34)(), transform: "translate(13,5)", stroke: paint(style.colour), "stroke-width": 1.5,
    fill: style.hollow ? "var(--card)" : paint(style.colour),
  });
  svg.append(mark);
  return svg;
}
