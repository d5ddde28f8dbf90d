"""How far each estimator's expected gradient is from the exact one, by enumeration."""
