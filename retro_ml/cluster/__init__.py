"""Ray as the engine that runs trials: where it is, what it has, and what comes back from it."""
