"""Each module races one part of seamcurate against what a user would use instead: `python -m benchmarks NAME`."""
