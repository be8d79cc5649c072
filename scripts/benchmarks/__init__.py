"""What `scripts/benchmark.py` measures, one file a subcommand, and how: contests, the machine, the report."""
