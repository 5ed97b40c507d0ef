"""The order of a run, its seam to whatever executes trials, and what the user sees meanwhile."""
