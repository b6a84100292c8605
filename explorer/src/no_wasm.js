// What Mosaic imports of duckdb-wasm, without it: DuckDB answers from the server.
export const AsyncDuckDB = undefined;
export const ConsoleLogger = undefined;
export const getJsDelivrBundles = undefined;
export const selectBundle = undefined;
