// The bar of controls: checkpoint, visible runs and splits, x axis, and the run and split of matrices and spectra.

/** Move the slider to a position, and all plots with it. */
function moveTo(at) {
  state.at = Math.min(Math.max(at, 0), positions.length - 1);
  const slider = document.getElementById("checkpoint");
  slider.value = state.at;
  slider.setAttribute("aria-valuetext", describePosition());
  document.getElementById("position").textContent = describePosition();
  followSlider();
}

function controlBar() {
  if (!positions.length) return null;
  const slider = element("input", {
    type: "range", id: "checkpoint", min: 0, max: positions.length - 1, step: 1, value: state.at,
    oninput: () => moveTo(Number(slider.value)),
  });
  const step = (by, sign, name) => element("button", { type: "button", class: "step", "aria-label": name, onclick: () => moveTo(state.at + by) }, sign);
  return element("form", { class: "bar", "aria-label": "What the plots show", onsubmit: (event) => event.preventDefault() },
    element("div", { class: "slide" },
      element("label", { for: "checkpoint" }, "Checkpoint"),
      step(-1, "◀", "Previous checkpoint"), slider, step(1, "▶", "Next checkpoint"),
      element("output", { id: "position", for: "checkpoint" })),
    element("div", { class: "choices" }, runChoice(), splitChoice(), axisChoice(), pictureChoice()));
}

function lineKinds(key) {
  const lines = data.sections.flatMap((section) => (["metrics", "differences"].includes(section.key) ? section.groups : []))
    .flatMap((group) => group.plots).flatMap((plot) => plot.lines ?? []);
  return [...new Map(lines.map((line) => [key(line), line])).entries()].filter(([name]) => name != null);
}

function toggles(legend, kinds, hidden, style) {
  if (kinds.length < 2) return null;
  return element("fieldset", {}, element("legend", {}, legend), kinds.map(([name, line]) => {
    const box = element("input", { type: "checkbox", checked: true, onchange: () => {
      if (box.checked) hidden.delete(name);
      else hidden.add(name);
      drawAll();
    } });
    return element("label", { class: "toggle", title: name }, box, sign(style(line)), shortened(name, 24));
  }));
}

function runChoice() {
  return toggles(grouped ? "Groups" : "Runs", lineKinds((line) => line.condition), state.hiddenRuns, (line) => ({ ...line.style, dash: "solid", hollow: false }));
}

function splitChoice() {
  const single = lineKinds((line) => line.condition).length < 2;
  return toggles("Splits", lineKinds((line) => line.split), state.hiddenSplits,
    (line) => (single ? line.style : { ...line.style, colour: "#444444" }));
}

function axisChoice() {
  if (positions.at(-1) <= 0 || positions[0] < 0 || positions.length < 3) return null;
  const button = element("button", { type: "button", class: "quiet", "aria-pressed": String(data.axis.log), onclick: () => {
    state.logX = !(state.logX ?? data.axis.log);
    button.setAttribute("aria-pressed", String(state.logX));
    drawAll();
  } }, "log x");
  button.setAttribute("aria-label", "Logarithmic x axis");
  return button;
}

/** Choose the run and the split whose matrices, spectra and classes are visible. */
function pictureChoice() {
  if (!pictured.length) return null;
  const frames = data.sections.flatMap((section) => section.groups).flatMap((group) => group.plots).flatMap((plot) => plot.frames ?? []);
  const splits = [...new Set(frames.map((frame) => frame.split).filter(Boolean))];
  state.split = splits[0] ?? "";
  const choose = (label, key, names) => {
    if (names.length < 2) return null;
    const select = element("select", { id: `picture-${key}`, onchange: () => {
      state[key] = select.value;
      moveTo(state.at);
    } }, names.map((name) => element("option", { value: name }, shortened(name, 40))));
    return element("span", { class: "choose" }, element("label", { for: `picture-${key}` }, label), select);
  };
  return [choose("Matrices, spectra, classes of", "run", pictured), choose(pictured.length > 1 ? "on" : "Matrices, spectra, classes on", "split", splits)];
}
