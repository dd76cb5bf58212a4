// What the page asks the dashboard for. An answer that is a refusal becomes an error with the words of the dashboard.

export class Refusal extends Error {
  constructor(words, status) {
    super(words);
    this.status = status;
  }
}

export async function ask(path, parameters = {}) {
  let answer;
  try {
    answer = await fetch(address(path, parameters), { cache: "no-store" });
  } catch {
    throw new Refusal("The dashboard itself does not answer. Is it still running?", 0);
  }
  const said = await answer.json().catch(() => ({ error: `The dashboard answered with status ${answer.status}.` }));
  if (!answer.ok) throw new Refusal(said.error, answer.status);
  return said;
}

export function address(path, parameters = {}) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== ""));
  return query.size ? `api/${path}?${query}` : `api/${path}`;
}

export function tablePath(table, rest = "") {
  return `tables/${encodeURIComponent(table)}${rest}`;
}

// The points of a table over the last minutes: what came before stays here, and only the newer ones are asked for.
export class Points {
  constructor() {
    this.columns = null;
  }

  get since() {
    const times = this.columns?.time ?? [];
    return times.length ? times[times.length - 1] : 0;
  }

  add(newer, now, seconds) {
    if (this.columns === null) this.columns = Object.fromEntries(Object.keys(newer).map((name) => [name, []]));
    for (const [name, values] of Object.entries(newer)) this.columns[name].push(...values);
    const first = this.columns.time.findIndex((time) => time >= now - seconds);
    const gone = first < 0 ? this.columns.time.length : first;
    if (gone) for (const values of Object.values(this.columns)) values.splice(0, gone);
    return this.columns;
  }
}
