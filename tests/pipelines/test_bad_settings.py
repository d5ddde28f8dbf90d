"""What cannot be, and what is seldom meant: refused or warned of by name, before anything is trained."""

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from golden import fixture_a

from algos import ALGORITHMS
from algos.pieces.settings import SettingsError, from_dict
from algos.training.config import RunConfig
from pipelines.checks import KL_SETTINGS
from pipelines.study import Study

ROOT = Path(__file__).parents[2]
DEFAULT = yaml.safe_load((ROOT / "pipelines" / "config.yaml").read_text())


def study(run: dict, trl: bool = False, **rl) -> dict:
    """The default study with one RL stage, x, and other shared settings; and the TRL baseline of x."""
    config = copy.deepcopy(DEFAULT)
    cold_start = config["stages"]["cold_start"]
    config["stages"] = {"cold_start": cold_start, "x": {"kind": "rl", "from": "cold_start", **run}}
    config["stages"] |= {"trl_x": {"like": "x", "trainer": "trl"}} if trl else {}
    config["defaults"]["rl"] |= rl
    return config


def settings(algorithm: str, **own) -> dict:
    return {"algorithm": algorithm, "settings": own}


REFUSED = [
    # advantages against ratios
    (settings("gspo", credit="token"), "ratio sequence is one number per response, .* credit token.*sequence_token"),
    (settings("gspo", scale="whiten"), "ratio sequence is one number per response, .* scale whiten"),
    (settings("grpo", ratio="product", credit="token"), "ratio product is one number per response"),
    (settings("gmpo", credit="token"), "one advantage per response, got .* credit token"),
    # a critic where there is none, and none where there is one
    (settings("grpo", gae_lambda=0.9), "settings: gae_lambda is no setting of grpo, which has no critic; ppo, ppo_mc"),
    (settings("ppo_mc", tau_pos=1.0), "settings: tau_pos is no setting of ppo_mc; sapo have it"),
    (settings("grpo", gae_lamda=0.9), "'gae_lamda' is unknown"),
    (settings("grpo", baseline="critic"), "baseline critic is GAE, which needs a critic: choose .* such as ppo"),
    (settings("ppo", baseline="group_mean"), "GAE needs a critic, got baseline group_mean: .* choose reinforce_pp or"),
    (settings("ppo", critic="none"), "critic: 'none' is unknown. Allowed: separate, shared"),
    (settings("ppo", critic_head="deep"), "critic_head: 'deep' is unknown. Allowed: linear, mlp"),
    (settings("ppo", scale="group_std"), "scale must be none or whiten, got group_std"),
    (settings("ppo", critic_detach=True), "critic_detach is for critic shared"),
    (settings("ppo_shared", critic_init="fresh"), "critic shared .* got critic_init fresh"),
    (settings("ppo", critic_init="random"), "critic_init: 'random' is unknown. Allowed: fresh, policy, reward_model"),
    (settings("ppo", value_warmup=-1), "value_warmup must be at least 0, got -1"),
    (settings("ppo", value_coef=-1.0), "value_coef must be at least 0, got -1"),
    (settings("ppo", value_clip=0.0), "value_clip must be above 0, or null, got 0"),
    (settings("ppo", gamma=1.5), "gamma must be at most 1, got 1.5"),
    (settings("ppo", gae_lambda=1.5), "gae_lambda must be at most 1, got 1.5"),
    (settings("ppo", gae_lambda_critic=-0.1), "gae_lambda_critic must be at least 0, or null, got -0.1"),
    (settings("ppo", critic_layers=4), "settings: critic_layers is 4, but models.base.layers is 3; at most that many"),
    (
        {"algorithm": "ppo", "critic": "student", "settings": {"critic_layers": 3}},
        "settings: critic_layers is 3, but models.student.layers is 2; at most that many",
    ),
    (settings("ppo", critic_layers=0), "critic_layers must be above 0, or null, got 0"),
    ({"algorithm": "ppo", "critic": "/no/such"}, "stages.x.critic: '/no/such' is unknown. Allowed: "),
    ({"algorithm": "grpo", "critic": "base"}, "stages.x.critic: without effect, as there is no separate critic"),
    ({"algorithm": "grpo", "reference": "base"}, "stages.x.reference: without effect, as kl_coef is 0"),
    (
        {"algorithm": "ppo", "critic": "base", "settings": {"critic_init": "fresh"}},
        "stages.x.critic: without effect, as there is no separate critic that begins as a policy",
    ),
    (settings("ppo_shared", critic_layers=1), "critic shared stands on .* critic_layers must be null, got 1"),
    # memory and speed
    ({"algorithm": "trpo", "compile": True}, "trpo needs second derivatives, .*: compile must be false, got true"),
    ({"algorithm": "grpo", "offload": ["policy"]}, r"offload\[0\]: 'policy' is unknown"),
    ({"algorithm": "grpo", "lora": {"rank": 0}}, "lora.rank must be above 0, got 0"),
    # ratios against divisors and weights
    (settings("gspo", aggregation="token-mean"), "ratio sequence with aggregation token-mean .* use seq-mean-to"),
    (settings("gspo_token", aggregation="token-mean"), "ratio sequence_token with aggregation token-mean"),
    (settings("gmpo", aggregation="token-mean"), "aggregation must be seq-mean-token-mean, got token-mean"),
    (settings("gspo", correction="token_truncate"), "correction token_truncate weighs tokens, but ratio seq"),
    (settings("grpo", ratio="product", correction="token_mask"), "correction token_mask weighs tokens"),
    (settings("gmpo", correction="token_mask"), "correction token_mask weighs tokens, but GMPO's mean is one number"),
    (settings("grpo", correction="token_mask", correction_high=0.5), "correction_high must be above correction_low, "),
    (settings("gmpo", ratio="sequence"), "ratio must be token, got sequence"),
    (settings("cispo", ratio="product"), "CISPO .* ratio must be token, got product"),
    *(
        (settings(name, ratio="none"), "ratio none: this objective is made of the ratio; choose token, or")
        for name in ("grpo", "ppo", "gspo", "cispo", "sapo", "ppo_penalty", "trpo", "reinforce_as_tinker")
    ),
    (settings("rloo", ratio="token"), "REINFORCE has no ratio: ratio must be none, got token"),
    (settings("raft", baseline="group_mean"), "RAFT's advantages are all 1: baseline must be none, got group_mean"),
    (settings("raft", scale="whiten_minibatch"), "RAFT's advantages are all 1: scale must be none"),
    (settings("raft", kl_coef=0.1), "RAFT's advantages are all 1, .* kl_in must be loss, got reward"),
    # KL
    *((settings("grpo", **{name: value}), f"stages.x.settings: {name} without effect, as kl_coef is 0: .* set kl_coef")
      for name, value in (
          ("kl_estimator", "k3"), ("kl_in", "loss"), ("kl_direction", "reverse"), ("kl_importance_weighted", True),
          ("kl_horizon", 100), ("kl_target", None),
      )),
    (settings("grpo", kl_in="loss", kl_estimator="k3", kl_coef=0.0), "settings: kl_estimator, kl_in without effect"),
    (settings("grpo", kl_target=1.0), "kl_target 1.0 steers kl_coef, which is 0: start it above 0"),
    (settings("grpo", kl_target=-1.0, kl_coef=0.1), "kl_target must be above 0, or null, got -1"),
    (settings("grpo", kl_direction="forward", kl_coef=0.1), "kl_direction forward needs kl_estimator full, got k3"),
    (
        settings("ppo", kl_direction="forward", kl_estimator="full", kl_coef=0.1),
        "kl_direction forward belongs into the loss, got kl_in reward",
    ),
    (settings("ppo", kl_importance_weighted=True, kl_coef=0.1), "kl_in reward carries no gradient: kl_importance_w"),
    (
        settings("grpo", kl_importance_weighted=True, kl_coef=0.1, kl_estimator="k2"),
        "kl_importance_weighted makes k1 and k3 .* kl_estimator k2",
    ),
    (settings("ppo", kl_estimator="k3+", kl_coef=0.1), "kl_in reward carries no gradient: .* kl_estimator k3+"),
    (settings("grpo", kl_coef=-0.1), "kl_coef must be at least 0, got -0.1"),
    (settings("grpo", kl_coef=0.1, kl_horizon=0), "kl_horizon must be above 0, got 0"),
    # out of range
    (settings("grpo", dual_clip=1.0), "dual_clip must be above 1, or null, got 1"),
    (settings("grpo", clip_high=0.3, ratio_cap=1.2), r"ratio_cap must be at least 1 \+ clip_high = 1.3, .* got 1.2"),
    (settings("grpo", off_policy_threshold=0.0), "off_policy_threshold must be above 0, or null, got 0"),
    (settings("grpo", off_policy_threshold=0.1, ratio="product"), "off_policy_threshold 0.1 .* product a sum"),
    (settings("grpo", clip_low=-0.1), "clip_low must be at least 0, got -0.1"),
    (settings("grpo", clip_high=-0.1), "clip_high must be at least 0, got -0.1"),
    (settings("grpo", correction_low=-0.1), "correction_low must be at least 0, got -0.1"),
    (settings("cispo", is_max=0.5), "is_max must be at least 1, got 0.5"),
    (settings("sapo", tau_pos=0.0), "tau_pos must be above 0, got 0"),
    (settings("sapo", tau_neg=-1.0), "tau_neg must be above 0, got -1"),
    (settings("gmpo", clip_log=0.0), "clip_log must be above 0, got 0"),
    (settings("ppo_penalty", penalty_coef=0.0), "penalty_coef must be above 0, got 0"),
    (settings("ppo_penalty", penalty_target=-1.0), "penalty_target must be above 0, got -1"),
    (settings("dr_grpo", aggregation_length=0), "aggregation_length must be above 0, or null, got 0"),
    (settings("dapo", max_rounds=0), "max_rounds must be above 0, got 0"),
    (settings("grpo", target_kl=0.0), "target_kl must be above 0, or null, got 0"),
    (settings("grpo", entropy_coef=-1.0), "entropy_coef must be at least 0, got -1"),
    (settings("grpo", std_epsilon=-1.0), "std_epsilon must be at least 0, got -1"),
    (settings("grpo", std_ddof=2), "std_ddof must be at most 1, got 2"),
    *(
        (settings("grpo", **{name: "mean"}), f"{name}: 'mean' is unknown. Allowed: ")
        for name in (
            *("baseline", "scale", "credit", "ratio", "aggregation", "keep", "correction"),
            *("kl_in", "kl_estimator", "kl_direction"),
        )
    ),
    (settings("grpo", keep="mixed_groups"), "keep: 'mixed_groups' is a setting .* write dynamic_sampling: true"),
    (settings("grpo", keep="corect"), "keep: 'corect' is unknown. Did you mean 'correct'"),
    # TRPO
    (settings("trpo", critic="shared"), "trpo needs critic separate, got shared"),
    (settings("trpo", max_kl=0.0), "max_kl must be above 0, got 0"),
    (settings("trpo", cg_damping=-1.0), "cg_damping must be at least 0, got -1"),
    *(
        (settings("trpo", **{name: 0}), f"{name} must be above 0, got 0")
        for name in ("cg_iterations", "line_search_steps", "fisher_responses")
    ),
    ({"algorithm": "trpo", "minibatches": 4}, "trpo makes one step per rollout batch: .* must be 1, got 1 and 4"),
    ({"algorithm": "trpo", "epochs": 2}, "trpo makes one step per rollout batch: .* must be 1, got 2 and 1"),
    # runs
    ({"algorithm": "gprpo"}, "algorithm: 'gprpo' is unknown. Did you mean 'grpo'"),
    ({"algorithm": "rlo"}, "algorithm: 'rlo' is unknown. Did you mean 'rloo'"),
    ({"algorithm": "rloo", "group_size": 1}, "group_size must be at least 2 for rloo, got 1: a response is compared"),
    (
        {"algorithm": "grpo", "budget_tokens": 1000, "optimizer": {"schedule": "linear"}},
        "budget_tokens leaves the number .* optimizer.schedule must be constant, got linear",
    ),
    ({"algorithm": "grpo", "minibatch_of": "groups"}, "minibatch_of: 'groups' is unknown"),
    (
        {"algorithm": "grpo", "minibatch_of": "prompts", "prompts_per_step": 6, "minibatches": 4},
        "minibatch_of prompts needs prompts_per_step = 6 to be a multiple of minibatches, got 4",
    ),
    ({"algorithm": "grpo", "old_logprobs": "mine"}, "old_logprobs: 'mine' is unknown"),
    ({"algorithm": "grpo", "micro_batch_tokens": 0}, "micro_batch_tokens must be above 0, or null, got 0"),
    ({"algorithm": "grpo", "logits_at_once": 0}, "logits_at_once must be above 0, or null, got 0"),
    ({"algorithm": "grpo", "budget_tokens": 0}, "budget_tokens must be above 0|budget_tokens: 0 is less than"),
]  # fmt: skip


@pytest.mark.parametrize("run, message", REFUSED, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_what_cannot_be_is_refused_by_name(run, message):
    with pytest.raises(SettingsError, match=message) as raised:
        Study(study(run), "mine.yaml")
    assert str(raised.value).startswith("mine.yaml: stages.x") and "\n" not in str(raised.value)


def test_settings_that_the_record_spells_out_are_no_mistake():  # a command gets all keys, kl_estimator among them
    resolved = Study(study({"algorithm": "grpo"}), "mine.yaml").resolved("x", 0)
    assert set(KL_SETTINGS) <= set(resolved["settings"])
    from_dict(RunConfig, resolved)
    for run in (settings("grpo", kl_coef=0.1, kl_estimator="k2", kl_in="loss"), settings("rloo", kl_estimator="full")):
        Study(study(run), "mine.yaml")


def test_the_nearest_possible_settings_are_accepted():
    for run in (
        settings("gspo_token", credit="token"),
        settings("grpo", baseline="leave_one_out", scale="whiten", credit="token"),
        settings("ppo_shared", critic_detach=True),
        settings("grpo", clip_high=0.3, ratio_cap=1.3, dual_clip=1.1),
        settings("cispo", is_max=1.0),
        settings("grpo", kl_direction="forward", kl_estimator="full", kl_coef=0.1),
        settings("grpo", kl_target=1.0, kl_coef=0.1),
        settings("gmpo", correction="sequence_mask"),
        settings("raft", kl_coef=0.1, kl_in="loss"),
        {"algorithm": "trpo"},
        {"algorithm": "grpo", "budget_tokens": 1000},
    ):
        Study(study(run), "mine.yaml")


@pytest.mark.parametrize("algorithm, own", [("grpo", {"std_epsilon": 1.0e-4}), ("ppo", {"gae_lambda": 1.0})])
def test_a_trl_baseline_cannot_end_by_tokens(algorithm, own):
    run = settings(algorithm, **own)
    Study(study(run, trl=True), "mine.yaml")
    with pytest.raises(SettingsError, match=r"stages\.trl_x: trainer trl: TRL .* got budget_tokens 1000"):
        Study(study({**run, "budget_tokens": 1000}, trl=True), "mine.yaml")


def test_a_trl_baseline_cannot_shuffle_whole_prompts():
    run = {**settings("grpo", std_epsilon=1.0e-4), "minibatch_of": "prompts"}
    Study(study({**run, "minibatches": 1}, trl=True), "mine.yaml")
    with pytest.raises(
        SettingsError, match=r"stages\.trl_x: trainer trl: TRL shuffles single .* got minibatch_of prompts"
    ):
        Study(study({**run, "minibatches": 2}, trl=True), "mine.yaml")


# ---- what is missing is named by the pure functions

TWO = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    "own, missing, message",
    [
        (
            {"kl_coef": 0.1},
            "ref_logprobs",
            "kl_estimator k3 needs a reference, got ref_logprobs None .* kl_coef is 0.1",
        ),
        (
            {"kl_coef": 0.1, "kl_estimator": "full"},
            "full_kl",
            "kl_estimator full needs the KL over the whole vocabulary",
        ),
        ({"entropy_coef": 0.1}, "entropies", "entropy_coef 0.1 needs the full-vocabulary entropies, got None"),
        (
            {"correction": "token_mask"},
            "sampler_logprobs",
            "correction token_mask needs the sampler's log-probabilitie",
        ),
        (
            {"aggregation": "seq-mean-token-sum-norm"},
            None,
            "seq-mean-token-sum-norm needs aggregation_length, got None",
        ),
    ],
)
def test_a_loss_without_what_its_settings_need_is_refused(own, missing, message):
    a, entry = fixture_a(), ALGORITHMS["grpo"]
    inputs = {"ref_logprobs": a.ref, "sampler_logprobs": a.old, "entropies": a.values, "full_kl": a.values}
    with pytest.raises(ValueError, match=message):
        entry.loss(
            a.new,
            a.old,
            TWO,
            a.mask,
            replace(entry.defaults, **own),
            a.totals,
            **{**inputs, missing or "full_kl": None},
        )


@pytest.mark.parametrize("algorithm", ["grpo", "gspo", "ppo", "rloo", "cispo", "gmpo", "sapo"])
def test_one_advantage_per_row_without_a_column_is_refused(algorithm):  # (B,) would broadcast to (B, B)
    a, entry = fixture_a(), ALGORITHMS[algorithm]
    with pytest.raises(ValueError, match=r"advantages must be \(2, 1\).*, got \(2,\)"):
        entry.loss(a.new, a.old, TWO[:, 0], a.mask, entry.defaults, a.totals, a.ref)


@pytest.mark.parametrize(
    "algorithm, own, missing, message",
    [
        ("ppo", {}, "values", r"baseline critic \(GAE\) needs the critic's values, got None"),
        ("rloo", {"kl_coef": 0.1}, "ref_logprobs", "kl_coef 0.1 needs the reference's log-probabilities, got None"),
        ("ppo", {"kl_coef": 0.1}, "ref_logprobs", "kl_coef 0.1 needs the reference's log-probabilities, got None"),
        ("rloo", {"kl_estimator": "full"}, "full_kl", "kl_estimator full in the reward needs the full-vocabulary KL"),
        ("remax", {}, "greedy_rewards", "baseline greedy needs the rewards of the greedy responses, got None"),
    ],
)
def test_advantages_without_what_their_settings_need_are_refused(algorithm, own, missing, message):
    a, entry = fixture_a(), ALGORITHMS[algorithm]
    a.full_kl, a.greedy_rewards = a.values, a.rewards[:1]
    config = replace(entry.defaults, **own)
    entry.advantages(a, config)
    setattr(a, missing, None)
    with pytest.raises(ValueError, match=message):
        entry.advantages(a, config)


# ---- possible, but seldom meant

WARNED = [
    (settings("grpo", kl_coef=0.1, kl_estimator="k1"), "k1 as a loss has no expected gradient"),
    (settings("ppo", kl_coef=0.1, kl_estimator="k2"), "k2 in the reward has the gradient of no divergence"),
    (settings("ppo", kl_coef=0.1, kl_estimator="k3"), "k3 in the reward has the gradient of no divergence"),
    (settings("grpo", ratio="product"), "ratio product explodes or vanishes with length"),
    (settings("gspo", clip_low=0.2, clip_high=0.2), "ratio sequence with clip_low 0.2 and clip_high 0.2: a mean over"),
    (settings("grpo", ratio="sequence_token"), "ratio sequence_token with clip_low 0.2 and clip_high 0.2: a mean over"),
    ({"algorithm": "gspo_unclipped"}, "ratio sequence with clip_low 0.2 and clip_high 0.2: a mean over"),
    ({"algorithm": "reinforce", "minibatches": 4}, "ratio none with 4 optimizer steps per rollout batch"),
    ({"algorithm": "rloo", "epochs": 3}, "ratio none with 3 optimizer steps per rollout batch"),
    *(
        ({"algorithm": name, "minibatches": 1}, "with one optimizer step per rollout batch all ratios are 1")
        for name in ("grpo", "ppo", "gspo", "cispo", "gmpo", "sapo", "ppo_penalty", "grpo_as_trl")
    ),
    (settings("grpo", baseline="none"), "scale group_std with baseline none: where all rewards of the group are equal"),
    (
        settings("lite_ppo", baseline="none"),
        "scale batch_std with baseline none: where all rewards of the batch are eq",
    ),
]
UNWARNED = [
    settings("grpo", kl_coef=0.1, kl_estimator="k1", kl_importance_weighted=True),
    settings("grpo", kl_coef=0.1, kl_estimator="k2"),
    settings("gspo", clip_low=0.03, clip_high=0.04),
    settings("ppo", kl_coef=0.1),
    settings("lite_ppo", baseline="batch_mean"),
    {"algorithm": "reinforce"},  # one step per batch is its own
    {"algorithm": "trpo"},  # one step, in which the ratios leave 1
]


@pytest.mark.parametrize("run, message", WARNED, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_what_is_seldom_meant_is_warned_of_by_name(run, message):
    checked = Study(study(run), "mine.yaml")
    assert [w for w in checked.warnings if w.startswith(f"stages.x: {message}")] == checked.warnings != []
    run = from_dict(RunConfig, checked.resolved("x", 0))
    assert [f"stages.x: {warning}" for warning in run.warnings()] == checked.warnings  # what run.json records


@pytest.mark.parametrize("run", UNWARNED, ids=str)
def test_what_is_meant_is_not_warned_of(run):
    assert Study(study(run), "mine.yaml").warnings == []


def test_the_default_study_warns_of_nothing_and_a_trl_baseline_does_not_warn_again():
    assert Study(DEFAULT, "config.yaml").warnings == []
    run = settings("grpo", std_epsilon=1.0e-4)
    assert len(Study(study({**run, "minibatches": 1}, trl=True), "mine.yaml").warnings) == 1


@pytest.mark.parametrize("command", [["pipelines.study", "FILE"], ["snakemake", "--dry-run", "--configfile", "FILE"]])
def test_warnings_are_printed_once_when_a_study_is_checked(tmp_path, command):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(study(settings("grpo", ratio="product"))))
    done = subprocess.run(
        [sys.executable, "-m", *(str(path) if word == "FILE" else word for word in command)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("warning: stages.x: ratio product explodes") == 1 and "explodes" not in done.stdout
