"""What the suite costs, beside TRL and beside what the machine could do: python -m evaluation.bench."""
