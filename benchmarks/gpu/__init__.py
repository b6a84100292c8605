"""One script for a machine with a GPU: `python -m benchmarks.gpu --out FILE`."""
