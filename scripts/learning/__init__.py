"""The learning benchmark: a matrix of runs, ours and Stable-Baselines3's, and what they reached."""
