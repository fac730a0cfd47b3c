"""Recovery: plans, runs, gates and failback. It knows no SQL and serves no HTTP."""
