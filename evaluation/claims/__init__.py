"""The ledger of claims: what is said of these algorithms, and what the published tables say of it."""
