"""SQL over a store: views, the process that answers queries, splits with their ledger."""
