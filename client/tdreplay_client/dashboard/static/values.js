// Values of one row: numbers, vectors that can be unfolded, and images.

import { address, ask, tablePath } from "./api.js";
import { bytes, h, measured, say, set, shape, whole } from "./dom.js";

const SCALED = "floats from 0 to 1 as they are, others from the least (black) to the greatest (white)";

// A term and its value, in a list of values. `source`: {table, generation, row}, the row it belongs to.
export function valueOf(field, source) {
  const dd = h("dd", { "data-field": field.name });
  const root = h("div", {}, h("dt", { title: `${field.name} ${shape(field)}` }, field.name), dd);
  if (field.too_large) {
    say(dd, `${shape(field)}, ${bytes(field.bytes)}: too large to show`);
    return { root };
  }
  if (!field.shape.length) return { root, update: (value) => value !== undefined && say(dd, value) };
  const total = field.shape.reduce((product, size) => product * size, 1);
  const some = h("span", { class: "mono" });
  const unfolding = unfold(field, source, total, root);
  dd.append(some, " ", unfolding.button, unfolding.box);
  return {
    root,
    update(value) {
      const shownAll = value && value.length >= total;
      unfolding.button.hidden = Boolean(shownAll);
      say(some, value ? `[${value.map(measured).join(", ")}${shownAll ? "" : ", …"}]` : shape(field));
    },
  };
}

function unfold(field, source, total, root) {
  const box = h("div", { class: "numbers mono", hidden: true, tabindex: 0, role: "region", "aria-label": `all numbers of ${field.name}` });
  const label = `all ${whole(total)}`;
  const button = h("button", { type: "button", class: "link small", "aria-expanded": "false", "aria-label": `${label} numbers of ${field.name}` }, label);
  button.addEventListener("click", async () => {
    const opening = box.hidden;
    box.hidden = !opening;
    root.classList.toggle("wide", opening);
    set(button, "aria-expanded", String(opening));
    say(button, opening ? "fold" : label);
    if (opening && !box.childElementCount) await load(field, source, box, 0);
  });
  return { button, box };
}

async function load(field, source, box, start) {
  try {
    const part = await ask(tablePath(source.table, "/value"), { row: source.row, field: field.name, start });
    const wide = field.shape.length > 1 ? field.shape[field.shape.length - 1] : 0;
    box.append(...lines(part.values, start, wide));
    const next = start + part.values.length;
    if (next < part.total && part.values.length) {
      const more = h("button", { type: "button" }, `more (${whole(part.total - next)} follow)`);
      more.addEventListener("click", () => {
        more.remove();
        load(field, source, box, next);
      });
      box.append(more);
    }
  } catch (error) {
    box.append(h("p", {}, error.message));
  }
}

// Of a matrix one line for each of its last dimension.
function lines(values, start, wide) {
  if (!wide || start % wide) return [h("p", {}, values.join(", "))];
  const found = [];
  for (let at = 0; at < values.length; at += wide) found.push(h("p", {}, `${(start + at) / wide}: ${values.slice(at, at + wide).join(", ")}`));
  return found;
}

export function isImage(field) {
  return field.layouts.length > 0 && !field.too_large;
}

export function imageAddress(field, source, layout) {
  return address(tablePath(source.table, "/image"), { row: source.row, field: field.name, layout, generation: source.generation });
}

// An image with its caption. update(source, layout): which row it is of.
export function imageOf(field) {
  const picture = h("img", { class: "pixels", alt: "", loading: "lazy", "data-field": field.name });
  const lost = h("p", { class: "faint small", hidden: true }, "not stored any more");
  const root = h("figure", {}, h("div", { class: "film" }, picture, lost), h("figcaption", { title: field.dtype.startsWith("F") || field.dtype === "BF16" ? SCALED : "" },
    `${field.name} · ${shape(field)}${field.dtype === "U8" ? "" : ", scaled"}`));
  picture.addEventListener("error", () => {
    picture.classList.add("lost");
    lost.hidden = false;
  });
  picture.addEventListener("load", () => {
    picture.classList.remove("lost");
    lost.hidden = true;
  });
  return {
    root,
    picture,
    update(source, layout) {
      set(picture, "alt", `${field.name} of row ${source.row}`);
      set(picture, "src", imageAddress(field, source, layout));
    },
  };
}

// Where a field can be more than one kind of image: which one is shown. `layouts`: Map of field name -> layout; `changed()` hears of it.
export function layoutChoices(fields, layouts, changed) {
  const names = { hw: "image", hwc: "image, channels last", chw: "image, channels first", thw: "grey frames", thwc: "frames, channels last", tchw: "frames, channels first" };
  return fields.filter((field) => isImage(field) && field.layouts.length > 1).map((field) => {
    const select = h("select", {}, ...field.layouts.map((layout) => h("option", { value: layout }, names[layout])));
    select.value = layouts.get(field.name) ?? field.layouts[0];
    select.addEventListener("change", () => {
      layouts.set(field.name, select.value);
      changed();
    });
    return h("label", {}, field.name, select);
  });
}
