// The SQL box: one SELECT over the views, with what there is listed beside it.

import { blob, json } from "./api.js";
import { complete } from "./complete.js";
import { byId, clean, h, number, save, whole } from "./dom.js";
import { axis, bars, canvas, counted, short } from "./histogram.js";
import { edge, whereInStore } from "./selection.js";

const KEPT = 20;
const HISTORY = "seamcurate.history";
const BINS = 40;

export function query(overview, more, open) {
  const input = byId("sql");
  const problem = byId("sql-problem");
  const result = byId("sql-result");
  const buttons = ["sql-run", "sql-csv", "sql-parquet", "sql-filter"].map(byId);
  const first = overview.charts[0];
  input.value ||= first
    ? `SELECT row_id, ${quoted(first.name)}, prompt\nFROM rows\nORDER BY ${quoted(first.name)}${first.worst === "high" ? " DESC NULLS LAST" : ""}\nLIMIT 20`
    : "SELECT * FROM rows LIMIT 20";

  byId("views").replaceChildren(
    ...Object.entries(more.views).map(([view, columns]) =>
      h(
        "details",
        { open: view === "rows" },
        h("summary", {}, view, h("span", { class: "count" }, String(columns.length))),
        columns
          .filter((column) => !column.name.startsWith("_"))
          .map((column) =>
            h("button", { class: "column", title: `Insert ${column.name}: ${column.type}`, onclick: () => insert(column.name) }, h("span", {}, clean(column.name)), h("span", { class: "type" }, column.type.toLowerCase())),
          ),
      ),
    ),
  );
  complete(input, more.views, quoted);

  const starts = questions(more.views);
  if (!result.childElementCount && starts.length)
    result.append(
      h("h3", {}, "Questions to start from"),
      h("div", { class: "starts" }, starts.map(([text, sql]) => h("button", { class: "opening", onclick: () => ((input.value = sql), run()) }, h("b", {}, text), h("code", {}, clean(sql.replace(/\s+/g, " ")))))),
    );

  function insert(name) {
    input.focus();
    document.execCommand("insertText", false, quoted(name));
  }

  async function busy(work) {
    problem.textContent = "";
    for (const button of buttons) button.disabled = true;
    try {
      await work(input.value);
    } catch (error) {
      problem.textContent = clean(error.message);
    }
    for (const button of buttons) button.disabled = false;
  }

  const run = () =>
    busy(async (sql) => {
      result.replaceChildren(h("p", { class: "state" }, "Asking…"));
      try {
        const answer = await json("sql", { sql });
        remember(sql);
        result.replaceChildren(shown(sql, answer, open));
      } catch (error) {
        result.replaceChildren();
        throw error;
      }
    });
  const download = (format) =>
    busy(async (sql) => save(`result.${format}`, await blob("download", { sql, format })));
  const filter = () => busy(async (sql) => save("filter.sql", await blob("filter", { sql })));

  for (const button of [...buttons, byId("sql-selection")]) button.disabled = false;
  byId("sql-run").onclick = run;
  byId("sql-csv").onclick = () => download("csv");
  byId("sql-parquet").onclick = () => download("parquet");
  byId("sql-filter").onclick = filter;
  byId("sql-selection").onclick = () => {
    input.value = selected();
    input.focus();
  };
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
  });

  // A browser that keeps nothing for a page still asks.
  const past = () => {
    try {
      return JSON.parse(localStorage.getItem(HISTORY) ?? "[]");
    } catch {
      return [];
    }
  };
  function remember(sql) {
    const list = [sql, ...past().filter((one) => one !== sql)].slice(0, KEPT);
    try {
      localStorage.setItem(HISTORY, JSON.stringify(list));
    } catch {
      // full, or forbidden
    }
    listPast();
  }
  function listPast() {
    const list = past();
    byId("history").replaceChildren(
      ...(list.length
        ? list.map((sql) => h("button", { class: "past", title: sql, onclick: () => ((input.value = sql), input.focus()) }, clean(sql.replace(/\s+/g, " "))))
        : [h("p", { class: "meaning" }, "What you ask is kept here, in this browser.")]),
    );
  }
  listPast();
}

// What people ask first, of the columns that are there.
function questions({ rows, candidates, ledger }) {
  const names = new Set(rows.map((one) => one.name));
  const variant = rows.map((one) => /^seam_(?!reason_)(\w+)$/.exec(one.name)?.[1]).find((one) => one && names.has(`misjudged_${one}`));
  const label = ["query_type", "source"].find((one) => names.has(one)) ?? rows.find((one) => one.type === "VARCHAR" && !/^(prompt|response|reference|id)$/.test(one.name))?.name;
  const found = [];
  if (variant) {
    found.push(["Which prompts are worst?", `SELECT row_id, seam_${variant}, misjudged_${variant}, prompt\nFROM rows\nORDER BY seam_${variant}\nLIMIT 20`]);
    if (label) found.push([`Which ${label} is misjudged most?`, `SELECT ${quoted(label)}, count(*) AS rows, avg(misjudged_${variant}) AS misjudged, avg(seam_${variant}) AS seam\nFROM rows\nGROUP BY ALL\nORDER BY misjudged DESC NULLS LAST\nLIMIT 20`]);
    found.push(["Does the score follow length?", `SELECT corr(seam_${variant}, length(response)) AS with_length, corr(seam_${variant}, candidates_${variant}) AS with_candidates, count(seam_${variant}) AS rows\nFROM rows`]);
  }
  if (candidates.length && variant) found.push(["Which answers are overrated most?", `SELECT c.misjudgement, c.response AS preferred, r.response AS golden, r.prompt\nFROM candidates AS c JOIN rows AS r USING (row_id)\nORDER BY c.misjudgement DESC NULLS LAST\nLIMIT 20`]);
  if (ledger.length) found.push(["What did each split drop, and why?", "SELECT split, rule, kept, count(*) AS rows\nFROM ledger\nGROUP BY ALL\nORDER BY ALL"]);
  return found;
}

// The selection as SQL over the store, as a split's filter has it.
export function selected() {
  const predicate = whereInStore();
  return `SELECT row_id\nFROM rows${predicate ? `\nWHERE ${predicate}` : ""}`;
}

const quoted = (name) => (/^[a-z_][a-z0-9_]*$/.test(name) ? name : `"${name.replaceAll('"', '""')}"`);

const isNumber = (type) => /^(double|float|halffloat|u?int|decimal)/.test(type);

// An answer: how long it took, as a table or as the histogram of one of its numeric columns.
function shown(sql, answer, open) {
  const { columns, types, rows, truncated, seconds } = answer;
  const place = h("div", {}, table(answer, open));
  const numeric = columns.filter((name, i) => isNumber(types[i]) && columns.indexOf(name) === i);
  const draw = (name) => async () => {
    for (const one of views.children) one.setAttribute("aria-pressed", String(one.dataset.view === (name ?? "")));
    if (name === null) return place.replaceChildren(table(answer, open));
    place.replaceChildren(h("p", { class: "state" }, "Counting…"));
    try {
      place.replaceChildren(await histogram(sql, name, types[columns.indexOf(name)]));
    } catch (error) {
      place.replaceChildren(h("p", { class: "state error" }, clean(error.message)));
    }
  };
  const choice = (name, text) => h("button", { class: "quiet small", "data-view": name ?? "", "aria-pressed": String(name === null), onclick: draw(name) }, text);
  const views = h("div", { class: "choices", role: "group", "aria-label": "Show the result as" }, choice(null, "table"), h("span", { class: "meaning" }, "histogram of"), numeric.map((name) => choice(name, clean(name))));
  return h(
    "div",
    {},
    h("div", { class: "title" },
      h("p", { class: "meaning" }, `${truncated ? "the first " : ""}${whole(rows.length)} row${rows.length === 1 ? "" : "s"} in ${seconds.toFixed(2)} s${truncated ? "; a download has all of them" : ""}`),
      h("span", { class: "spring" }), numeric.length ? views : null),
    place,
  );
}

// Counted by the server over the whole answer, not over the rows that are shown.
async function histogram(sql, name, type) {
  const q = `"${name.replaceAll('"', '""')}"`;
  const from = `(SELECT ${q}::DOUBLE AS x FROM (${sql.trim().replace(/;$/, "")}\n)) WHERE isfinite(x)`;
  const [[low, high, n]] = (await json("sql", { sql: `SELECT min(x), max(x), count(*) FROM ${from}` })).rows;
  if (!n) return h("p", { class: "state" }, "No value is a finite number.");
  const integer = !/^(double|float|halffloat|decimal)/.test(type);
  const rough = (high - low) / BINS || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough * 0.999);
  if (integer) step = Math.max(1, step);
  const start = Math.floor(low / step) * step;
  const bins = Math.floor((high - start) / step + 1e-9) + 1;
  const chart = { name, first: start, step, bins, low, high, whole: integer };
  const found = await json("sql", { sql: `SELECT least(floor((x - (${start})) / ${step}), ${bins - 1})::INTEGER AS bin, count(*) AS rows FROM ${from} GROUP BY 1` });
  const counts = counted(chart, found.rows.map(([bin, rows]) => ({ bin, rows })));
  const drawn = bars(chart, "in");
  drawn.draw(counts, Math.max(1, ...counts), false);
  drawn.rects.forEach((rect, i) => {
    const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
    title.textContent = `${short(edge(chart, i))} to ${short(edge(chart, i + 1))}: ${whole(counts[i])}`;
    rect.append(title);
  });
  return h("article", { class: "card answer" },
    h("header", {}, h("h3", {}, clean(name)), h("span", { class: "meaning" }, `${whole(n)} values, ${number(low, integer)} to ${number(high, integer)}; ${short(step)} a bar`)),
    h("div", { class: "plot tall" }, canvas(drawn)), axis(chart));
}

// A line with a row_id opens that row.
function table({ columns, types, rows }, open) {
  if (!rows.length) return h("p", { class: "state" }, "The answer has no row.");
  const place = columns.indexOf("row_id");
  const opens = place >= 0 && isNumber(types[place]);
  const cell = (value, i) =>
    h("td", { class: isNumber(types[i]) ? "right" : "" }, value === null ? h("span", { class: "null" }, "NULL") : typeof value === "number" ? number(value, !/^(double|float|halffloat|decimal)/.test(types[i])) : clean(String(value)));
  return h(
    "div",
    { class: "scroll", tabindex: 0, "aria-label": "Result" },
    h(
      "table",
      { class: opens ? "opens" : "" },
      h("thead", {}, h("tr", {}, columns.map((name, i) => h("th", { scope: "col", class: isNumber(types[i]) ? "right" : "" }, clean(name))))),
      h("tbody", {}, rows.map((row) => h("tr", opens ? { tabindex: 0, "data-row": row[place], onclick: () => open(Number(row[place])), onkeydown: (event) => event.key === "Enter" && open(Number(row[place])) } : {}, row.map(cell)))),
    ),
  );
}
