import pytest
import torch

from algos.pieces.masked import masked_mean, masked_sum, masked_var, masked_whiten

NAN = float("nan")
X = torch.tensor([[1.0, 2.0, NAN], [6.0, NAN, NAN]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_sum_mean_and_variance_by_hand():  # 1, 2, 6: sum 9, mean 3, squares 4 + 1 + 9 = 14
    assert masked_sum(X, MASK) == 9
    assert masked_mean(X, MASK) == 3
    assert masked_var(X, MASK) == 7
    torch.testing.assert_close(masked_var(X, MASK, ddof=0), torch.tensor(14 / 3))
    torch.testing.assert_close(masked_mean(X, MASK, dim=1), torch.tensor([1.5, 6.0]))


def test_an_empty_row_has_mean_zero():
    assert masked_mean(X, torch.zeros_like(MASK), dim=1).tolist() == [0.0, 0.0]


def test_whitening_has_mean_zero_and_variance_one_and_leaves_padding_at_zero():
    white = masked_whiten(X, MASK)
    torch.testing.assert_close(masked_mean(white, MASK), torch.tensor(0.0))
    torch.testing.assert_close(masked_var(white, MASK), torch.tensor(1.0))
    assert (white[~MASK] == 0).all()
    kept = masked_whiten(X, MASK, shift_mean=False)
    torch.testing.assert_close(masked_mean(kept, MASK), torch.tensor(3.0))
    assert (kept[~MASK] == 0).all()  # and not the mean that was added back


def test_nan_in_padding_reaches_no_gradient():
    x = X.clone().requires_grad_(True)
    (masked_whiten(x, MASK) ** 3).sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad[MASK].abs().sum() > 0


@pytest.mark.parametrize("mask", [[True, False], [False, False]])
def test_the_variance_of_one_number_or_none_is_0(mask):  # divisor n - 1 = 0 or -1, not NaN and not negative
    assert masked_var(torch.tensor([3.0, 9.0]), torch.tensor(mask)).item() == 0.0
