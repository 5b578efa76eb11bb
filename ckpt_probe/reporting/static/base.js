// The data of the page, texts of numbers and names, and elements, whose children are elements or plain text.

const data = JSON.parse(document.getElementById("data").textContent);
const buffers = data.arrays.map((text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer);

/** Return the numbers of an array, {array, type, shape} in the data; NaN for a missing one. */
function numbers(reference) {
  if (reference.type === "u1") return new Uint8Array(buffers[reference.array]);
  return reference.type === "f8" ? new Float64Array(buffers[reference.array]) : new Float32Array(buffers[reference.array]);
}

/** An element with attributes, listeners (names that begin with "on") and children: elements, or text as text. */
function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.flat().filter((child) => child != null));
  return node;
}

function svgElement(name, attributes = {}) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

/** Format a number with four significant digits, in powers of ten if that is shorter. */
function format(value) {
  if (value == null || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return value.toExponential(2).replace("e+", "e").replaceAll("-", "−");
  if (Number.isInteger(value)) return value.toLocaleString("en").replaceAll("-", "−");
  const digits = Math.max(0, 4 - Math.max(1, Math.floor(Math.log10(size)) + 1));
  return value.toFixed(size < 1 ? 4 : digits).replaceAll("-", "−");
}

/** Format a value with its standard error in units of the last digits, 0.5991(24); without an error the value alone. */
function formatWithError(value, error) {
  const size = Math.max(Math.abs(value), error);
  if (!(error > 0) || !Number.isFinite(value) || !Number.isFinite(error)) return format(value);
  if (size < 1e-3 || size >= 1e5) {
    const power = Math.floor(Math.log10(size));
    return `${digitsWithError(value / 10 ** power, error / 10 ** power)}e${String(power).replace("-", "−")}`;
  }
  return digitsWithError(value, error);
}

/** Format a value with as many decimals as the two digits of its error. */
function digitsWithError(value, error) {
  const decimals = 1 - Math.floor(Math.log10(Number(error.toExponential(1))));
  const unit = 10 ** -decimals;
  const [rounded, digits] = decimals < 0
    ? [(Math.round(value / unit) * unit).toFixed(0), (Math.round(error / unit) * unit).toFixed(0)]
    : [value.toFixed(decimals), Math.round(error / unit).toFixed(0)];
  return `${rounded.replaceAll("-", "−")}(${digits})`;
}

/** Format the number of a tick, in units of thousands or powers of ten if that is shorter. */
function tick(value) {
  const size = Math.abs(value);
  if (size >= 10000) return d3.format("~s")(value);
  if (size > 0 && size < 1e-3) return d3.format("~e")(value).replaceAll("-", "−");
  return d3.format("~g")(value);
}

/** Shorten a text to `most` characters, at its end, or before its last `ending` characters. */
function shortened(text, most, ending = 0) {
  const characters = [...text];
  if (characters.length <= most) return text;
  return `${characters.slice(0, most - ending - 1).join("")}…${ending ? characters.slice(-ending).join("") : ""}`;
}

/** Return a colour of the palette for the light or dark scheme; other colours are lighter in the dark one. */
function paint(colour) {
  return `var(--c${colour.slice(1).toLowerCase()}, color-mix(in oklab, ${colour}, var(--lift)))`;
}

/** Return rows of cells as CSV; a text that a spreadsheet would take for a formula is quoted. */
function csv(rows) {
  const cell = (value) => {
    if (typeof value === "number") return Number.isNaN(value) ? "" : String(value);
    const text = /^\s*[=+\-@]/.test(value) && Number.isNaN(Number(value)) ? `'${value}` : value;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

/** Return a button that copies the rows of `rows()` as CSV and announces it. */
function copyButton(subject, rows) {
  const button = element("button", { type: "button", class: "quiet", "aria-label": `Copy ${subject} as CSV` }, "Copy CSV");
  button.addEventListener("click", async () => {
    const done = await copy(csv(rows()));
    button.textContent = done ? "Copied" : "Not copied";
    announce(done ? `${subject}: copied as CSV` : `${subject}: the browser did not let it be copied`);
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
    // A page that is opened as a file may have no clipboard, but a selected field can be copied.
    const field = element("textarea", { class: "away", "aria-hidden": "true", tabindex: "-1" });
    field.value = text;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}
