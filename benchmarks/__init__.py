"""Benchmarks: `python -m benchmarks.NAME` prints a Markdown table. Timings are ratios within one run."""
