// The page: what is wrong with a store's prompts, found by brushing, reading and asking.

import { json } from "./api.js";
import { bench } from "./bench.js";
import { compare } from "./compare.js";
import { byId, clean, copy, h, percent, whole } from "./dom.js";
import { drill } from "./drill.js";
import { histogram } from "./histogram.js";
import { query, selected } from "./query.js";
import { scatter } from "./scatter.js";
import { search } from "./search.js";
import { connect, selection, watchTotals } from "./selection.js";
import { rowTable } from "./table.js";
import { values } from "./values.js";

const EVERY = 5000;
const KEPT = "seamcurate.kept";
const TABS = ["overview", "query", "cut", "compare"];
const settings = { scale: "shares" };
let keep = () => {};

theme();
tabs();
start();

async function start() {
  try {
    const overview = await json("overview");
    document.title = `${overview.store} · seamcurate`;
    byId("store").textContent = clean(overview.store);
    lay(overview);
    document.documentElement.dataset.state = "ready";
    watchStore();
  } catch (error) {
    byId("charts").replaceChildren(h("p", { class: "state error" }, clean(error.message)));
    document.documentElement.dataset.state = "error";
    byId("refresh").onclick = () => location.reload();
  }
}

function lay(overview) {
  connect();
  let table;
  const opened = drill((id, by) => table.beside(id, by), (id) => table.mark(id));
  table = rowTable(overview, opened.open);
  // Where a prompt lies on the map is no score.
  const scores = overview.charts.filter((chart) => !chart.name.startsWith("projection_"));
  const parts = [
    ...(overview.charts.length > 1 ? [scatter({ ...axes(overview), charts: overview.charts, groups: overview.groups, total: overview.rows, open: opened.open, brush: true })] : []),
    ...scores.map((chart) => histogram(chart, overview.rows, settings)),
    ...overview.groups.map((group) => values(group, told(overview, group))),
  ];
  const words = search();
  const selecting = [words, ...parts];
  byId("about").replaceChildren(...overview.about.flatMap(([name, value]) => [h("b", {}, clean(name)), ` ${clean(value)}  `]));
  const stale = overview.columns.filter((column) => column.stale);
  byId("charts").removeAttribute("aria-busy");
  byId("charts").replaceChildren(
    ...(parts.length
      ? parts.map((part) => part.card)
      : [h("p", { class: "state" }, overview.rows ? "No score yet: run a recipe over this store, then refresh." : "The store has no row yet: run its recipe, then refresh.")]),
  );
  byId("stale").textContent = stale.length
    ? `Left out as out of date: ${stale.map((column) => clean(column.name)).join(", ")}. Run the recipe with --replace.`
    : "";

  // What was selected before the page was read anew; only once the charts have answered do they follow.
  let kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
  sessionStorage.removeItem(KEPT);
  if (kept?.store !== overview.store) kept = null;
  if (kept) byId("sql").value = kept.sql;
  function restore() {
    if (!kept) return;
    const { scale, parts: states, row, scroll } = kept;
    kept = null;
    settings.scale = byId("scale").value = scale;
    for (const part of selecting) if (states[part.name]) part.restore(states[part.name]);
    if (row !== null) opened.open(row);
    scrollTo(0, scroll);
  }

  watchTotals(([totals]) => {
    const candidates = Number(totals.candidates ?? 0);
    const scored = totals.misjudged !== null && totals.misjudged !== undefined;
    const none = !Number(totals.rows);
    const figures = {
      "t-rows": [whole(Number(totals.rows)), `of ${whole(overview.rows)}`],
      "t-candidates": [whole(candidates), totals.rows ? `${(candidates / Number(totals.rows)).toFixed(1)} a row` : ""],
      "t-misjudged": scored ? [percent(totals.misjudged, candidates), `${whole(totals.misjudged)} preferred to the golden one`] : ["–", none ? "" : "not scored yet"],
      "t-wrong": scored ? [whole(totals.wrong), `${percent(totals.wrong, Number(totals.rows))} of rows`] : ["–", ""],
      "t-none": [whole(totals.none), none ? "" : `${percent(totals.none, Number(totals.rows))} of rows`],
    };
    for (const [id, [value, more]] of Object.entries(figures)) {
      byId(id).querySelector("b").textContent = value;
      byId(id).querySelector("small").textContent = more;
    }
    byId("t-rows").dataset.rows = String(totals.rows);
    restore();
  });

  selection.addEventListener("value", () => {
    const chosen = selecting.filter((part) => part.text());
    tellWithin(chosen);
    if (!byId("cut").hidden) cuts.changed();
    if (!byId("compare").hidden) shown.compare?.();
    byId("chips").replaceChildren(
      ...chosen.map((part) => h("button", { class: "chip", title: "Clear this part", onclick: part.clear }, part.text(), h("span", { "aria-hidden": "true" }, " ✕"))),
      ...(chosen.length > 1 ? [h("button", { class: "quiet small", onclick: () => selecting.forEach((part) => part.clear()) }, "clear all")] : []),
    );
    byId("hint").hidden = chosen.length > 0;
    table.reload();
  });
  byId("as-sql").onclick = () => {
    byId("sql").value = selected();
    show("query");
  };
  byId("copy-sql").onclick = () => copy(selected(), "SQL");
  byId("scale").onchange = (event) => {
    settings.scale = event.target.value;
    for (const part of parts) part.draw?.();
  };
  document.addEventListener("problem", (event) => {
    byId("problem").textContent = clean(event.detail.message);
  });

  const cuts = bench(overview, opened.open);
  const shown = { cut: cuts.show };
  document.addEventListener("tab", (event) => shown[event.detail]?.());
  if (!byId("cut").hidden) cuts.show();
  table.reload();
  // The other files are verified meanwhile.
  json("whole").then((more) => {
    query(overview, more, opened.open);
    shown.compare = compare(overview, more, opened.open).show;
    if (!byId("compare").hidden) shown.compare();
    document.documentElement.dataset.whole = "ready";
  }, (error) => {
    for (const id of ["sql-result", "compared"]) byId(id).replaceChildren(h("p", { class: "state error" }, clean(error.message)));
    byId("views").replaceChildren();
    byId("problem").textContent = clean(error.message);
  });

  keep = () => sessionStorage.setItem(KEPT, JSON.stringify({
    store: overview.store,
    parts: Object.fromEntries(selecting.map((part) => [part.name, part.state()])),
    sql: byId("sql").value,
    row: opened.now(),
    scale: settings.scale,
    scroll: scrollY,
  }));
  document.addEventListener("keydown", (event) => {
    if (/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && opened.isOpen()) opened.close();
    else if (event.key === "j" || event.key === "k") opened.step(event.key === "j" ? 1 : -1);
    else if (TABS[Number(event.key) - 1]) show(TABS[Number(event.key) - 1]);
  });
}

// What the labels of a split are in SQL over the store's views; other labels are columns of the store.
function told(overview, group) {
  const predicates = overview.told[group.name];
  return predicates && new Map(group.values.map(([value], i) => [value, predicates[i]]));
}

// The selection holds on every tab but SQL, whose SELECT reads what it says: both are said there.
function tellWithin(chosen) {
  const parts = chosen.map((part) => part.text()).join("; ");
  for (const place of document.querySelectorAll(".within")) {
    const inSql = place.closest("#query");
    place.textContent = !parts ? "" : inSql ? `The selection (${parts}) is not part of a SELECT, unless “selection as SQL” puts it there.` : `Of the selected rows only (${parts}).`;
  }
}

// The map, coloured by the first score that says which end is bad; without a map, that score by the reward.
function axes({ charts }) {
  const named = (name) => charts.find((chart) => chart.name === name)?.name;
  const bad = charts.find((chart) => chart.worst)?.name;
  if (named("projection_x") && named("projection_y")) return { x: "projection_x", y: "projection_y", colour: bad ?? "none" };
  const first = bad ?? charts[0].name;
  const second = first !== "reward" && named("reward");
  return { x: second || charts.find((chart) => chart.name !== first).name, y: first, colour: named("misjudged_contrast") ?? "none" };
}

function tabs() {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    tab.addEventListener("click", () => show(tab.dataset.tab));
    tab.addEventListener("keydown", (event) => {
      const next = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
      if (next && tab[next]) {
        show(tab[next].dataset.tab);
        tab[next].focus();
      }
    });
  }
  const asked = location.hash.slice(1);
  if (TABS.slice(1).includes(asked)) show(asked);
}

function show(name) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const on = tab.dataset.tab === name;
    tab.setAttribute("aria-selected", String(on));
    tab.tabIndex = on ? 0 : -1;
    byId(tab.dataset.tab).hidden = !on;
  }
  history.replaceState(null, "", `#${name}`);
  document.dispatchEvent(new CustomEvent("tab", { detail: name }));
}

// The browser's scheme, until a person chooses.
function theme() {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    root.dataset.theme = localStorage.getItem("seamcurate.theme") ?? (dark.matches ? "dark" : "light");
    document.dispatchEvent(new CustomEvent("theme"));
  };
  dark.addEventListener("change", apply);
  apply();
  byId("theme").onclick = () => {
    localStorage.setItem("seamcurate.theme", root.dataset.theme === "dark" ? "light" : "dark");
    apply();
  };
}

// A run may be filling the store: say so, and read anew when asked, as a selection should not change by itself.
function watchStore() {
  const button = byId("refresh");
  button.onclick = async () => {
    button.disabled = true;
    button.textContent = "reading…";
    try {
      await json("refresh", {});
      keep();
      location.reload();
    } catch (error) {
      button.disabled = false;
      button.textContent = "refresh";
      byId("problem").textContent = clean(error.message);
    }
  };
  setInterval(async () => {
    if (document.hidden) return;
    try {
      const { changed } = await json("state");
      button.classList.toggle("new", changed);
      button.textContent = changed ? "new columns: refresh" : "refresh";
      byId("problem").textContent = "";
    } catch (error) {
      byId("problem").textContent = clean(error.message);
    }
  }, EVERY);
}
