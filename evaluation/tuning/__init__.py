"""Tuning at an equal budget: the configurations that are tried, the choice on dev, and the tables about both."""
