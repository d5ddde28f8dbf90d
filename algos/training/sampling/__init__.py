"""Prompts and a policy -> responses with their log-probabilities."""
