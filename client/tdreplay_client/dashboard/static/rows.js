// The rows of a table, page by page, by row id.

import { ask, tablePath } from "./api.js";
import { h, keyed, measured, say, set, whole } from "./dom.js";
import { tableHead } from "./table.js";
import { imageOf, isImage, layoutChoices, valueOf } from "./values.js";

const LIMIT = 20;
const FINAL = 8;

export function rows(name) {
  const asked = new URLSearchParams(location.hash.split("?")[1] ?? "");
  const state = { start: asked.has("start") ? Number(asked.get("start")) : null, order: asked.get("order") === "oldest" ? "oldest" : "newest" };
  const head = tableHead(name, "rows");
  const order = h("select", { id: "order" }, h("option", { value: "newest" }, "newest first"), h("option", { value: "oldest" }, "oldest first"));
  const go = h("input", { type: "number", min: 0, id: "go", size: 9, "aria-label": "row id to go to", placeholder: "row id" });
  const where = h("p", { class: "faint", role: "status" });
  const buttons = {};
  const turn = (key, text, label, act) => (buttons[key] = h("button", { type: "button", "aria-label": label, "data-turn": key, onclick: act }, text));
  const choices = h("span", { class: "tools" });
  const list = h("div", { class: "stack" });
  const layouts = new Map();
  let page = null;
  let fields = null;
  const move = (start) => {
    state.start = start;
    return view.refresh();
  };
  const step = (times) => {
    const edge = times > 0 ? page.rows[page.rows.length - 1]?.row_id : page.rows[0]?.row_id;
    if (edge === undefined) return move(null);
    const sign = state.order === "newest" ? -1 : 1;
    const start = times > 0 ? edge + sign : edge - sign * LIMIT;
    return move(start < page.oldest || start >= page.end ? null : start);
  };
  const tools = h("div", { class: "tools" },
    h("label", {}, "Order", order),
    turn("first", "⇤ First", "first page", () => move(null)), turn("previous", "← Previous", "previous page", () => step(-1)), turn("next", "Next →", "next page", () => step(1)),
    h("label", {}, "Go to", go), choices);
  order.value = state.order;
  order.addEventListener("change", () => {
    state.order = order.value;
    move(null);
  });
  go.addEventListener("change", () => go.value !== "" && move(Number(go.value)));

  const view = {
    title: `${name}: rows`,
    root: h("div", { class: "stack" }, head.root, tools, where, list),
    async refresh() {
      const described = await ask(tablePath(name), { since: 1e12 });
      head.update(described.table);
      if (described.error) return described;
      page = await ask(tablePath(name, "/rows"), { start: state.start, order: state.order, limit: LIMIT });
      if (JSON.stringify(fields) !== JSON.stringify(described.table.fields)) {
        fields = described.table.fields;
        choices.replaceChildren(...layoutChoices(fields, layouts, () => view.refresh()));
      }
      keyed(list, page.rows, (row) => `${page.generation} ${row.row_id} ${JSON.stringify(fields)}`, (row) => rowCard(name, page.generation, fields, row, layouts));
      sayWhere(where, page, state);
      const [first, last] = [page.rows[0]?.row_id, page.rows[page.rows.length - 1]?.row_id];
      const [near, far] = state.order === "newest" ? [page.end - 1, page.oldest] : [page.oldest, page.end - 1];
      buttons.next.disabled = last === undefined || last === far;
      buttons.previous.disabled = buttons.first.disabled = first === undefined || first === near || state.start === null;
      return described;
    },
  };
  return view;
}

function sayWhere(where, page, state) {
  const ids = page.rows.map((row) => row.row_id);
  const live = state.start === null && state.order === "newest" ? " The newest come by themselves." : "";
  if (!ids.length) say(where, "The table is empty.");
  else say(where, `Rows ${whole(Math.min(...ids))} to ${whole(Math.max(...ids))}, of those from ${whole(page.oldest)} to ${whole(page.end - 1)} that are stored.${live}`);
}

function rowCard(table, generation, fields, row, layouts) {
  const source = { table, generation, row: row.row_id };
  const title = `row-${row.row_id}`;
  const head = h("div", { class: "head" }, h("h2", { id: title }, `Row ${whole(row.row_id)}`), h("span", { class: "faint small" }, `slot ${whole(row.slot)}`));
  const priority = h("span", { class: "small", "data-priority": "" });
  const isFinal = Boolean(row.step_kind & FINAL);
  if (row.episode_id !== undefined) {
    head.append(h("a", { class: "small", href: `#/table/${encodeURIComponent(table)}/episode/${row.episode_id}` }, `episode ${row.episode_id}`),
      h("span", { class: "faint small" }, isFinal ? "final observation" : `step ${whole(row.step)}`));
  }
  head.append(priority);
  const images = fields.filter(isImage).map((field) => [field, imageOf(field)]);
  const values = fields.filter((field) => !isImage(field)).map((field) => [field, valueOf(field, source)]);
  const root = h("article", { class: "card row", "data-row": row.row_id, "aria-labelledby": title }, head,
    h("div", { class: "content" },
      images.length ? h("div", { class: "pictures" }, ...images.map(([, image]) => image.root)) : null,
      values.length ? h("dl", { class: "values" }, ...values.map(([, value]) => value.root)) : null));
  return {
    root,
    update(now) {
      if (now.priority !== undefined) {
        say(priority, `priority ${measured(now.priority)}`);
        set(priority, "data-priority", now.priority);
      }
      for (const [field, value] of values) value.update?.(now.values[field.name]);
      for (const [field, image] of images) image.update(source, layouts.get(field.name) ?? field.layouts[0]);
    },
  };
}
