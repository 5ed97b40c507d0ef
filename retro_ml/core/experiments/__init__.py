"""What to run: the experiment's config, its published settings, games and seeds."""
