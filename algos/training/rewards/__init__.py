"""Responses -> rewards: rules, the learned reward model, and the preferences that it is trained on."""
