// What is selected: one Mosaic cross-filter that all charts share, and its SQL.

import { Selection, coordinator, makeClient } from "@uwdata/mosaic-core";
import { Query, and, column, count, gte, isIn, isNull, literal, lt, lte, or, sql, sum } from "@uwdata/mosaic-sql";
import { bytes } from "./api.js";

export const selection = Selection.crossfilter();

export function connect() {
  const mosaic = coordinator();
  // Tables of sums beforehand would have to be written; the store is only read.
  mosaic.preaggregator.enabled = false;
  mosaic.databaseConnector({ query: (query) => bytes("mosaic", { type: query.type, sql: query.sql }) });
  mosaic.logger?.(null);
}

// Rows by bin of a chart; what lies outside the bins is in the outermost.
const binned = (chart) =>
  sql`least(greatest(floor((${column(chart.name)} - ${chart.first}) / ${chart.step}), 0), ${chart.bins - 1})::INTEGER`;

export function watchBins(chart, filtered, result) {
  return watch(filtered, result, (filter) =>
    Query.from("scores")
      .select({ bin: binned(chart), rows: count() })
      .where(filter, sql`${column(chart.name)} IS NOT NULL`)
      .groupby("bin"),
  );
}

// A value a row, by column of arrays: what is drawn as dots. NULL is NaN, or null where it is text.
export function watchDots(x, y, colour, result) {
  const select = { row: sql`row_id::DOUBLE`, x: sql`${column(x.name)}::DOUBLE`, y: sql`${column(y.name)}::DOUBLE` };
  if (colour) select.colour = colour.values ? column(colour.name) : sql`coalesce(${column(colour.name)}::DOUBLE, 'nan'::DOUBLE)`;
  return makeClient({
    query: () => Query.from("scores").select(select).where(present(x, y)),
    queryResult: (table) => result(Object.fromEntries(Object.keys(select).map((name) => [name, table.getChild(name).toArray()]))),
    queryError: problem,
  });
}

// The selected among them.
export function watchChosen(x, y, result) {
  return makeClient({
    selection,
    query: (filter) => Query.from("scores").select({ row: sql`row_id::DOUBLE` }).where(filter ?? [], present(x, y)),
    queryResult: (table) => result(table.getChild("row").toArray()),
    queryError: problem,
  });
}

// Rows by cell of a grid, with the mean or the most frequent of the colours.
export function watchCells(x, y, colour, grid, filtered, result) {
  const select = { across: cell(x, grid[0]), up: cell(y, grid[1]), rows: count() };
  if (colour) select.colour = colour.values ? sql`mode(${column(colour.name)})` : sql`avg(${column(colour.name)})::DOUBLE`;
  return watch(filtered, result, (filter) =>
    Query.from("scores").select(select).where(filter, present(x, y)).groupby("across", "up"),
  );
}

// One row of a cell: the one with the lowest id, so that a second look finds it again.
export async function nearest(client, x, y, colour, grid, at, filtered) {
  const select = { row: sql`row_id::DOUBLE`, x: sql`${column(x.name)}::DOUBLE`, y: sql`${column(y.name)}::DOUBLE` };
  if (colour) select.colour = column(colour.name);
  const filter = filtered ? (selection.predicate(client) ?? []) : [];
  const query = Query.from("scores")
    .select(select)
    .where(filter, present(x, y), sql`${cell(x, grid[0])} = ${literal(at[0])}`, sql`${cell(y, grid[1])} = ${literal(at[1])}`)
    .orderby("row_id")
    .limit(1);
  const [row] = (await coordinator().query(query)).toArray();
  return row && { row: row.row, x: row.x, y: row.y, colour: row.colour ?? null };
}

const present = (x, y) => sql`${column(x.name)} IS NOT NULL AND ${column(y.name)} IS NOT NULL`;

const cell = (chart, cells) =>
  sql`least(greatest(floor((${column(chart.name)} - ${chart.first}) / ${chart.step * chart.bins} * ${cells}), 0), ${cells - 1})::INTEGER`;

export const drop = (client) => coordinator().disconnect(client);

export function watchValues(name, filtered, result) {
  return watch(filtered, result, (filter) =>
    Query.from("scores").select({ value: column(name), rows: count() }).where(filter).groupby("value"),
  );
}

export function watchTotals(result) {
  return watch(true, result, (filter) =>
    Query.from("scores")
      .select({
        rows: count(),
        candidates: sql`sum(_candidates)::DOUBLE`,
        misjudged: sum("_misjudged"),
        wrong: sql`(count(*) FILTER (_misjudged > 0))::DOUBLE`,
        none: sql`(count(*) FILTER (_candidates = 0))::DOUBLE`,
      })
      .where(filter),
  );
}

function watch(filtered, result, query) {
  return makeClient({
    selection: filtered ? selection : undefined,
    query: (filter) => query(filter ?? []),
    queryResult: (table) => result(table.toArray()),
    queryError: problem,
  });
}

const problem = (error) => document.dispatchEvent(new CustomEvent("problem", { detail: error }));

// The edge before bin i, without the noise of floating point: an edge at 0 is a difference of two sums, and seldom 0 itself.
export const edge = (chart, i) => {
  const value = chart.first + i * chart.step;
  return Math.abs(value) < 1e-9 * chart.step ? 0 : Number(value.toPrecision(12));
};

// The smallest and the largest value that has a place of its own; beyond the bins, values share the outermost one's.
export const reach = (chart) => [Math.max(chart.low, edge(chart, 0)), Math.min(chart.high, edge(chart, chart.bins))];

export function selectBins(client, chart, bins) {
  choose(client, bins, bins && and(...within(chart, bins)));
}

// Select a box of two charts: of each its two values, and its two places, 0 to 1; at an edge it reaches as far as the values do.
export function selectArea(client, sides) {
  const parts = sides?.flatMap(([chart, [from, to], [low, high]]) => [
    gte(column(chart.name), literal(low <= 0 ? chart.low : from)),
    lte(column(chart.name), literal(high >= 1 ? chart.high : to)),
  ]);
  choose(client, sides && sides.map(([, values]) => values), parts && and(...parts));
}

// `told`: the same over the store's views, where the predicate is about the table `scores` alone.
function choose(client, value, predicate, told = null) {
  selection.update({ source: client, clients: new Set([client]), value, predicate, told });
}

// The outermost bins reach as far as the values do.
function within(chart, [from, to]) {
  const x = column(chart.name);
  const low = gte(x, literal(from === 0 ? chart.low : edge(chart, from)));
  return [low, to === chart.bins - 1 ? lte(x, literal(chart.high)) : lt(x, literal(edge(chart, to + 1)))];
}

// Rows by their numbers, as a search of texts found them.
export function selectRows(client, rows, told) {
  choose(client, rows, rows && (rows.length ? isIn(column("row_id"), rows.map((id) => literal(id))) : sql`false`), told);
}

// `told`: for labels that are no column of the store, a predicate over its views by value.
export function selectValues(client, name, values, told) {
  const texts = values.filter((value) => value !== null).map((value) => literal(value));
  const parts = [];
  if (texts.length) parts.push(isIn(column(name), texts));
  if (values.includes(null)) parts.push(isNull(column(name)));
  const predicate = parts.length ? or(...parts) : null;
  choose(client, parts.length ? values : null, predicate, told && values.map((value) => told.get(value)).join(" OR "));
}

// The selection as a predicate over the table `scores`.
export function where() {
  const parts = selection.clauses.map((clause) => clause.predicate).filter(Boolean);
  return parts.length ? String(and(...parts)) : "";
}

// The same as a predicate over the store's views, which a filter can have.
export const whereInStore = () =>
  selection.clauses.filter((clause) => clause.predicate).map((clause) => `(${clause.told || clause.predicate})`).join("\n  AND ");
