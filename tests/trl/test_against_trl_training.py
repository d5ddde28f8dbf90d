"""A second implementation: 20 optimizer steps of the suite and of TRL from one checkpoint on the same samples.

From the command's functions down: both read the same files, grade, compute old and reference log-probabilities, step
through shuffled minibatches, and save a checkpoint. Only the random parts are given: the responses (5 rollout batches,
or 20; none is the policy's own) and the order of the minibatches. All is in float64 except norms, softmax and rotary
angles, which the model computes in float32: they make left-padded and right-padded sequences differ by 1e-7.

Measured: some weight moves by 0.07 to 0.19, and all weights agree to 5e-7. With PPO they agree to 1e-6: the suite's
values are float32, and the temperature of TRL is 1 + 1e-7.
"""

import json
from contextlib import ExitStack
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from algos.pieces.settings import SettingsError
from algos.pieces.types import Rollouts
from algos.training import experience, train
from algos.training.config import RunConfig
from algos.training.models.checkpoints import load_policy, save_policy
from algos.training.models.tokens import encode_prompt, train_tokenizer
from algos.training.sampling import engines
from algos.training.stage.config import OptimizerConfig
from algos.training.trl import baseline as trl_baseline
from evaluation.tasks.files import read_jsonl, write_jsonl

CPU = torch.device("cpu")
TOKENIZER = tiny_tokenizer()
STEPS, PROMPTS, GROUP, LIMIT = 5, 2, 4, 16
RESPONSES = PROMPTS * GROUP
ORDER = torch.tensor([5, 0, 7, 2, 6, 1, 3, 4])  # of a rollout batch's responses, in every epoch
PROBLEMS = [
    {"question": text, "prompt": f"Question: {text}\nAnswer:\n", "answer": f"#### {answer}"}
    for text, answer in [("7+5=", 12), ("12-3=", 9), ("Mia has 7 apples. Mia finds 5 more.", 12), ("9-0=", 9)]
]
GRPO = {"std_epsilon": 1.0e-4}
KL = {"kl_in": "reward", "kl_estimator": "k1", "kl_coef": 0.05}
ONE_MINIBATCH = {"minibatches": 1, "epochs": 4}
CASES = {  # algorithm, its settings, options of the run
    "grpo": ("grpo", {**GRPO, "clip_high": 0.28}, {}),
    "grpo_checkpointed": ("grpo", {**GRPO, "clip_high": 0.28}, {"gradient_checkpointing": True}),
    "grpo_kl": ("grpo", {**GRPO, "kl_coef": 0.04, "kl_importance_weighted": True}, {"temperature": 0.8}),
    "grpo_token_mean": ("lite_ppo", GRPO, {}),  # TRL's bnpo
    "dr_grpo": ("dr_grpo", {}, {}),
    "dapo": ("dapo", {**GRPO, "dynamic_sampling": False, "mask_truncated": True}, ONE_MINIBATCH),
    "gspo": ("gspo", {**GRPO, "clip_low": 0.03, "clip_high": 0.04}, {}),
    "cispo": ("cispo", {**GRPO, "is_max": 1.2}, ONE_MINIBATCH),
    "rloo_clipped": (
        "grpo",
        {"baseline": "leave_one_out", "scale": "none", "ratio": "product", **KL},
        {"optimizer": {"schedule": "cosine", "warmup_steps": 3}},
    ),
    "rloo": (  # on-policy, as it is by default; gradient clipping would hide a factor
        "rloo",
        {},
        {"minibatches": 1, "epochs": 1, "steps": 20, "optimizer": {"max_grad_norm": None}},
    ),
    "ppo": ("ppo", {"gae_lambda": 1.0, "kl_coef": 0.05, "clip_low": 0.1, "clip_high": 0.1}, {}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint in float64 and the problems."""
    folder = tmp_path_factory.mktemp("start")
    save_policy(tiny_model(TOKENIZER), TOKENIZER, folder / "policy")
    write_jsonl(folder / "train.jsonl", PROBLEMS)
    return folder


def rollout_batches(config: RunConfig) -> list[Rollouts]:
    """Responses of random tokens to the prompts of each step, some ending in the right answer.

    With PPO every response runs into the length limit: TRL's PPO has one more position behind the last token.
    """
    generator = torch.Generator().manual_seed(0)
    batches = []
    for chosen in experience.prompt_schedule(len(PROBLEMS), config):
        ids = torch.full((RESPONSES, LIMIT), TOKENIZER.pad_token_id)
        lengths = torch.randint(9, LIMIT + 1, (RESPONSES,), generator=generator)
        if config.algorithm == "ppo":
            lengths[:] = LIMIT
        for row, length in enumerate(lengths.tolist()):
            ids[row, :length] = torch.randint(3, len(TOKENIZER), (length,), generator=generator)
            end = [] if length == LIMIT else [TOKENIZER.eos_token_id]
            if torch.rand((), generator=generator) < 0.4:
                end = TOKENIZER("\n" + PROBLEMS[chosen[row // GROUP]]["answer"])["input_ids"] + end
            ids[row, length - len(end) : length] = torch.tensor(end, dtype=torch.long)
        mask = torch.arange(LIMIT) < lengths[:, None]
        prompts = [encode_prompt(TOKENIZER, PROBLEMS[i]["prompt"]) for i in chosen]
        batches.append(Rollouts(prompts, GROUP, ids, mask, torch.zeros(ids.shape), lengths == LIMIT))
    return batches


def given(batches: list[Rollouts]) -> ExitStack:
    """Both samplers return the batches, one after the other, and every shuffle returns ORDER."""
    from trl import GRPOTrainer, RLOOTrainer
    from trl.experimental.ppo import ppo_trainer

    queues = [iter(batches), iter(batches)]
    randperm = torch.randperm

    def responses(rollouts, prompts):
        assert prompts == [prompt for prompt in rollouts.prompts for _ in range(GROUP)]
        return [ids[mask].tolist() for ids, mask in zip(rollouts.response_ids, rollouts.response_mask, strict=True)]

    def by_ppo(model, queries, *_):
        rollouts = next(queues[1])
        prompts = [row[row != TOKENIZER.pad_token_id].tolist() for row in queries]
        both = torch.cat([queries, torch.tensor(responses(rollouts, prompts))], dim=1)
        logits = ppo_trainer.forward(model, both, TOKENIZER.pad_token_id).logits[:, queries.shape[1] - 1 : -1]
        return both, logits

    def sampled(policy, tokenizer, prompts, *_):
        rollouts = next(queues[0])
        assert prompts == rollouts.prompts
        return rollouts

    patches = ExitStack()
    for target, name, replacement in (
        (engines, "sample", sampled),
        (engines.RatioCanary, "check", lambda *_: {}),  # the replayed tokens come without their log-probabilities
        (GRPOTrainer, "_generate_single_turn", lambda _, prompts, *__: (responses(next(queues[1]), prompts), None)),
        (RLOOTrainer, "_generate_single_turn", lambda _, prompts, *__: responses(next(queues[1]), prompts)),
        (ppo_trainer, "batch_generation", by_ppo),
        (torch, "randperm", lambda n, **kw: ORDER if n == RESPONSES else randperm(n, **kw)),
        (np.random, "permutation", lambda n: ORDER.numpy()),
    ):
        patches.enter_context(patch.object(target, name, replacement))
    return patches


def run(case: str, trainer: str, dtype: str = "float64") -> RunConfig:
    algorithm, settings, options = CASES[case]
    options = {"steps": STEPS, "minibatches": 2, "epochs": 2, **options}
    optimizer = {"learning_rate": 0.01, "adam_epsilon": 1.0e-3, **options.pop("optimizer", {})}
    config = RunConfig(
        algorithm,
        0,
        settings,
        trainer=trainer,
        prompts_per_step=PROMPTS,
        group_size=GROUP,
        micro_batch_size=2,
        max_response_tokens=LIMIT,
        optimizer=OptimizerConfig(**optimizer),
        critic_learning_rate=0.02,
        device="cpu",
        **options,
    )
    object.__setattr__(config, "dtype", dtype)  # float64 is no setting of a study: it is here to compare by
    return config


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_end_with_trls_weights(case, files, tmp_path):
    weights, metrics = {}, {}
    for trainer, module in (("own", train), ("trl", trl_baseline)):
        config, out = run(case, trainer), tmp_path / trainer
        with given(rollout_batches(config)):
            module.train(config, str(files / "policy"), str(files / "train.jsonl"), str(out))
        weights[trainer] = load_policy(out / "checkpoint", CPU, "float64").state_dict()
        metrics[trainer] = read_jsonl(out / "metrics.jsonl")
        assert json.loads((out / "run.json").read_text())["optimizer_steps"] == 20
    start = load_policy(files / "policy", CPU, "float64").state_dict()
    moved = max(float((weights["own"][name] - start[name]).abs().max()) for name in start)
    apart = max(float((weights["own"][name] - weights["trl"][name]).abs().max()) for name in start)
    assert apart < (1e-5 if case == "ppo" else 3e-6) and moved > 0.05
    if case != "rloo":
        assert max(line["clip_fraction"] for line in metrics["own"]) > 0.05
    assert len({line["reward"] for line in metrics["own"]}) > 1
    for ours, theirs in zip(metrics["own"], metrics["trl"], strict=True):
        for name in ("reward", "accuracy", "response_tokens", "truncation_rate", "generated_tokens"):
            assert ours[name] == pytest.approx(theirs[name]), name


def test_in_bfloat16_both_trainers_move_the_weights_the_same_way(files, tmp_path):
    """The suite rounds masters to weights, TRL rounds float32 weights by autocast: equal up to 8 bits a product."""
    start, moved = load_policy(files / "policy", CPU).state_dict(), {}
    for trainer, module in (("own", train), ("trl", trl_baseline)):
        config = replace(run("grpo", trainer, "bfloat16"), steps=2)
        with given(rollout_batches(config)):
            module.train(config, str(files / "policy"), str(files / "train.jsonl"), str(tmp_path / trainer))
        weights = load_policy(tmp_path / trainer / "checkpoint", CPU).state_dict()
        moved[trainer] = torch.cat([(weights[name] - start[name]).flatten() for name in start])
        memory = json.loads((tmp_path / trainer / "run.json").read_text())["memory"]["policy"]
        assert memory["weights"] + memory["master"] == (6 if trainer == "own" else 4) * memory["parameters"]
    assert moved["own"].abs().max() > 0.02
    assert torch.nn.functional.cosine_similarity(moved["own"], moved["trl"], dim=0) > 0.95


def test_a_baseline_takes_a_reference_of_its_own_but_no_critic(files, tmp_path):
    """Before the first update the KL to the policy that the run starts from is 0, the KL to another one is not."""
    save_policy(tiny_model(TOKENIZER, 1).float(), TOKENIZER, tmp_path / "reference")
    config = replace(run("grpo_kl", "trl", "float32"), steps=1, minibatches=1, epochs=1)
    policy, prompts, reference = str(files / "policy"), str(files / "train.jsonl"), str(tmp_path / "reference")
    kl = {}
    for name, path in (("start", None), ("other", reference)):
        with given(rollout_batches(config)):
            trl_baseline.train(config, policy, prompts, str(tmp_path / name), reference_path=path)
        kl[name] = read_jsonl(tmp_path / name / "metrics.jsonl")[0]["kl_loss_k3"]
    assert kl["other"] > 0.1 and kl["start"] == pytest.approx(0, abs=1e-5)
    with pytest.raises(SettingsError, match=r"critic of the TRL baseline starts from the policy, got .*--critic"):
        trl_baseline.train(config, policy, prompts, str(tmp_path / "none"), critic_path=policy)


def test_a_baseline_refuses_a_reference_with_other_tokens(files, tmp_path):
    tokenizer = train_tokenizer(["something else"] * 3, 60)
    save_policy(tiny_model(tokenizer, 1), tokenizer, tmp_path / "other")
    paths = [str(path) for path in (files / "policy", files / "train.jsonl", tmp_path / "out")]
    with pytest.raises(SettingsError, match=r"--reference: .*other must have the policy's tokenizer"):
        trl_baseline.train(run("grpo_kl", "trl", "float32"), *paths, reference_path=str(tmp_path / "other"))
