// The frame of the page: which view is shown, how often it is refreshed, what went wrong, and light or dark.

import { say } from "./dom.js";
import { overview } from "./overview.js";
import { table } from "./table.js";
import { rows } from "./rows.js";
import { episodes } from "./episodes.js";
import { episode } from "./episode.js";

const VIEWS = [
  [/^#?\/?$/, () => overview()],
  [/^#\/table\/([^/?]+)$/, (name) => table(name)],
  [/^#\/table\/([^/?]+)\/rows$/, (name) => rows(name)],
  [/^#\/table\/([^/?]+)\/episodes$/, (name) => episodes(name)],
  [/^#\/table\/([^/?]+)\/episode\/(\d+)$/, (name, number) => episode(name, number)],
];
const SECONDS = 1.5;

const main = document.getElementById("main");
const trouble = document.getElementById("trouble");
let shown = null;
let timer = 0;

function open() {
  clearTimeout(timer);
  shown?.close?.();
  const [path] = location.hash.split("?");
  const found = VIEWS.map(([pattern, make]) => [pattern.exec(path), make]).find(([match]) => match);
  const first = shown === null;
  shown = found ? found[1](...found[0].slice(1).map(decodeURIComponent)) : { title: "not found", root: notFound(), refresh: async () => ({}) };
  document.title = `${shown.title} · tdreplay`;
  main.replaceChildren(shown.root);
  if (!first) {
    scrollTo(0, 0);
    main.focus({ preventScroll: true });
  }
  refresh(shown);
}

function notFound() {
  const text = document.createElement("p");
  say(text, "There is no such page.");
  return text;
}

async function refresh(view) {
  clearTimeout(timer);
  try {
    if (!document.hidden) {
      const head = await view.refresh();
      if (view === shown) note(head);
    }
  } catch (error) {
    if (view !== shown) return;
    complain(error.message);
    if (error.status === undefined) console.error(error);
  }
  if (view === shown) timer = setTimeout(() => refresh(view), 1000 * (view.seconds ?? SECONDS));
}

function note(head) {
  if (head?.address) say(document.getElementById("address"), head.address);
  if (head?.error) complain(head.error);
  else {
    trouble.hidden = true;
    document.getElementById("dot").className = "dot ok";
    main.dataset.fresh = String(Number(main.dataset.fresh ?? 0) + 1);
  }
}

function complain(words) {
  say(trouble, words);
  trouble.hidden = false;
  document.getElementById("dot").className = "dot bad";
}

// -- light and dark ---------------------------------------------------------------------------------------------------------------------------

const dark = matchMedia("(prefers-color-scheme: dark)");
const button = document.getElementById("theme");

function stored() {
  try {
    return localStorage.getItem("theme");
  } catch {
    return null; // The browser keeps nothing.
  }
}

let chosen = stored();

function paint() {
  const theme = chosen ?? (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = theme;
  say(button, theme === "dark" ? "Light" : "Dark");
  button.setAttribute("aria-label", theme === "dark" ? "Use light colours" : "Use dark colours");
}

button.addEventListener("click", () => {
  chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  try {
    localStorage.setItem("theme", chosen);
  } catch {
    // Then it is for this page alone.
  }
  paint();
});
dark.addEventListener("change", paint);
paint();

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // The address says which view is shown.
  main.focus();
});
document.addEventListener("visibilitychange", () => shown && !document.hidden && refresh(shown));
addEventListener("hashchange", open);
open();
