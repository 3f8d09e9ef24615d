"""How fast, how small, compared with what: measured side by side in one run. `python -m benchmarks.run`."""
