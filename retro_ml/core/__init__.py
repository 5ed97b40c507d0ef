"""The parts of retro_ml that need neither Ray nor torch."""
