// Elements, numbers as texts, and lists that change without losing focus. Texts only ever become text nodes: names in a table may be anything.

const SVG = "http://www.w3.org/2000/svg";

export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

// Changes a text only where it differs, so that a selection in it stays.
export function say(element, text) {
  const wanted = String(text);
  if (element.textContent !== wanted) element.textContent = wanted;
}

export function set(element, name, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value === true ? "" : value);
}

// Gives `parent` one child for each item: known ones stay the same elements. `make(item)` gives {root, update(item)}.
export function keyed(parent, items, keyOf, make) {
  const known = (parent.parts ??= new Map());
  const wanted = new Set(items.map(keyOf));
  for (const [key, part] of known) {
    if (!wanted.has(key)) {
      part.root.remove();
      known.delete(key);
    }
  }
  let at = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    const part = known.get(key) ?? make(item);
    known.set(key, part);
    part.update?.(item);
    if (part.root === at) at = at.nextSibling;
    else parent.insertBefore(part.root, at);
  }
}

// -- numbers ----------------------------------------------------------------------------------------------------------------------------------

const WHOLE = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

export function whole(value) {
  return typeof value === "number" ? WHOLE.format(value) : String(value);
}

// A measured number, with three or four digits that count.
export function measured(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e9 || size < 1e-3) return value.toExponential(2);
  if (size >= 100) return new Intl.NumberFormat("en-US", { maximumFractionDigits: size >= 1000 || Number.isInteger(value) ? 0 : 1 }).format(value);
  return String(Number(value.toPrecision(3)));
}

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (value >= 1000 && at < units.length - 1) {
    value /= 1000;
    at += 1;
  }
  return `${at ? Number(value.toPrecision(3)) : value} ${units[at]}`;
}

export function duration(seconds) {
  if (seconds < 60) return `${Number(seconds.toPrecision(2))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

export function shape(field) {
  return field.shape.length ? `${field.dtype} [${field.shape.join(", ")}]` : field.dtype;
}

// -- small parts ------------------------------------------------------------------------------------------------------------------------------

// A list of figures under their names. `names`: [[key, label, class], ...]. set(key, text, exact value, unit).
export function figures(names) {
  const places = {};
  const root = h("dl", { class: "figures" });
  for (const [key, label, kind] of names) {
    const dd = h("dd", { "data-figure": key });
    const unit = h("span", { class: "unit" });
    const text = document.createTextNode("");
    dd.append(text, unit);
    places[key] = { dd, text, unit };
    root.append(h("div", { class: kind ?? "" }, h("dt", {}, label), dd));
  }
  return {
    root,
    set(key, text, value, unit = "") {
      const place = places[key];
      if (place.text.data !== text) place.text.data = text;
      say(place.unit, unit);
      set(place.dd, "data-value", value === null ? "" : value);
    },
  };
}

export function bar() {
  const inner = h("span");
  const root = h("div", { class: "bar", role: "meter", "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": "fill" }, inner);
  return {
    root,
    set(share) {
      inner.style.width = `${100 * share}%`;
      set(root, "aria-valuenow", Math.round(100 * share));
    },
  };
}
