"""Training on given or accepted text: SFT, rejection sampling, expert iteration, distillation."""
