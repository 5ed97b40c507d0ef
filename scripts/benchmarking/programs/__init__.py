"""The programs that are measured beside `python -m retro_ml.run`, each a process of its own."""
