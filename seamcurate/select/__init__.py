"""SQL over a store: views, splits with their ledger, and why a row was kept."""
