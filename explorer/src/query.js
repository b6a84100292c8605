// The SQL box: one SELECT over the views, with what there is listed beside it.

import { blob, json } from "./api.js";
import { byId, clean, h, number, save, whole } from "./dom.js";
import { where } from "./selection.js";

const KEPT = 20;
const HISTORY = "seamcurate.history";

export function query(overview) {
  const input = byId("sql");
  const problem = byId("sql-problem");
  const result = byId("sql-result");
  const buttons = ["sql-run", "sql-csv", "sql-parquet", "sql-filter"].map(byId);
  const first = overview.charts[0];
  input.value ||= first
    ? `SELECT row_id, ${quoted(first.name)}, prompt\nFROM rows\nORDER BY ${quoted(first.name)}${first.worst === "high" ? " DESC NULLS LAST" : ""}\nLIMIT 20`
    : "SELECT * FROM rows LIMIT 20";

  byId("views").replaceChildren(
    ...Object.entries(overview.views).map(([view, columns]) =>
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

  function insert(name) {
    input.setRangeText(quoted(name), input.selectionStart, input.selectionEnd, "end");
    input.focus();
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
        result.replaceChildren(table(answer));
      } catch (error) {
        result.replaceChildren();
        throw error;
      }
    });
  const download = (format) =>
    busy(async (sql) => save(`result.${format}`, await blob("download", { sql, format })));
  const filter = () => busy(async (sql) => save("filter.sql", await blob("filter", { sql })));

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

  const past = () => JSON.parse(localStorage.getItem(HISTORY) ?? "[]");
  function remember(sql) {
    localStorage.setItem(HISTORY, JSON.stringify([sql, ...past().filter((one) => one !== sql)].slice(0, KEPT)));
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

// The selection as SQL over the store, as a split's filter has it.
export function selected() {
  const predicate = where();
  return `SELECT row_id\nFROM rows${predicate ? `\nWHERE ${predicate}` : ""}`;
}

const quoted = (name) => (/^[a-z_][a-z0-9_]*$/.test(name) ? name : `"${name.replaceAll('"', '""')}"`);

function table({ columns, types, rows, truncated, seconds }) {
  const numeric = types.map((type) => /^(double|float|u?int|decimal)/.test(type));
  const cell = (value, i) =>
    h("td", { class: numeric[i] ? "right" : "" }, value === null ? h("span", { class: "null" }, "NULL") : typeof value === "number" ? number(value, !/^(double|float)/.test(types[i])) : clean(String(value)));
  return h(
    "div",
    {},
    h("p", { class: "meaning" }, `${truncated ? "the first " : ""}${whole(rows.length)} row${rows.length === 1 ? "" : "s"} in ${seconds.toFixed(2)} s`),
    h(
      "div",
      { class: "scroll" },
      h(
        "table",
        {},
        h("thead", {}, h("tr", {}, columns.map((name, i) => h("th", { scope: "col", class: numeric[i] ? "right" : "" }, clean(name))))),
        h("tbody", {}, rows.map((row) => h("tr", {}, row.map(cell)))),
      ),
    ),
  );
}

