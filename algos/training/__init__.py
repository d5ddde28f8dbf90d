"""The machinery around the algorithms. It knows none of them by name: it reads algos.ALGORITHMS."""
