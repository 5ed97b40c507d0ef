"""Trained agents: playing, scoring, showing."""
