"""Language models: made, loaded, saved; their heads, and how a batch passes through them."""
