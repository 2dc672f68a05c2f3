"""One file per pipeline: its parameters (hashed), its version, what its `out/` holds, and its `run`."""
