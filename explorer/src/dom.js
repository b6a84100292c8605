// Elements from script. Text is only ever set as text, so that no row can become markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.setAttribute("class", value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

export const s = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

export const byId = (id) => document.getElementById(id);

// Control characters and those that turn the direction of text could make a row look like another.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g;

export const clean = (text) =>
  String(text).replace(HIDDEN, (one) => `\\x${one.charCodeAt(0).toString(16).padStart(2, "0")}`);

const WHOLE = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

export const whole = (value) => WHOLE.format(value ?? 0);

// Fractions keep their zeros, so that a column of them lines up.
export function number(value, integer = false) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value !== "number") return clean(value);
  if (integer || (Number.isInteger(value) && Math.abs(value) >= 1000)) return WHOLE.format(value).replace("-", "−");
  const size = Math.abs(value);
  const text = size >= 1e6 || (size < 1e-4 && size > 0) ? value.toExponential(2) : value.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : 3);
  return text.replace("-", "−");
}

export const percent = (part, all) => (all ? `${((100 * part) / all).toFixed(1)} %` : "–");

export function save(name, blob) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

let note;
export function toast(text) {
  clearTimeout(note);
  const place = byId("toast");
  place.textContent = text;
  place.hidden = false;
  note = setTimeout(() => (place.hidden = true), 2_500);
}

export async function copy(text, what) {
  await navigator.clipboard.writeText(text);
  toast(`${what} copied`);
}

// Run the newest of quickly repeated calls, one at a time.
export function latest(work) {
  let busy = false;
  let next = null;
  return async function run(...values) {
    next = values;
    if (busy) return;
    busy = true;
    try {
      while (next) {
        const now = next;
        next = null;
        await work(...now);
      }
    } finally {
      busy = false;
    }
  };
}
