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

export function watchPairs(x, y, filtered, result) {
  return watch(filtered, result, (filter) =>
    Query.from("scores")
      .select({ across: binned(x), up: binned(y), rows: count() })
      .where(filter, sql`${column(x.name)} IS NOT NULL AND ${column(y.name)} IS NOT NULL`)
      .groupby("across", "up"),
  );
}

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
    queryError: (error) => document.dispatchEvent(new CustomEvent("problem", { detail: error })),
  });
}

// The edge before bin i, without the noise of floating point.
export const edge = (chart, i) => Number((chart.first + i * chart.step).toPrecision(12));

export const selectBins = (client, chart, bins) => selectBoxes(client, bins && [[chart, bins]]);

// Select by one or more charts at once, each with its first and last bin.
export function selectBoxes(client, sides) {
  const predicate = sides ? and(...sides.flatMap(([chart, bins]) => within(chart, bins))) : null;
  const value = sides ? sides.map(([, bins]) => bins) : null;
  selection.update({ source: client, clients: new Set([client]), value, predicate });
}

// The outermost bins reach as far as the values do.
function within(chart, [from, to]) {
  const x = column(chart.name);
  const low = gte(x, literal(from === 0 ? chart.low : edge(chart, from)));
  return [low, to === chart.bins - 1 ? lte(x, literal(chart.high)) : lt(x, literal(edge(chart, to + 1)))];
}

export function selectValues(client, name, values) {
  const texts = values.filter((value) => value !== null).map((value) => literal(value));
  const parts = [];
  if (texts.length) parts.push(isIn(column(name), texts));
  if (values.includes(null)) parts.push(isNull(column(name)));
  const predicate = parts.length ? or(...parts) : null;
  selection.update({ source: client, clients: new Set([client]), value: parts.length ? values : null, predicate });
}

// The selection as a predicate over the view `rows`.
export function where() {
  const parts = selection.clauses.map((clause) => clause.predicate).filter(Boolean);
  return parts.length ? String(and(...parts)) : "";
}
