"""What the rules need besides the study: the resources of their jobs, progress, the picture of the rules."""
