"""One file at a time: shards, object stores, locks, scratch folders, hashes."""
