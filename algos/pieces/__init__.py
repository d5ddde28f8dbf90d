"""What algorithms are made of: pure functions of tensors, and the settings that choose among them."""
