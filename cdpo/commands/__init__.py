"""What the commands do, by theme; `cdpo/cli.py` says how they are called."""
