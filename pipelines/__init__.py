"""The study: its files, their validation, and the rules that run it."""
