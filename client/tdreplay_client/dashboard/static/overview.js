// All tables of the server, and its clients.

import { ask, Points } from "./api.js";
import { curves } from "./charts.js";
import { bar, bytes, duration, figures, h, keyed, measured, say, set, whole } from "./dom.js";

export function overview() {
  const server = figures([["tables", "Tables"], ["rows", "Rows"], ["inserts", "Inserted", "insert"], ["samples", "Sampled", "sample"],
    ["clients", "Clients"], ["memory", "Memory"], ["disk", "Disk free"], ["uptime", "Up for"], ["version", "Version"]]);
  const said = h("p", { class: "faint small" });
  const cards = h("div", { class: "cards" });
  const empty = h("p", { class: "faint" }, "The server has no table yet. The first client that names one creates it.");
  const more = h("p", { class: "faint small" });
  const clients = clientList();
  const root = h("div", { class: "stack" },
    h("section", { class: "card" }, h("h1", { class: "hidden-text" }, "Overview"), server.root, said),
    h("h2", {}, "Tables"), empty, cards, more, clients.root);
  const points = new Map();

  return {
    title: "Overview",
    root,
    async refresh() {
      const since = Math.min(...[...points.values()].map((known) => known.since), Infinity);
      const state = await ask("overview", { since: Number.isFinite(since) ? since : 0 });
      sayServer(server, said, state);
      keyed(cards, state.tables, (table) => table.table, (table) => card(table, points));
      for (const name of points.keys()) if (!state.tables.some((table) => table.table === name)) points.delete(name);
      for (const table of state.tables) cards.parts.get(table.table).points(table, state);
      empty.hidden = state.tables.length > 0 || Boolean(state.error);
      say(more, state.more_tables ? `${whole(state.more_tables)} more tables are not looked at.` : "");
      clients.update(state.server);
      return state;
    },
  };
}

function sayServer(server, said, state) {
  const total = (name) => state.tables.reduce((sum, table) => sum + table[name], 0);
  const own = state.server;
  server.set("tables", whole(state.tables.length + state.more_tables), state.tables.length + state.more_tables);
  server.set("rows", whole(total("size")), total("size"));
  server.set("inserts", measured(total("insert_rate")), total("insert_rate"), "rows/s");
  server.set("samples", measured(total("sample_rate")), total("sample_rate"), "rows/s");
  server.set("clients", own.refused ? "–" : whole(own.clients.length + own.more_clients), own.clients.length);
  server.set("memory", own.memory_bytes ? bytes(own.memory_bytes) : "–", own.memory_bytes ?? "");
  server.set("disk", own.disk_free_bytes ? bytes(own.disk_free_bytes) : "–", own.disk_free_bytes ?? "");
  server.set("uptime", own.uptime_seconds ? duration(own.uptime_seconds) : "–", own.uptime_seconds ?? "");
  server.set("version", own.version || "–", own.version ?? "");
  say(said, own.refused ? `The server does not say more of itself: ${own.refused}` : own.shard ? `This server is ${own.shard}.` : "");
}

function card(table, points) {
  const link = h("a", { href: `#/table/${encodeURIComponent(table.table)}` }, table.table);
  const chips = h("div", { class: "chips" });
  const fill = bar();
  const stored = h("p", { class: "small faint" });
  const rates = figures([["insert_rate", "Inserted", "insert"], ["sample_rate", "Sampled", "sample"], ["replay_ratio", "Replay ratio"]]);
  const waits = h("p", { class: "small" });
  const chart = curves(null, "rows/s", [{ key: "insert_rate", name: "inserted", kind: "insert" }, { key: "sample_rate", name: "sampled", kind: "sample" }], { height: 120 });
  const root = h("article", { class: "card stack table-card", "data-table": table.table },
    h("h2", {}, link), chips, h("div", {}, fill.root, stored), rates.root, waits, chart.root);
  const known = new Points();
  points.set(table.table, known);
  return {
    root,
    update(now) {
      keyed(chips, settings(now), (text) => text, (text) => ({ root: h("span", { class: "chip" }, text) }));
      fill.set(now.size / now.buffer_size);
      set(stored, "data-size", now.size);
      say(stored, `${whole(now.size)} of ${whole(now.buffer_size)} rows (${percent(now.size / now.buffer_size)})`);
      sayRates(rates, now);
      sayWaits(waits, now);
    },
    points(now, state) {
      const since = known.since;
      const newer = now.points.time.findIndex((time) => time > since);
      const columns = Object.fromEntries(Object.entries(now.points).map(([name, values]) => [name, newer < 0 ? [] : values.slice(newer)]));
      chart.update(known.add(columns, state.now, state.seconds), state.now, state.seconds);
    },
  };
}

export function settings(table) {
  const kinds = [table.sampler];
  if (table.config.rate_limiter.name !== "none") kinds.push(table.rate_limiter);
  if (table.config.max_times_sampled) kinds.push(`leaves after ${table.config.max_times_sampled === 1 ? "1 draw" : `${table.config.max_times_sampled} draws`}`);
  if (table.config.trajectories) kinds.push("trajectories");
  return kinds;
}

export function percent(share) {
  return `${share > 0 && share < 0.1 ? (100 * share).toFixed(1) : Math.floor(100 * share)} %`;
}

export function sayRates(rates, table) {
  rates.set("insert_rate", measured(table.insert_rate), table.insert_rate, "rows/s");
  rates.set("sample_rate", measured(table.sample_rate), table.sample_rate, "rows/s");
  rates.set("replay_ratio", measured(table.replay_ratio), table.replay_ratio);
}

export function sayWaits(waits, table) {
  const sides = [["insert", "inserts"], ["sample", "samples"]].filter(([, side]) => table[side].waiting);
  waits.className = sides.length ? "small waits" : "small faint";
  const words = sides.map(([one, side]) => {
    const many = table[side].waiting;
    return `${whole(many)} ${many === 1 ? `${one} waits` : `${side} wait`}${table[side].waits_for ? `: ${table[side].waits_for}` : ""}`;
  });
  say(waits, words.join(" · ") || "nobody waits");
}

function clientList() {
  const body = h("tbody");
  const root = h("section", { class: "card", hidden: true }, h("h2", {}, "Clients"), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Clients" },
    h("table", {}, h("thead", {}, h("tr", {}, ...["Peer", "Name", "Roles", "Open calls"].map((text) => h("th", { scope: "col" }, text)),
      ...["Connected", "Received", "Sent"].map((text) => h("th", { scope: "col", class: "number" }, text)))), body)));
  return {
    root,
    update(server) {
      root.hidden = !server.clients.length;
      keyed(body, server.clients, (client) => client.peer, () => {
        const cells = ["", "", "", "", "number", "number", "number"].map((kind) => h("td", { class: kind }));
        return {
          root: h("tr", {}, ...cells),
          update(client) {
            const calls = Object.entries(client.open_calls).map(([name, count]) => (count > 1 ? `${count} ${name}` : name)).sort().join(", ");
            const texts = [client.peer, client.name || "–", client.roles.join(", ") || "–", calls || "–", duration(client.connected_seconds), bytes(client.bytes_received), bytes(client.bytes_sent)];
            texts.forEach((text, at) => say(cells[at], text));
          },
        };
      });
    },
  };
}
