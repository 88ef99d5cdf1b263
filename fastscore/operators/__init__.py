"""Linear measurements y = A x + n: what is seen of the data."""
