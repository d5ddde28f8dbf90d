"""A scored rollout batch -> optimizer steps."""
