// The list of a table's episodes, the newest first.

import { ask, tablePath } from "./api.js";
import { h, keyed, measured, say, set, whole } from "./dom.js";
import { tableHead } from "./table.js";

const LIMIT = 50;

export function episodes(name) {
  const head = tableHead(name, "episodes");
  const where = h("p", { class: "faint", role: "status" });
  const body = h("tbody");
  let offset = 0;
  let listed = 0;
  const move = (to) => {
    offset = Math.max(0, to);
    return view.refresh();
  };
  const newer = h("button", { type: "button", onclick: () => move(offset - LIMIT) }, "← Newer");
  const older = h("button", { type: "button", onclick: () => move(offset + LIMIT) }, "Older →");
  const columns = [["Episode", ""], ["Steps stored", "number"], ["First step", "number"], ["Return", "number"], ["Ended", ""], ["Final observation", ""]];
  const list = h("div", { class: "card scroll", tabindex: 0, role: "region", "aria-label": "Episodes" },
    h("table", {}, h("thead", {}, h("tr", {}, ...columns.map(([text, kind]) => h("th", { scope: "col", class: kind }, text)))), body));
  const view = {
    title: `${name}: episodes`,
    root: h("div", { class: "stack" }, head.root, h("div", { class: "tools" }, newer, older, where), list),
    async refresh() {
      const described = await ask(tablePath(name), { since: 1e12 });
      head.update(described.table);
      if (described.error) return described;
      const page = await ask(tablePath(name, "/episodes"), { offset, limit: LIMIT });
      listed = page.listed;
      keyed(body, page.episodes, (one) => one.episode_id, (one) => line(name, one));
      newer.disabled = offset === 0;
      older.disabled = offset + LIMIT >= listed;
      const stored = described.table.trajectories?.episodes ?? listed;
      const all = stored > listed ? ` Only the newest ${whole(listed)} are listed.` : "";
      say(where, listed ? `Episodes ${whole(offset + 1)} to ${whole(offset + page.episodes.length)}, the newest first, of ${whole(Math.max(stored, listed))} that are stored.${all}` : "No episode is stored.");
      return described;
    },
  };
  return view;
}

function line(table, episode) {
  const cells = ["number", "number", "number", "", ""].map((kind) => h("td", { class: kind }));
  const link = h("a", { class: "mono", href: `#/table/${encodeURIComponent(table)}/episode/${episode.episode_id}` }, episode.episode_id);
  return {
    root: h("tr", { "data-episode": episode.episode_id }, h("td", {}, link), ...cells),
    update(now) {
      const texts = [whole(now.steps), whole(now.first_step), now.episode_return === null ? "–" : measured(now.episode_return), now.ended || "open", now.has_final ? "yes" : "no"];
      texts.forEach((text, at) => say(cells[at], text));
      set(cells[2], "data-value", now.episode_return);
    },
  };
}
