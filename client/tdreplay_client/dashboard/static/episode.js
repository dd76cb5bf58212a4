// One episode: its rewards as a curve, its frames as a film, and its steps.

import { ask, tablePath } from "./api.js";
import { stepCurve } from "./charts.js";
import { figures, h, keyed, measured, say, set, whole } from "./dom.js";
import { tableHead } from "./table.js";
import { imageAddress, imageOf, isImage, layoutChoices, valueOf } from "./values.js";

const SPEEDS = [1, 2, 5, 10, 20, 30, 60];
const AHEAD = 8;
const SHOWN = 100; // Steps of the list, around the one that is shown.

export function episode(name, id) {
  const head = tableHead(name, "episodes");
  const facts = figures([["steps", "Steps stored"], ["return", "Return of these"], ["ended", "Ended"], ["first", "First step"]]);
  const pictures = h("div", { class: "pictures" });
  const choices = h("div", { class: "tools" });
  const values = h("dl", { class: "values" });
  const at = h("p", { class: "small", role: "status" });
  const play = h("button", { type: "button", id: "play" }, "▶ Play");
  const back = h("button", { type: "button", "aria-label": "step back" }, "‹");
  const on = h("button", { type: "button", "aria-label": "step forward" }, "›");
  const speed = h("select", {}, ...SPEEDS.map((steps) => h("option", { value: steps }, `${steps} steps/s`)));
  const slider = h("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "step" });
  const film = h("div", { class: "card stack screen" }, pictures, choices,
    h("div", { class: "controls" }, slider, back, play, on, h("label", {}, h("span", { class: "hidden-text" }, "Speed"), speed)), at,
    h("p", { class: "faint small" }, "Space plays and pauses, ← and → step, Home and End go to the ends."));
  const curve = stepCurve("Reward", "by step", (step) => show(step));
  const body = h("tbody");
  const titles = h("tr");
  const list = h("div", { class: "card steps", tabindex: 0, role: "region", "aria-label": "Steps" }, h("table", {}, h("thead", {}, titles), body));
  const root = h("div", { class: "stack" }, head.root, h("h2", {}, `Episode ${id}`), h("section", { class: "card" }, facts.root),
    h("div", { class: "player" }, film, h("div", { class: "stack" }, h("div", { class: "card" }, curve.root),
      h("section", { class: "card" }, h("h2", {}, "This step"), values))), h("h2", {}, "Steps"), list);
  const layouts = new Map();
  let known = null;
  let fields = [];
  let images = [];
  let terms = [];
  let cursor = 0;
  let playing = 0;
  speed.value = 10;

  const length = () => (known ? known.row_id.length + (known.final_row_id === null ? 0 : 1) : 0);
  const rowAt = (place) => (place < known.row_id.length ? known.row_id[place] : known.final_row_id);
  const sourceAt = (place) => ({ table: name, generation: known.generation, row: rowAt(place) });

  function show(place) {
    cursor = Math.max(0, Math.min(length() - 1, place));
    slider.value = cursor;
    const final = cursor >= known.row_id.length;
    for (const [field, image] of images) image.update(sourceAt(cursor), layouts.get(field.name) ?? field.layouts[0]);
    say(at, final ? "the final observation" : `step ${whole(known.step[cursor])} of ${whole(known.step[known.step.length - 1])}, row ${whole(rowAt(cursor))}`);
    set(slider, "aria-valuetext", at.textContent);
    curve.move(Math.min(cursor, known.row_id.length - 1));
    sayValues(final);
    sayList();
    root.dataset.step = cursor;
  }

  // A vector is loaded when it is unfolded, so each step has terms of its own.
  function sayValues(final) {
    const now = known.values[cursor] ?? {};
    terms = fields.filter((field) => !isImage(field)).map((field) => [field, valueOf(field, sourceAt(cursor))]);
    for (const [field, term] of terms) term.update?.(final ? undefined : now[field.name]);
    values.replaceChildren(...terms.map(([, term]) => term.root));
  }

  function sayList() {
    const first = Math.max(0, Math.min(cursor - SHOWN / 2, known.row_id.length - SHOWN));
    const shown = known.row_id.slice(first, first + SHOWN).map((row, offset) => first + offset);
    keyed(body, shown, (place) => `${known.generation} ${known.row_id[place]}`, (place) => stepLine(place, known, columns(), show));
    for (const line of body.children) set(line, "aria-current", Number(line.dataset.place) === cursor ? "step" : null);
    const current = body.querySelector("[aria-current]");
    if (current && playing === 0 && list.contains(document.activeElement) === false) {
      const space = list.clientHeight;
      if (current.offsetTop < list.scrollTop + 40 || current.offsetTop > list.scrollTop + space - 40) list.scrollTop = current.offsetTop - space / 2;
    }
  }

  function columns() {
    const there = known.values[0] ?? {};
    const names = Object.keys(there);
    return names.sort((one, other) => rank(one, known.reward) - rank(other, known.reward) || one.localeCompare(other));
  }

  function tick() {
    if (cursor >= length() - 1) {
      pause();
      return;
    }
    preload();
    show(cursor + 1);
    playing = setTimeout(tick, 1000 / Number(speed.value));
  }

  function preload() {
    for (let place = cursor + 2; place < Math.min(cursor + 2 + AHEAD, length()); place += 1) {
      for (const [field] of images) new Image().src = imageAddress(field, sourceAt(place), layouts.get(field.name) ?? field.layouts[0]);
    }
  }

  function pause() {
    clearTimeout(playing);
    playing = 0;
    say(play, "▶ Play");
    set(play, "aria-pressed", "false");
  }

  function toggle() {
    if (playing) return pause();
    if (!known) return undefined;
    if (cursor >= length() - 1) show(0);
    say(play, "❚❚ Pause");
    set(play, "aria-pressed", "true");
    playing = setTimeout(tick, 1000 / Number(speed.value));
    return undefined;
  }

  function step(by) {
    pause();
    if (known) show(cursor + by);
  }

  play.addEventListener("click", toggle);
  back.addEventListener("click", () => step(-1));
  on.addEventListener("click", () => step(1));
  slider.addEventListener("input", () => {
    pause();
    if (known) show(Number(slider.value));
  });

  const keys = (event) => {
    const own = event.target.closest?.("select, input, a, .numbers, .steps, svg");
    if (event.ctrlKey || event.altKey || event.metaKey || own) return;
    const acts = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), Home: () => step(-Infinity), End: () => step(Infinity) };
    if (event.key === " " && event.target.tagName !== "BUTTON") acts[" "] = toggle;
    if (!acts[event.key]) return;
    event.preventDefault();
    acts[event.key]();
  };
  document.addEventListener("keydown", keys);

  return {
    title: `${name}: episode ${id}`,
    root,
    close() {
      pause();
      document.removeEventListener("keydown", keys);
    },
    get seconds() {
      return known && known.ended ? 5 : 1.5;
    },
    async refresh() {
      const described = await ask(tablePath(name), { since: 1e12 });
      head.update(described.table);
      if (described.error || playing) return described;
      const found = await ask(tablePath(name, `/episodes/${id}`));
      const first = known === null;
      const changed = first || found.row_id.length !== known.row_id.length || found.row_id[0] !== known.row_id[0] || found.final_row_id !== known.final_row_id;
      const row = first ? null : rowAt(cursor);
      known = found;
      if (JSON.stringify(fields) !== JSON.stringify(described.table.fields)) {
        fields = described.table.fields;
        images = fields.filter(isImage).map((field) => [field, imageOf(field)]);
        pictures.replaceChildren(...images.map(([, image]) => image.root));
        choices.replaceChildren(...layoutChoices(fields, layouts, () => show(cursor)));
      }
      if (changed) {
        sayFacts(facts, known);
        slider.max = length() - 1;
        titles.replaceChildren(...["Step", "Row", ...columns()].map((text) => h("th", { scope: "col" }, text)));
        curve.update(rewards(known));
        show(first ? 0 : Math.max(0, known.row_id.indexOf(row)));
      }
      return described;
    },
  };
}

function rank(name, reward) {
  return name === reward ? 0 : /(^|\.)action/.test(name) ? 1 : 2;
}

function rewards(known) {
  if (!known.reward || known.values[0]?.[known.reward] === undefined) return [];
  return known.values.map((one, place) => {
    const value = one[known.reward];
    const number = Array.isArray(value) ? value[0] : value;
    return { step: known.step[place], value: typeof number === "number" ? number : null, text: measured(number) };
  });
}

function sayFacts(facts, known) {
  const sum = rewards(known).reduce((total, one) => total + (one.value ?? 0), 0);
  facts.set("steps", whole(known.row_id.length), known.row_id.length);
  facts.set("return", known.reward ? measured(sum) : "–", sum);
  facts.set("ended", known.ended || "not yet", known.ended);
  facts.set("first", whole(known.step[0] ?? 0), known.step[0] ?? 0);
}

function stepLine(place, known, names, show) {
  const value = known.values[place];
  const text = (one) => (Array.isArray(one) ? `[${one.map(measured).join(", ")}${one.length >= 8 ? ", …" : ""}]` : String(one));
  const go = h("button", { type: "button", class: "link", onclick: () => show(place) }, whole(known.step[place]));
  return {
    root: h("tr", { "data-place": place }, h("td", {}, go), h("td", {}, whole(known.row_id[place])), ...names.map((name) => h("td", { "data-field": name }, text(value[name])))),
  };
}
