"""What benchmarks share: figures, processes, reference implementations."""
