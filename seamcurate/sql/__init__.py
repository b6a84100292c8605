"""DuckDB behind a lock: the process that answers queries, its client, and what a query or an expression may be."""
