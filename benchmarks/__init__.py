"""Measure nodma: ``python -m benchmarks``. Numbers are medians of interleaved runs, with their spread."""
