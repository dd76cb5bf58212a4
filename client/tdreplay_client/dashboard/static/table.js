// One table: what it is like, over the last minutes too, its settings, its schema, and histograms.

import { ask, Points, tablePath } from "./api.js";
import { curves, histogram } from "./charts.js";
import { bar, bytes, figures, h, keyed, measured, say, set, shape, whole } from "./dom.js";
import { percent, sayRates, sayWaits, settings } from "./overview.js";

const HISTOGRAM_SECONDS = 3;

// The heading and the tabs of all pages of a table.
export function tableHead(name, current) {
  const path = `#/table/${encodeURIComponent(name)}`;
  const chips = h("div", { class: "chips" });
  const tab = (text, rest, key) => h("a", { href: `${path}${rest}`, "aria-current": key === current ? "page" : null }, text);
  const steps = tab("Episodes", "/episodes", "episodes");
  steps.hidden = current !== "episodes";
  const root = h("div", { class: "stack" },
    h("div", { class: "head" }, h("h1", {}, name), chips),
    h("nav", { class: "tabs", "aria-label": "Table" }, tab("Table", "", "table"), tab("Rows", "/rows", "rows"), steps));
  return {
    root,
    update(table) {
      keyed(chips, settings(table), (text) => text, (text) => ({ root: h("span", { class: "chip" }, text) }));
      steps.hidden = !table.config.trajectories;
    },
  };
}

export function table(name) {
  const head = tableHead(name, "table");
  const fill = bar();
  const now = figures([["size", "Rows stored"], ["share", "Filled"], ["insert_rate", "Inserted", "insert"], ["sample_rate", "Sampled", "sample"], ["replay_ratio", "Replay ratio"],
    ["insert_count", "Inserted in all"], ["sample_count", "Sampled in all"]]);
  const steps = figures([["episodes", "Episodes stored"], ["open_episodes", "Open or abandoned"], ["steps", "Steps stored"], ["transitions", "Transitions"], ["episode_return", "Return, last 100"], ["episode_length", "Length, last 100"]]);
  const ofSteps = h("section", { class: "card" }, h("h2", {}, "Episodes"), steps.root);
  const waits = h("p");
  const rates = [
    curves("Rates", "rows/s", [{ key: "insert_rate", name: "inserted", kind: "insert" }, { key: "sample_rate", name: "sampled", kind: "sample" }]),
    curves("Replay ratio", "samples per insert", [{ key: "replay_ratio", name: "replay ratio", kind: "ratio" }]),
    curves("Rows stored", "rows", [{ key: "size", name: "rows", kind: "fill" }]),
    curves("Waiting calls", "calls", [{ key: "inserts_waiting", name: "inserts", kind: "insert" }, { key: "samples_waiting", name: "samples", kind: "sample" }], { counted: true }),
  ];
  const sampled = h("p", { class: "faint small" });
  const shown = h("div", { class: "histograms" });
  const facts = h("dl", { class: "facts" });
  const schema = schemaList();
  const root = h("div", { class: "stack" }, head.root,
    h("section", { class: "card stack" }, h("h2", { class: "hidden-text" }, "Now"), now.root, fill.root, waits), ofSteps,
    h("h2", {}, "The last minutes"), h("div", { class: "charts" }, ...rates.map((chart) => h("div", { class: "card" }, chart.root))),
    h("h2", {}, "What the rows are like"), sampled, shown,
    h("div", { class: "pair" }, h("section", { class: "card" }, h("h2", {}, "Settings"), facts), schema.root));
  const points = new Points();
  let histogramsAt = 0;

  async function refreshHistograms() {
    histogramsAt = Date.now();
    const found = await ask(tablePath(name, "/histograms"));
    const fields = [...found.fields, ...(found.of_episodes?.fields ?? [])].sort((one, other) => place(one) - place(other));
    keyed(shown, fields, (one) => `${one.what} ${one.field}`, (one) => histogram(titleOf(one), kindOf(one), one.what.startsWith("episode") ? "episodes" : "rows"));
    say(sampled, sampleWords(found));
    set(sampled, "data-sampled", found.sampled);
  }

  return {
    title: name,
    root,
    async refresh() {
      const state = await ask(tablePath(name), { since: points.since });
      const described = state.table;
      head.update(described);
      fill.set(described.size / described.buffer_size);
      sayNow(now, described);
      sayRates(now, described);
      sayWaits(waits, described);
      sayEpisodes(steps, ofSteps, described.trajectories);
      const columns = points.add(described.points, state.now, state.seconds);
      for (const chart of rates) chart.update(columns, state.now, state.seconds);
      sayFacts(facts, described);
      schema.update(described);
      if (!state.error && Date.now() - histogramsAt > 1000 * HISTOGRAM_SECONDS) await refreshHistograms();
      return state;
    },
  };
}

function sayNow(now, table) {
  now.set("size", whole(table.size), table.size);
  now.set("share", percent(table.size / table.buffer_size), table.size / table.buffer_size);
  now.set("insert_count", whole(table.insert_count), table.insert_count);
  now.set("sample_count", whole(table.sample_count), table.sample_count);
}

function sayEpisodes(steps, card, state) {
  card.hidden = !state;
  if (!state) return;
  for (const key of ["episodes", "open_episodes", "steps", "transitions"]) steps.set(key, whole(state[key]), state[key]);
  for (const key of ["episode_return", "episode_length"]) {
    const { count, mean, std } = state[key];
    steps.set(key, count ? measured(mean) : "–", count ? mean : "", count ? `± ${measured(std)}` : "");
  }
}

function sampleWords(found) {
  if (!found.sampled && !found.fields.length) return "The table is empty.";
  const left = found.left_out ? ` (${whole(found.left_out)} final observations among the rows drawn are left out)` : "";
  const episodes = found.of_episodes ? ` Returns and lengths: of the newest ${whole(found.of_episodes.episodes)} episodes that ended and are stored whole.` : "";
  const more = found.more_fields ? ` ${whole(found.more_fields)} more fields have no histogram.` : "";
  return `Of ${whole(found.sampled)} rows, drawn at random from the ${whole(found.stored)} that are stored${left}.${episodes}${more}`;
}

const ORDER = ["episode_return", "episode_length", "priority", "age"];

function place(one) {
  if (one.what === "field") return /(^|\.)reward$/.test(one.field) ? -1 : ORDER.length;
  return ORDER.indexOf(one.what);
}

function titleOf(one) {
  return { episode_return: "episode return", episode_length: "episode length (steps)", age: "age (rows since)" }[one.what] ?? one.field;
}

function kindOf(one) {
  return { priority: "ratio", age: "fill", episode_return: "sample", episode_length: "sample" }[one.what] ?? "insert";
}

function sayFacts(facts, table) {
  const steps = table.config.trajectories;
  const entries = [
    ["capacity", `${whole(table.buffer_size)} rows`],
    ["sampler", table.sampler],
    ["rate limiter", table.rate_limiter],
    ["max_times_sampled", table.config.max_times_sampled || "0 (any number of times)"],
    ["trajectories", steps ? `ends ${steps.ends.join(", ")}; observation ${steps.final_fields.join(", ")}; reward ${steps.reward ?? "none"}` : "no: rows are no steps"],
    ["row ids", `${whole(table.oldest)} to ${whole(table.write_count)}, the last one not included; next slot ${whole(table.pointer)}`],
    ["available", whole(table.available)],
    ["leased", whole(table.leased)],
    ["priorities", `${whole(table.updated)} updated, ${whole(table.stale)} stale`],
    ["time waited", `inserts ${measured(table.inserts.seconds)} s, samples ${measured(table.samples.seconds)} s, all calls together`],
    ["rows lie on", table.storing_device],
    ["durability", table.durability],
    ["generation", table.generation_id],
  ];
  keyed(facts, entries.flatMap(([key, text]) => [["dt", key, key], ["dd", key, text]]), ([tag, key]) => `${tag} ${key}`, ([tag]) => {
    const root = h(tag);
    return { root, update: ([, , text]) => say(root, text) };
  });
}

function schemaList() {
  const body = h("tbody");
  const total = h("p", { class: "faint small" });
  const root = h("section", { class: "card" }, h("h2", {}, "Schema"), total, h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Schema" },
    h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Field"), h("th", { scope: "col" }, "Type"), h("th", { scope: "col", class: "number" }, "Bytes a row"))), body)));
  return {
    root,
    update(table) {
      say(total, table.fields.length ? `${bytes(table.row_bytes)} a row.` : "No row was ever stored: the first ones fix the schema.");
      keyed(body, table.fields, (field) => `${field.name} ${shape(field)}`, (field) => ({
        root: h("tr", {}, h("td", { class: "mono" }, field.name), h("td", {}, shape(field)), h("td", { class: "number" }, whole(field.bytes))),
      }));
    },
  };
}
