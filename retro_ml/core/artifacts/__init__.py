"""The files of a run: their names, how they are written and read."""
