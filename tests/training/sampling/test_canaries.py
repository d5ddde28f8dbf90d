"""Two canaries for stale weights: the fingerprint of an engine's weights, and the ratio of trainer to sampler."""

import pytest
import torch

from algos.training.sampling.engine import StaleWeights
from algos.training.sampling.engines import RatioCanary
from algos.training.sampling.fingerprint import differing, fingerprint


def test_a_fingerprint_survives_fusing_and_shows_every_change():
    q, k, norm = torch.randn(4, 6), torch.randn(2, 6), torch.randn(6)
    ours = fingerprint([("layers.0.q.weight", q), ("layers.0.k.weight", k), ("layers.1.norm", norm), ("embed", q)])
    fused = torch.cat([q, k])
    padded = torch.cat([q, torch.zeros(3, 6)])
    theirs = fingerprint([("embed", padded), ("m.layers.0.qk.weight", fused), ("m.layers.1.norm", norm)])
    assert ours == theirs and set(ours) == {"", "0", "1"} and differing(ours, theirs) == []
    for change in (1.0000001, -1.0):
        changed = fused.clone()
        changed[5, 5] *= change
        other = fingerprint([("embed", q), ("layers.0.qk.weight", changed), ("layers.1.norm", norm)])
        assert differing(ours, other) == ["layer 0"]
    exchanged = fingerprint([("embed", q), ("layers.1.qk.weight", fused), ("layers.0.norm", norm)])
    assert differing(ours, exchanged) == ["layer 0", "layer 1"]
    assert differing(ours, fingerprint([("layers.0.qk.weight", fused), ("layers.1.norm", norm)])) == [
        "embeddings and head"
    ]
    half = fingerprint([("layers.0.q", q)], torch.bfloat16)
    assert half == fingerprint([("layers.0.q", q.bfloat16())]) != fingerprint([("layers.0.q", q)])


def test_a_fingerprint_does_not_cancel_out_over_many_weights():
    """An update that adds to one weight what it takes from another, bit for bit, shows."""
    weights = (10 * torch.arange(1, 10_001, dtype=torch.int32)).view(torch.float32)
    changed = weights.view(torch.int32).clone()
    changed[0] += 1
    changed[1] -= 1
    assert fingerprint([("w", weights)]) != fingerprint([("w", changed.view(torch.float32))])


def ratios(figure: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities with exactly this figure, and nonsense in the padding."""
    sampler = torch.full((2, 3), -1.0)
    trainer = sampler + torch.tensor([1 + figure, 1 - figure]).log()[:, None]
    mask = torch.tensor([[True, True, False]] * 2)
    return torch.where(mask, trainer, float("nan")), sampler, mask


def test_the_canary_is_calibrated_on_the_first_batch_and_fails_above_its_limit():
    canary = RatioCanary()
    first = canary.check(*ratios(0.004))  # the mean of |1.004 - 1| and |0.996 - 1|; five times that is the limit
    assert first["canary_ratio"] == pytest.approx(0.004, rel=1e-3)
    assert first["canary_limit"] == pytest.approx(0.02, rel=1e-3)
    assert canary.check(*ratios(0.019))["canary_limit"] == first["canary_limit"]  # of the first batch, not the last
    with pytest.raises(StaleWeights, match=r"0\.021.*0\.02.*not synchronized"):
        canary.check(*ratios(0.021))


def test_the_canary_has_a_floor_for_exact_engines_and_a_ceiling_for_the_first_batch():
    canary = RatioCanary()
    assert canary.check(*ratios(0.0)) == {"canary_ratio": 0.0, "canary_limit": 1e-4}
    canary.check(*ratios(0.9e-4))
    with pytest.raises(StaleWeights):
        canary.check(*ratios(1.2e-4))
    for dtype, figure in (("float32", 0.06), ("float32", float("nan")), ("bfloat16", 0.09)):
        with pytest.raises(StaleWeights, match="another distribution"):
            RatioCanary(dtype).check(*ratios(figure))
    assert RatioCanary("bfloat16").check(*ratios(0.06))["canary_ratio"] == pytest.approx(0.06, rel=1e-3)
