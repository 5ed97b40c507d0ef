"""What `scripts/benchmark` runs: retro_ml beside others, measured from outside."""
