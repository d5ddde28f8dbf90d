"""The pieces that algorithms are made of: pure functions of tensors, and the hyperparameters that choose among them."""
