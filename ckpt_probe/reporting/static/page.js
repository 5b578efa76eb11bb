// Build the page from the data; draw the visible parts first, and each again if its width or its contents change.

const parts = [];
/** Parts by their elements; elements have properties of some of these names (part). */
const partAt = new Map();
const MAKERS = { LinePlot: linePlot, MatrixPlot: matrixPlot, LayerMap: layerMap, SpectrumPlot: spectrumPlot, ClassTable: classTable, RowTable: rowTable, ContourPlot: contourPlot, IntervalPlot: intervalPlot };
const waiting = new Set();
// Some browsers do not report when they are idle.
const whenIdle = window.requestIdleCallback?.bind(window) ?? ((call) => setTimeout(() => call({ timeRemaining: () => 8 }), 1));

function readingPart() {
  if (!data.reading.length) return null;
  return element("section", { id: "reading", "aria-labelledby": "reading-title" }, element("h2", { id: "reading-title" }, "What the numbers say"),
    element("div", { class: "card reading" }, data.reading.map(([about, sentences]) => element("div", {},
      data.reading.length > 1 ? element("h3", {}, shortened(about, 120)) : null,
      element("ul", {}, sentences.map((sentence) => element("li", {}, sentence)))))));
}

function sectionPart(section) {
  const node = element("section", { id: section.key, "aria-labelledby": `${section.key}-title` },
    element("h2", { id: `${section.key}-title` }, section.title), element("p", { class: "lead" }, section.lead));
  for (const group of section.groups) {
    const grid = element("div", { class: `grid ${section.key}` });
    for (const plot of group.plots) {
      const part = MAKERS[plot.kind](plot);
      parts.push(part);
      partAt.set(part.root, part);
      grid.append(part.root);
    }
    if (group.folded) {
      const fold = element("details", { class: "fold", ontoggle: () => { if (fold.open) drawIn(grid); } },
        element("summary", {}, `${shortened(group.title, 160)} (${group.plots.length})`), grid);
      node.append(fold);
      continue;
    }
    if (group.title) node.append(element("h3", {}, shortened(group.title, 160)));
    node.append(grid);
  }
  if (section.notes.length) {
    node.append(element("details", { class: "notes" }, element("summary", {}, `Left out or missing (${section.notes.length})`),
      element("ul", {}, section.notes.map((note) => element("li", {}, note)))));
  }
  return node;
}

function originPart() {
  const list = (facts) => Object.keys(facts).length ? element("dl", {}, Object.entries(facts).flatMap(([name, value]) =>
    [element("dt", {}, name.replaceAll("_", " ")), element("dd", {}, value)])) : null;
  const originCard = (source) => element("div", { class: "card wide origin" },
    element("h3", {}, shortened(source.name, 120), " ", element("small", {}, source.kind)),
    element("p", { class: "meaning" }, source.path),
    source.command ? [element("p", {}, "A command that makes it:"), element("pre", { tabindex: "0" }, source.command)] : null,
    list(source.facts),
    element("details", {}, element("summary", {}, `Files and hashes (${source.files.length})`),
      element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Files of ${shortened(source.name, 60)}` }, element("table", {},
        element("thead", {}, element("tr", {}, ["file", "bytes", "SHA-256", "of"].map((label) => element("th", { scope: "col" }, label)))),
        element("tbody", {}, source.files.map((file) => element("tr", {}, element("th", { scope: "row" }, file.name),
          element("td", {}, file.size.toLocaleString("en")), element("td", {}, element("code", {}, file.sha256)), element("td", {}, file.hashed))))))));
  return element("section", { id: "origin", "aria-labelledby": "origin-title" }, element("h2", { id: "origin-title" }, "Where it comes from"),
    element("p", { class: "lead" }, "Files, their hashes, and commands that make them again."),
    data.command ? element("div", { class: "card wide" }, element("h3", {}, "This page"), element("pre", { tabindex: "0" }, data.command),
      element("p", { class: "meaning" }, Object.entries(data.versions).map(([name, version]) => `${name} ${version}`).join(", "))) : null,
    Object.keys(data.shared).length ? element("div", { class: "card wide origin" }, element("h3", {}, `Common to all ${data.origins.length} sources`), list(data.shared)) : null,
    data.origins.length > 3
      ? element("details", { class: "fold" }, element("summary", {}, `Each source, with what differs (${data.origins.length})`), data.origins.map(originCard))
      : data.origins.map(originCard));
}

function headPart() {
  const checkpoints = new Set(data.tracks.flatMap((track) => track.checkpoints.map((name) => `${track.run}/${name}`))).size;
  const count = (number, word) => (number ? `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}` : null);
  const span = positions.length > 1 ? `${data.axis.name} ${format(positions[0])} to ${format(positions.at(-1))}` : null;
  const facts = [count(data.tracks.length, "run"), count(checkpoints, "checkpoint"), span].filter(Boolean);
  const links = [...(data.reading.length ? [["reading", "What the numbers say"]] : []), ...data.sections.map((section) => [section.key, section.title]), ["origin", "Where it comes from"]];
  return element("header", {}, element("h1", {}, shortened(data.title, 200)), element("p", { class: "facts" }, facts.join(" · ")),
    element("nav", { "aria-label": "Sections" }, element("ul", {}, links.map(([key, title]) => element("li", {}, element("a", { href: `#${key}` }, title))))));
}

function widthOf(part) {
  const style = getComputedStyle(part.root);
  return Math.max(240, Math.floor(part.root.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight)));
}

function drawPart(part) {
  waiting.delete(part);
  part.behind = false;
  part.draw(widthOf(part));
}

/** Draw the parts of a grid that has become visible: while it was folded, it had no width. */
function drawIn(grid) {
  for (const part of parts) if (grid.contains(part.root)) drawPart(part);
}

/** Update a part that does not follow the state yet. */
function update(part) {
  if (waiting.has(part)) drawPart(part);
  else if (part.behind) {
    part.behind = false;
    part.move();
  }
}

/** Let every part follow the slider: at once if it is visible or near, else as soon as it is. */
function followSlider() {
  for (const part of parts) {
    part.behind = true;
    if (part.near) update(part);
  }
}

/** Draw everything again: the visible parts now, the others when the browser is idle, all before printing. */
function drawAll() {
  delete document.documentElement.dataset.drawn;
  for (const part of parts) waiting.add(part);
  const visible = parts.filter((part) => {
    const box = part.root.getBoundingClientRect();
    return box.bottom > -200 && box.top < innerHeight + 200;
  });
  visible.forEach(drawPart);
  whenIdle(drawMore);
}

function drawMore(deadline) {
  do {
    const [part] = waiting;
    if (!part) {
      document.documentElement.dataset.drawn = "all";
      return;
    }
    drawPart(part);
  } while (deadline.timeRemaining() > 4);
  whenIdle(drawMore);
}

function start() {
  const main = element("main", { id: "content", tabindex: "-1" });
  const bar = controlBar();
  main.append(...[readingPart(), bar, ...data.sections.map(sectionPart), originPart()].filter(Boolean));
  document.getElementById("page").append(headPart(), main,
    element("footer", {}, element("p", {}, `Made by ckpt-probe ${data.versions["ckpt-probe"] ?? ""}, drawn by D3 and Observable Plot. The page holds all of its data and asks for nothing else.`)));
  document.title = shortened(data.title, 200);
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const part = partAt.get(entry.target);
      part.near = entry.isIntersecting;
      if (part.near) update(part);
    }
  }, { rootMargin: "300px" });
  for (const part of parts) near.observe(part.root);
  drawAll();
  if (positions.length) moveTo(state.at);
  performance.mark("drawn");
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    drawAll();
  });
  addEventListener("beforeprint", () => {
    for (const fold of document.querySelectorAll("details.fold")) fold.open = true;
    parts.forEach(update);
  });
  document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

start();
