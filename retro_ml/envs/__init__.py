"""Atari games: one vector of emulators, and the frames it yields."""
