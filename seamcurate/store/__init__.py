"""A folder of shards: rows, columns and their fingerprints."""
