"""The fault drill: short real runs, killed at random, taken up again, compared."""
