// Curves over the last minutes, and histograms: drawn as SVG at the size that they have, with axes, units, and values under the pointer.

import { h, measured, say, set, svg, whole } from "./dom.js";

const LEFT = 46, RIGHT = 10, TOP = 8, BOTTOM = 22;
const GAP_SECONDS = 4; // Longer times without a point are a gap in the curve.

// A figure with a caption, whose drawing follows its width. `draw(width)` draws; `spots()` are the x of what can be pointed at; `tell(at)` says it.
function frame(title, height, legend, label) {
  const drawing = svg("svg", { role: "img", tabindex: 0, height });
  const tip = h("div", { class: "tip", hidden: true });
  const root = h("figure", { class: "chart" }, h("figcaption", {}, title ? h("h3", {}, title) : null, legend), drawing, tip);
  const chart = { root, drawing, tip, width: 0, height, at: null, draw: () => {}, spots: () => [], tell: () => "" };
  set(drawing, "aria-label", label || "curve");
  new ResizeObserver(() => {
    const width = Math.round(drawing.clientWidth || drawing.parentNode.clientWidth);
    if (width && width !== chart.width) {
      chart.width = width;
      set(drawing, "viewBox", `0 0 ${width} ${height}`);
      chart.draw();
    }
  }).observe(root);
  pointing(chart);
  return chart;
}

function pointing(chart) {
  const point = (at) => {
    const spots = chart.spots();
    chart.at = at === null || !spots.length ? null : Math.max(0, Math.min(spots.length - 1, at));
    chart.tip.hidden = chart.at === null;
    chart.mark?.();
    if (chart.at === null) return;
    say(chart.tip, chart.tell(chart.at));
    const x = spots[chart.at];
    chart.tip.style.top = `${chart.drawing.offsetTop - 6}px`;
    const room = chart.root.clientWidth - chart.tip.offsetWidth;
    chart.tip.style.left = `${Math.max(0, Math.min(room, x - chart.tip.offsetWidth / 2))}px`;
  };
  chart.point = point;
  chart.drawing.addEventListener("pointermove", (event) => {
    const x = event.clientX - chart.drawing.getBoundingClientRect().left;
    const spots = chart.spots();
    let nearest = null;
    for (let at = 0; at < spots.length; at += 1) {
      if (nearest === null || Math.abs(spots[at] - x) < Math.abs(spots[nearest] - x)) nearest = at;
    }
    point(nearest);
  });
  chart.drawing.addEventListener("pointerleave", () => point(null));
  chart.drawing.addEventListener("blur", () => point(null));
  chart.drawing.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (event.key === "Escape") point(null);
    if (step === undefined) return;
    event.preventDefault();
    point(chart.at === null ? (step < 0 ? Infinity : 0) : chart.at + step);
  });
}

// -- axes -------------------------------------------------------------------------------------------------------------------------------------

export function niceTicks(least, greatest, count) {
  const rough = (greatest - least) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((times) => times * power).find((size) => size >= rough * 0.999);
  const ticks = [];
  if (!(greatest - least > Math.abs(greatest) * 1e-12)) return [least]; // Too close together to tell them apart.
  for (let tick = Math.ceil(least / step - 1e-9) * step; tick <= greatest + step * 1e-9 && ticks.length < 50; tick += step) ticks.push(Math.abs(tick) < step * 1e-9 ? 0 : tick);
  return ticks;
}

// From 0 to a tick that is not below `highest`. `counted`: whole numbers alone.
function ticksAbove(highest, counted = false) {
  const ticks = niceTicks(0, highest || 1, 3).filter((tick) => !counted || Number.isInteger(tick));
  const step = ticks.length > 1 ? ticks[1] - ticks[0] : 1;
  while (ticks[ticks.length - 1] < highest * (1 - 1e-9) && ticks.length < 50) ticks.push(ticks[ticks.length - 1] + step);
  return ticks;
}

function short(value) {
  return plain(Math.abs(value)).replace(/^/, value < 0 ? "−" : "");
}

function plain(value) {
  const size = value;
  if (size >= 1e15) return value.toExponential(1);
  for (const [from, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= from) return `${Number((value / (letter === "k" ? 1e3 : from)).toPrecision(3))}${letter}`;
  }
  return size && size < 1e-3 ? value.toExponential(0) : String(Number(value.toPrecision(4)));
}

function vertical(chart, ticks, y) {
  return ticks.flatMap((tick) => [
    svg("line", { class: "grid", x1: LEFT, x2: chart.width - RIGHT, y1: y(tick), y2: y(tick) }),
    svg("text", { x: LEFT - 7, y: y(tick) + 4, "text-anchor": "end" }, short(tick)),
  ]);
}

function horizontal(chart, ticks, x, text) {
  return ticks.map((tick, at) =>
    svg("text", { x: x(tick), y: chart.height - 5, "text-anchor": at === ticks.length - 1 && x(tick) > chart.width - 34 ? "end" : "middle" }, text(tick)),
  );
}

// -- curves over time -------------------------------------------------------------------------------------------------------------------------

// `series`: [{key, name, kind}]. update(columns, now, seconds): columns.time in seconds since 1970, and one column for each key.
export function curves(title, unit, series, { height = 150, counted = false } = {}) {
  const named = series.length > 1 ? series : []; // The title names a single one.
  const legend = h("span", { class: "legend" }, ...named.map((one) => h("span", {}, h("i", { class: `${one.kind}-line` }), one.name)), h("span", {}, unit));
  const chart = frame(title, height, legend, title);
  let known = null;
  let xs = [];
  chart.spots = () => xs;
  chart.tell = (at) => {
    const ago = Math.round(known.now - known.columns.time[at]);
    const texts = series.map((one) => `${series.length > 1 ? `${one.name} ` : ""}${measured(known.columns[one.key][at])} ${unit}`);
    return `${ago < 2 ? "now" : `${ago >= 60 ? `${Math.floor(ago / 60)} min ` : ""}${ago % 60} s ago`}: ${texts.join(", ")}`;
  };
  const cross = svg("line", { class: "cross", y1: TOP, y2: height - BOTTOM });
  chart.mark = () => {
    if (chart.at === null) cross.remove();
    else {
      set(cross, "x1", xs[chart.at]);
      set(cross, "x2", xs[chart.at]);
      chart.drawing.append(cross);
    }
  };
  chart.draw = () => {
    if (!known || !chart.width) return;
    const { columns, now, seconds } = known;
    const span = shownSpan(columns.time, now, seconds);
    const highest = Math.max(...series.map((one) => columns[one.key].reduce((most, value) => Math.max(most, value ?? 0), 0)));
    const ticks = ticksAbove(highest, counted);
    const ceiling = ticks[ticks.length - 1];
    const x = (time) => LEFT + ((time - now + span) / span) * (chart.width - LEFT - RIGHT);
    const y = (value) => TOP + (1 - value / ceiling) * (height - TOP - BOTTOM);
    xs = columns.time.map(x);
    const times = niceTimes(span);
    chart.drawing.replaceChildren(
      ...vertical(chart, ticks, y),
      ...horizontal(chart, times, (ago) => x(now - ago), (ago) => (ago ? (span > 150 ? `−${ago / 60} min` : `−${ago} s`) : "now")),
      ...series.flatMap((one) => lines(columns.time, columns[one.key], x, y, `${one.kind}-line`, height)),
    );
    chart.mark();
  };
  return {
    root: chart.root,
    update(columns, now, seconds) {
      known = { columns, now, seconds };
      const last = columns.time.length - 1;
      const texts = series.map((one) => `${one.name} ${last < 0 ? "–" : measured(columns[one.key][last])} ${unit}`);
      set(chart.drawing, "aria-label", `${title ?? "Rates"} over the last minutes. Now: ${texts.join(", ")}. Arrow keys read the values.`);
      chart.draw();
      if (chart.at !== null) chart.point(chart.at);
    },
  };
}

// At first the axis is short, and grows with what is known.
function shownSpan(times, now, seconds) {
  const known = times.length ? now - times[0] : 0;
  return [60, 120, 300].find((span) => known <= span) ?? seconds;
}

function niceTimes(span) {
  const step = span > 300 ? 120 : span > 120 ? 60 : span > 60 ? 30 : 15;
  const times = [];
  for (let ago = Math.floor(span / step) * step; ago >= 0; ago -= step) times.push(ago);
  return times;
}

function lines(times, values, x, y, kind, height) {
  const parts = [[]];
  values.forEach((value, at) => {
    if (value === null || (at && times[at] - times[at - 1] > GAP_SECONDS)) parts.push([]);
    if (value !== null) parts[parts.length - 1].push(`${x(times[at]).toFixed(1)},${y(value).toFixed(1)}`);
  });
  return parts.filter((part) => part.length).map((part) => {
    const ends = [part[0], part[part.length - 1]].map((point) => point.split(",")[0]);
    const floor = height - BOTTOM;
    return svg("g", { class: kind },
      svg("path", { class: "area", d: `M${ends[0]},${floor} L${part.join(" L")} L${ends[1]},${floor} Z` }),
      svg("path", { class: "curve", d: part.length > 1 ? `M${part.join(" L")}` : `M${part[0]} h1` }));
  });
}

// A curve over steps, as the rewards of an episode. update(values); onpoint(step at) hears clicks.
export function stepCurve(title, unit, onpoint) {
  const chart = frame(title, 170, h("span", { class: "legend" }, h("span", {}, unit)), title);
  let values = [];
  let cursor = 0;
  let xs = [];
  const cross = svg("line", { class: "cross", y1: TOP, y2: 170 - BOTTOM });
  chart.spots = () => xs;
  chart.tell = (at) => `step ${whole(values[at].step)}: ${values[at].text}`;
  chart.mark = () => {
    const at = chart.at ?? cursor;
    if (xs[at] === undefined) return;
    set(cross, "x1", xs[at]);
    set(cross, "x2", xs[at]);
    chart.drawing.append(cross);
  };
  chart.drawing.addEventListener("click", () => chart.at !== null && onpoint(chart.at));
  chart.draw = () => {
    if (!values.length || !chart.width) return;
    const numbers = values.map((one) => one.value ?? 0);
    const least = Math.min(0, ...numbers), greatest = Math.max(...numbers, least + 1e-9, 0);
    const ticks = niceTicks(least, greatest, 3);
    const low = Math.min(least, ticks[0]), high = Math.max(greatest, ticks[ticks.length - 1]);
    const first = values[0].step, last = Math.max(values[values.length - 1].step, first + 1);
    const x = (step) => LEFT + ((step - first) / (last - first)) * (chart.width - LEFT - RIGHT);
    const y = (value) => TOP + (1 - (value - low) / (high - low)) * (170 - TOP - BOTTOM);
    xs = values.map((one) => x(one.step));
    const path = values.map((one, at) => `${at ? "L" : "M"}${xs[at].toFixed(1)},${y(numbers[at]).toFixed(1)}`).join("");
    chart.drawing.replaceChildren(
      ...vertical(chart, ticks, y),
      ...horizontal(chart, niceTicks(first, last, 5).filter(Number.isInteger), x, short),
      svg("g", { class: "insert-line" }, svg("path", { class: "curve", d: path })),
    );
    chart.mark();
  };
  return {
    root: chart.root,
    update(given) {
      values = given;
      chart.draw();
    },
    move(at) {
      cursor = at;
      chart.mark();
    },
  };
}

// -- histograms -------------------------------------------------------------------------------------------------------------------------------

export function histogram(title, kind, what) {
  const note = h("span", { class: "legend" });
  const chart = frame(title, 130, note, title);
  const exact = h("p", { class: "faint small" });
  const root = h("section", { class: "card stack" }, chart.root, exact);
  let known = null;
  let xs = [];
  chart.spots = () => xs;
  chart.tell = (at) => {
    const [from, to] = [known.edges[at], known.edges[at + 1]];
    const where = known.whole ? (to - from === 1 ? whole(from + 0.5) : `${whole(from + 0.5)} to ${whole(to - 0.5)}`) : `${measured(from)} to ${measured(to)}`;
    return `${where}: ${whole(known.counts[at])} ${what}`;
  };
  chart.draw = () => {
    if (!known || !chart.width) return;
    const { edges, counts } = known;
    if (!counts.length) {
      chart.drawing.replaceChildren(svg("text", { x: LEFT, y: 60 }, "no finite number"));
      return;
    }
    const highest = Math.max(...counts);
    const ticks = ticksAbove(highest, true);
    const ceiling = ticks[ticks.length - 1];
    const [least, greatest] = [edges[0], edges[edges.length - 1]];
    const x = (value) => LEFT + ((value - least) / (greatest - least)) * (chart.width - LEFT - RIGHT);
    const y = (count) => TOP + (1 - count / ceiling) * (130 - TOP - BOTTOM);
    xs = counts.map((_, at) => (x(edges[at]) + x(edges[at + 1])) / 2);
    const bars = counts.map((count, at) => {
      const [from, to] = [x(edges[at]), x(edges[at + 1])];
      const width = Math.min(Math.max(1, to - from - 1), 40);
      return svg("rect", { class: "bar-mark", x: (from + to - width) / 2, y: y(count), width, height: Math.max(count ? 1 : 0, y(0) - y(count)), rx: 1 });
    });
    const marks = known.whole ? niceTicks(least, greatest, 4).filter(Number.isInteger) : niceTicks(least, greatest, 4);
    chart.drawing.replaceChildren(...vertical(chart, ticks, y), ...horizontal(chart, marks, x, short), svg("g", { class: `${kind}-line` }, ...bars));
  };
  return {
    root,
    update(given) {
      known = given;
      for (const name of ["count", "sum", "mean", "min", "max"]) set(root, `data-${name}`, given[name]);
      set(root, "data-field", given.field);
      const figures = given.counts.length ? `mean ${measured(given.mean)}, std ${measured(given.std)}, from ${measured(given.min)} to ${measured(given.max)}` : "";
      const odd = given.not_finite ? `, ${whole(given.not_finite)} NaN or infinite` : "";
      say(exact, `${figures}${odd}`);
      set(chart.drawing, "aria-label", `Histogram of ${title}: ${figures}${odd}. Arrow keys read the bars.`);
      chart.draw();
      if (chart.at !== null) chart.point(chart.at);
    },
  };
}
