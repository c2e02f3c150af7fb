"""`unweft bench`: benchmarks, with ratios to a reference that the same run measures."""
