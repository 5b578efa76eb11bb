// What every part of the page stands on: the data, numbers and names in words, and elements that hold only text.

const data = JSON.parse(document.getElementById("data").textContent);
const held = data.arrays.map((text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer);

/** The numbers of an array: {array, type, shape} in the data; NaN where there is none. */
function numbers(reference) {
  if (reference.type === "u1") return new Uint8Array(held[reference.array]);
  return reference.type === "f8" ? new Float64Array(held[reference.array]) : new Float32Array(held[reference.array]);
}

/** An element with attributes, listeners (names that begin with "on") and children: elements, or text as text. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child != null));
  return made;
}

function svgElement(name, attributes = {}) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** Four significant digits, in powers of ten where that is shorter. */
function told(value) {
  if (value == null || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return value.toExponential(2).replace("e+", "e").replaceAll("-", "−");
  if (Number.isInteger(value)) return value.toLocaleString("en").replaceAll("-", "−");
  const digits = Math.max(0, 4 - Math.max(1, Math.floor(Math.log10(size)) + 1));
  return value.toFixed(size < 1 ? 4 : digits).replaceAll("-", "−");
}

/** A value with its standard error in units of the last digits, 0.5991(24); the value alone where there is none. */
function toldWithError(value, error) {
  const size = Math.max(Math.abs(value), error);
  if (!(error > 0) || !Number.isFinite(value) || !Number.isFinite(error)) return told(value);
  if (size < 1e-3 || size >= 1e5) {
    const power = Math.floor(Math.log10(size));
    return `${digitsWithError(value / 10 ** power, error / 10 ** power)}e${String(power).replace("-", "−")}`;
  }
  return digitsWithError(value, error);
}

/** The value with as many decimals as the two digits of its error. */
function digitsWithError(value, error) {
  const decimals = 1 - Math.floor(Math.log10(Number(error.toExponential(1))));
  const unit = 10 ** -decimals;
  const [shown, digits] = decimals < 0
    ? [(Math.round(value / unit) * unit).toFixed(0), (Math.round(error / unit) * unit).toFixed(0)]
    : [value.toFixed(decimals), Math.round(error / unit).toFixed(0)];
  return `${shown.replaceAll("-", "−")}(${digits})`;
}

/** A tick's number: short, and with its unit of ten where that is shorter. */
function tick(value) {
  const size = Math.abs(value);
  if (size >= 10000) return d3.format("~s")(value);
  if (size > 0 && size < 1e-3) return d3.format("~e")(value).replaceAll("-", "−");
  return d3.format("~g")(value);
}

/** A text of at most `most` characters; a longer one loses its end, or its middle if `ending` characters stay. */
function shortened(text, most, ending = 0) {
  const characters = [...text];
  if (characters.length <= most) return text;
  return `${characters.slice(0, most - ending - 1).join("")}…${ending ? characters.slice(-ending).join("") : ""}`;
}

/** The palette's colour as the page's scheme shows it; other colours are lighter in a dark scheme. */
function paint(colour) {
  return `var(--c${colour.slice(1).toLowerCase()}, color-mix(in oklab, ${colour}, var(--lift)))`;
}

/** Rows of cells as CSV; what a spreadsheet would take for a formula is quoted as text. */
function csv(rows) {
  const cell = (value) => {
    if (typeof value === "number") return Number.isNaN(value) ? "" : String(value);
    const text = /^\s*[=+\-@]/.test(value) && Number.isNaN(Number(value)) ? `'${value}` : value;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

/** A button that copies what `rows` gives, as CSV, and says so. */
function copyButton(what, rows) {
  const button = element("button", { type: "button", class: "quiet", "aria-label": `Copy ${what} as CSV` }, "Copy CSV");
  button.addEventListener("click", async () => {
    const done = await copy(csv(rows()));
    button.textContent = done ? "Copied" : "Not copied";
    announce(done ? `${what}: copied as CSV` : `${what}: the browser did not let it be copied`);
    setTimeout(() => { button.textContent = "Copy CSV"; }, 1600);
  });
  return button;
}

function announce(text) {
  document.getElementById("announcement").textContent = text;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // A page that was opened as a file may not have the clipboard; a selected field always does.
    const field = element("textarea", { class: "away", "aria-hidden": "true", tabindex: "-1" });
    field.value = text;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}
