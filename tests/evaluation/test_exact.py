"""Bias proofs by enumeration: what is unbiased here is so to 1e-10, not within an error bar."""

import csv
import math
import sys

import pytest
import torch

from algos import ALGORITHMS
from evaluation.bias import exact
from evaluation.bias.exact import PLAIN, UNCLIPPED, deviation, kl_gradient
from evaluation.bias.gradients import Policies, enumerate_batches, sampled_gradients
from evaluation.bias.measure import causes, configured, measure, relative, repaired
from evaluation.bias.toy import CRITICS, LENGTH, THINK, expected_reward, gradient_of, make_toy, prefix_kl, response_kl

TOY = make_toy()
BINARY = make_toy(binary=True)
FAR = TOY.moved(0.8)
G = 2
EXACT = 1e-10


def of(name, toy=TOY, group_size=G, critic="exact", policies=None, **settings):
    return measure(ALGORITHMS[name], toy, group_size, critic, policies, **settings)


def finite_differences(value, logits, step=1e-5):
    found = torch.zeros_like(logits)
    for i in range(logits.numel()):
        shift = torch.zeros_like(logits).flatten()
        shift[i] = step
        shift = shift.view_as(logits)
        found.view(-1)[i] = (value(logits + shift) - value(logits - shift)) / (2 * step)
    return found


# The toy


def test_seven_responses_of_one_to_three_tokens_that_add_up_to_one():
    assert TOY.tokens[TOY.mask].min() == 0 and TOY.mask.sum(dim=1).tolist() == [1, 1, 2, 2, 3, 3, 3]
    rows = [tuple(y[m].tolist()) for y, m in zip(TOY.tokens, TOY.mask, strict=True)]
    assert rows == [(1,), (2,), (0, 1), (0, 2), (0, 0, 1), (0, 0, 2), (0, 0, 0)]
    torch.testing.assert_close(TOY.probabilities(TOY.logits).sum(dim=1), torch.ones(2, dtype=torch.float64))


def test_rewards_depend_on_length_and_one_prompt_is_harder():
    probabilities = TOY.probabilities(TOY.logits)
    right = (probabilities * TOY.correct).sum(dim=1)
    assert right[0] > 2 * right[1]
    assert not torch.equal(TOY.rewards, BINARY.rewards) and set(BINARY.rewards.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    "value",
    [
        expected_reward(TOY),
        response_kl(TOY),
        prefix_kl(TOY, FAR),
        prefix_kl(TOY, FAR, "forward"),
    ],
    ids=["reward", "response KL", "prefix KL", "forward prefix KL"],
)
def test_exact_gradients_against_finite_differences(value):
    torch.testing.assert_close(gradient_of(value, TOY.logits), finite_differences(value, TOY.logits), atol=1e-8, rtol=0)


def test_expected_reward_by_hand():  # walk the tree: an answer ends, a thought goes on
    p = torch.softmax(TOY.logits[1], dim=-1).tolist()
    r = TOY.rewards[1].tolist()
    last = p[2][1] * r[4] + p[2][2] * r[5] + p[2][0] * r[6]
    middle = p[1][1] * r[2] + p[1][2] * r[3] + p[1][0] * last
    first = p[0][1] * r[0] + p[0][2] * r[1] + p[0][0] * middle
    assert TOY.values("exact", TOY.logits)[1].tolist() == pytest.approx([first, middle, last], abs=1e-14)
    easy = float(TOY.values("exact", TOY.logits)[0, 0])
    assert float(expected_reward(TOY)(TOY.logits)) == pytest.approx((easy + first) / 2, abs=1e-14)


def test_the_greedy_response_follows_the_largest_logits():
    for p in range(2):
        state = 0
        while state < LENGTH - 1 and TOY.logits[p, state].argmax() == THINK:
            state += 1
        expected = [THINK] * state + [int(TOY.logits[p, state].argmax())]
        y = int(TOY.greedy(TOY.logits)[p])
        assert TOY.tokens[y][TOY.mask[y]].tolist() == expected
    forced = torch.zeros_like(TOY.logits)
    forced[..., THINK] = 1.0
    assert TOY.greedy(forced).tolist() == [6, 6]


@pytest.mark.parametrize("dynamic", [False, True])
def test_all_batches_have_probability_one(dynamic):
    prompts, responses, weights = enumerate_batches(TOY, 3, dynamic, TOY.logits)
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-12)
    assert responses.shape == (len(weights), 2, 3)
    right = TOY.correct[prompts[..., None], responses].sum(dim=-1)
    assert not dynamic or ((right > 0) & (right < 3)).all()


def test_the_kl_of_whole_responses_is_the_sum_over_the_prefixes_that_the_policy_meets():
    whole = response_kl(TOY)(TOY.logits)
    torch.testing.assert_close(prefix_kl(TOY, TOY.logits)(TOY.logits), whole, atol=1e-14, rtol=0)


# On-policy


@pytest.mark.parametrize("name", ["reinforce", "rloo", "remax"])
@pytest.mark.parametrize("group_size", [2, 3])
def test_unbiased(name, group_size):
    found = of(name, group_size=group_size)
    assert found.bias < EXACT and found.verdict == found.words == "unbiased"


@pytest.mark.parametrize(
    "name, group_size, factor",
    [
        ("reinforce_group", 2, 1 / 2),
        ("reinforce_group", 3, 2 / 3),
        ("reinforce_batch", 2, 3 / 4),  # of the batch's 2 x 2 rewards one is the own
        ("dr_grpo", 2, 1 / 2 / LENGTH),
        ("dr_grpo", 3, 2 / 3 / LENGTH),
    ],
)
def test_the_own_response_in_the_baseline_shrinks_the_gradient(name, group_size, factor):
    found = of(name, group_size=group_size)
    assert found.factor == pytest.approx(factor, abs=EXACT) and found.rest < EXACT
    assert found.verdict == "unbiased up to a constant factor"


def test_dr_grpo_is_rloo_times_a_constant():
    torch.testing.assert_close(of("dr_grpo").mean, of("rloo").mean * (G - 1) / G / LENGTH, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "name", ["opo", "grpo", "dapo", "gspo", "cispo", "lite_ppo", "reinforce_pp", "ppo", "ppo_mc", "raft"]
)
def test_biased_beyond_any_factor(name):
    found = of(name)
    assert found.rest > 0.01 and found.verdict == "biased" and found.causes
    assert found.words.startswith("biased: " + found.causes[0])
    assert 0.8 < found.cosine < 1  # and yet uphill


@pytest.mark.parametrize("name", ["gspo", "gspo_token", "gmpo", "sapo", "gspo_as_paper", "gspo_unclipped"])
def test_on_policy_the_ratio_and_the_clip_change_nothing(name):
    torch.testing.assert_close(of(name).mean, of("grpo").mean, atol=1e-12, rtol=0)


def test_on_policy_cispo_and_token_mean_grpo_are_one():
    torch.testing.assert_close(of("cispo").mean, of("grpo", aggregation="token-mean").mean, atol=1e-12, rtol=0)


@pytest.mark.parametrize("critic", CRITICS)
def test_monte_carlo_ppo_is_unbiased_whatever_the_critic(critic):
    found = of("ppo_mc", critic=critic, scale="none", aggregation="seq-mean-token-sum")
    assert found.bias < EXACT


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95])
def test_gae_below_one_is_as_right_as_its_critic(lam):
    settings = {"scale": "none", "aggregation": "seq-mean-token-sum", "gae_lambda": lam}
    assert of("ppo", critic="exact", **settings).bias < EXACT
    for critic in ("constant", "wrong"):
        assert of("ppo", critic=critic, **settings).bias > 0.01


def test_dynamic_sampling_biases_shaped_rewards_only():  # groups of equal rewards have no gradient to lose
    settings = {"scale": "none", "aggregation": "seq-mean-token-sum", "dynamic_sampling": True}
    assert of("dapo", **settings).rest > 0.01
    assert of("dapo", toy=BINARY, **settings).rest < EXACT


def test_raft_climbs_correctness_and_ignores_the_reward():
    assert torch.equal(of("raft").mean, of("raft", toy=BINARY).mean)
    assert of("raft").cosine > 0.9


@pytest.mark.parametrize("name", [n for n in ALGORITHMS if n not in ("gmpo", "raft")])  # their means are not settings
def test_an_estimator_without_its_causes_is_unbiased_up_to_a_factor(name):
    hparams = configured(ALGORITHMS[name])
    critic = "wrong" if hparams.has_critic else "exact"
    found = of(name, critic=critic, **repaired(hparams, critic))
    assert found.causes == [] and found.rest < EXACT and found.factor > 0
    assert found.verdict == ("unbiased up to a constant factor" if found.factors else "unbiased")


@pytest.mark.parametrize(
    "name, critic", [(n, "exact") for n in ("opo", "grpo", "lite_ppo", "dapo", "top_entropy")] + [("ppo", "wrong")]
)
def test_each_cause_alone_makes_an_estimator_biased(name, critic):
    hparams = configured(ALGORITHMS[name])
    for cause in causes(hparams, critic):
        found = of(name, critic=critic, **repaired(hparams, critic, leave=cause))
        assert found.causes == [cause] and found.verdict == "biased", cause


@pytest.mark.parametrize("name", ["grpo", "dapo", "reinforce_pp", "raft", "opo"])
def test_sampled_batches_agree_with_the_enumeration(name):
    hparams = configured(ALGORITHMS[name])
    generator = torch.Generator().manual_seed(1)
    sampled = sampled_gradients(ALGORITHMS[name], hparams, TOY, G, 400, generator)
    found = of(name)
    assert 0.3 < deviation(sampled, found.mean) < 2
    spread = float(sampled.var(dim=0).sum() / found.mean.norm() ** 2)
    assert spread == pytest.approx(found.variance, rel=0.25)


def test_a_baseline_lowers_the_variance_and_a_wrong_critic_raises_it():
    assert of("rloo", group_size=3).variance < of("reinforce", group_size=3).variance
    settings = {"scale": "none", "aggregation": "seq-mean-token-sum"}
    assert 3 * of("ppo_mc", **settings).variance < of("ppo_mc", critic="wrong", **settings).variance


def test_maxrl_climbs_the_likelihood_cut_off_after_g_minus_1_terms():
    """Rewards 0 and 1: the gradient of log p = -sum_j (1 - p)^j / j, with j to G - 1 (arXiv:2602.02710, theorem 5)."""

    def likelihood(logits):
        p = (BINARY.probabilities(logits) * BINARY.correct).sum(dim=1)
        return -sum((1 - p) ** j / j for j in range(1, group_size)).mean()

    for group_size in (2, 3):
        settings = {"aggregation": "seq-mean-token-sum", "std_epsilon": 0.0}
        exact = gradient_of(likelihood, BINARY.logits)
        assert measure(ALGORITHMS["maxrl"], BINARY, group_size, exact=exact, **settings).bias < EXACT


@pytest.mark.parametrize("group_size", [2, 3])
def test_pass_at_k_climbs_the_best_reward_of_the_group(group_size):
    """The expected best of all groups of responses, weighted by their probabilities."""

    def best(logits):
        p, total = TOY.probabilities(logits), 0.0
        for group in torch.cartesian_prod(*[torch.arange(len(TOY.tokens))] * group_size):
            total = total + p[:, group].prod(dim=1) * TOY.rewards[:, group].max(dim=1).values
        return total.mean()

    found = measure(ALGORITHMS["pass_at_k"], TOY, group_size, exact=gradient_of(best, TOY.logits))
    assert found.factor == pytest.approx(1 / group_size, abs=EXACT) and found.rest < EXACT


# KL


WHOLE = gradient_of(response_kl(TOY), TOY.logits)


def prefix(visited_by=TOY.logits, direction="reverse"):
    return gradient_of(prefix_kl(TOY, visited_by, direction), TOY.logits)


@pytest.mark.parametrize("credit", ["response", "token"])
def test_k1_in_the_reward_has_the_gradient_of_the_kl_of_whole_responses(credit):
    mean = kl_gradient(TOY, Policies.of(TOY), kl_in="reward", kl_estimator="k1", credit=credit)
    assert relative(mean, WHOLE) < EXACT


@pytest.mark.parametrize(
    "kind, direction, settings",
    [
        ("k2", "reverse", {}),
        ("k3+", "reverse", {}),
        ("full", "reverse", {}),
        ("k3", "forward", {}),
        ("full", "forward", {"kl_direction": "forward"}),
        ("k1", "reverse", {"kl_importance_weighted": True}),
        ("k3", "reverse", {"kl_importance_weighted": True}),
    ],
)
def test_a_kl_loss_has_a_partial_gradient_per_prefix(kind, direction, settings):
    """Exact given the prefix; how a token changes later prefixes is left out, so not the gradient of the whole."""
    mean = kl_gradient(TOY, Policies.of(TOY), kl_in="loss", kl_estimator=kind, **settings)
    assert relative(mean, prefix(direction=direction)) < EXACT
    assert relative(mean, WHOLE) > 0.01


def test_on_the_last_token_the_partial_gradient_is_the_whole_one():
    torch.testing.assert_close(prefix()[:, -1], WHOLE[:, -1], atol=1e-12, rtol=0)
    assert (prefix() - WHOLE)[:, :-1].norm() > 0.01


def test_k1_as_a_loss_has_no_gradient():
    assert kl_gradient(TOY, Policies.of(TOY), kl_in="loss", kl_estimator="k1").norm() < EXACT


@pytest.mark.parametrize("kind", ["k2", "k3", "full"])
@pytest.mark.parametrize("credit", ["response", "token"])
def test_other_estimates_in_the_reward_have_the_gradient_of_no_kl(kind, credit):
    """full, too: what it says of a prefix is known before the token is chosen, so no token is credited with it."""
    mean = kl_gradient(TOY, Policies.of(TOY), kl_in="reward", kl_estimator=kind, credit=credit)
    for gradient in (WHOLE, prefix(), prefix(direction="forward")):
        assert relative(mean, gradient) > 0.1


def test_off_policy_only_the_ratio_or_the_whole_vocabulary_keeps_a_kl_loss_exact():
    policies = Policies.of(TOY, old=FAR)

    def gap(kind, **settings):
        mean = kl_gradient(TOY, policies, kl_in="loss", kl_estimator=kind, **settings)
        return relative(mean, prefix(FAR))

    assert (
        gap("k1", kl_importance_weighted=True) < EXACT
        and gap("k3", kl_importance_weighted=True) < EXACT
        and gap("full") < EXACT
    )
    assert gap("k2") > 0.01 and gap("k3") > 0.01 and gap("k3+") > 0.01


def test_rloo_with_its_kl_ascends_the_regularized_objective():
    coef = ALGORITHMS["rloo"].defaults.kl_coef
    regularized = gradient_of(expected_reward(TOY), TOY.logits) - coef * WHOLE
    found = measure(ALGORITHMS["rloo"], TOY, G, exact=regularized, kl_coef=coef)
    assert coef > 0 and found.bias < EXACT


@pytest.mark.parametrize("critic", CRITICS)
def test_monte_carlo_ppo_with_kl_in_the_reward_ascends_the_regularized_objective(critic):
    regularized = gradient_of(expected_reward(TOY), TOY.logits) - 0.05 * WHOLE
    settings = {"scale": "none", "aggregation": "seq-mean-token-sum", "gae_lambda": 1.0, "kl_coef": 0.05}
    assert measure(ALGORITHMS["ppo"], TOY, 1, critic, exact=regularized, **settings).bias < EXACT


def test_the_entropy_bonus_is_that_of_the_prefixes():
    def entropy(logits):
        logprobs = torch.log_softmax(logits, dim=-1)
        visits = (TOY.probabilities(TOY.logits)[:, :, None] * TOY.mask).sum(dim=1)
        return (visits * -(logprobs.exp() * logprobs).sum(dim=-1)).sum(dim=-1).mean()

    with_bonus = gradient_of(expected_reward(TOY), TOY.logits) + 0.1 * gradient_of(entropy, TOY.logits)
    assert measure(ALGORITHMS["rloo"], TOY, G, exact=with_bonus, entropy_coef=0.1).bias < EXACT


# Off-policy


def test_only_the_product_of_ratios_is_exact_off_policy():
    policies = Policies.of(TOY, old=FAR)
    product = of("grpo", policies=policies, ratio="product", **PLAIN, **UNCLIPPED)
    token = of("grpo", policies=policies, **PLAIN, **UNCLIPPED)
    none = of("rloo", policies=policies)
    clipped = of("grpo", policies=policies, **PLAIN)
    assert product.bias < EXACT
    assert 0.01 < token.bias < none.bias / 2 and clipped.bias > 5 * token.bias


@pytest.mark.parametrize("name, settings", [("rloo", {}), ("grpo", PLAIN | UNCLIPPED)], ids=["no ratio", "token ratio"])
def test_the_bias_of_a_token_ratio_is_of_first_order_as_without_one(name, settings):
    near, nearer = (of(name, policies=Policies.of(TOY, old=TOY.moved(d)), **settings).bias for d in (0.01, 0.005))
    assert math.log2(near / nearer) == pytest.approx(1.0, abs=0.01)


def test_a_sequence_correction_is_exact_before_truncation_and_a_token_correction_is_not():
    policies = Policies.of(TOY, old=TOY.logits, sampler=TOY.moved(2.0))

    def bias(correction, low=0.0, high=1e9):
        return of("rloo", policies=policies, correction=correction, correction_low=low, correction_high=high).bias

    assert bias("sequence_truncate") < EXACT and bias("sequence_mask") < EXACT
    uncorrected = of("rloo", policies=policies).bias
    assert 0.01 < bias("token_truncate") < uncorrected / 2
    assert bias("sequence_truncate", high=2.0) > 0.01
    assert bias("sequence_mask", 0.5, 2.0) > bias("sequence_truncate", high=2.0)
    assert bias("token_mask", 0.5, 2.0) > bias("token_truncate", high=2.0)


# The command


def test_the_tables_are_printed_and_written(tmp_path, monkeypatch, capsys):
    names = ("rloo", "reinforce", "grpo", "gspo", "cispo", "sapo", "gmpo", "dppo", "vespo", "topr", "ppo", "ppo_mc")
    monkeypatch.setattr(exact, "ALGORITHMS", {name: ALGORITHMS[name] for name in names})
    monkeypatch.setattr(exact, "GROUP_SIZE", 2)
    monkeypatch.setattr(sys, "argv", ["exact", "--samples", "5", "--out", str(tmp_path / "exact.csv")])
    exact.main()
    text = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "exact.csv").open()))
    assert {row["verdict"] for row in rows if row["name"] == "rloo"} == {"unbiased"}
    assert len({row["section"] for row in rows}) == 5 and all(row["section"] in text for row in rows)
    assert all(row["name"].strip() in text and row["verdict"] for row in rows)
    assert max(map(len, text.splitlines())) < 200
