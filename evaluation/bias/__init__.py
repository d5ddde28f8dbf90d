"""How far each estimator's expected gradient is from the exact gradient, by enumeration."""
