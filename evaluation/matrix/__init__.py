"""The public architectures as tiny random models, and every kind of stage tried on each of them."""
