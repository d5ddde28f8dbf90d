"""When two implementations agree: every gradient, parameter by parameter."""

import torch


def close(got: dict, expected: dict) -> None:
    """Both hold the same names, the same numbers up to rounding, and some number that is not 0."""
    assert got.keys() == expected.keys() and got
    for name in got:
        torch.testing.assert_close(got[name], expected[name], atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert max(float(g.abs().max()) for g in got.values()) > 1e-4
