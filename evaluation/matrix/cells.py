"""Every kind of stage on one model: the largest difference between what the stage computes and a plain computation.

Plain is a forward pass of transformers over one text alone, without padding, cache or a shared prompt. A stage that
trains makes one optimizer step, and the plain step makes one from the same start with the same loss: their difference
is in units of the largest change of a weight. Adam's epsilon is 1 here, so that a weight moves as its gradient says.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor

from algos import ALGORITHMS, distillation
from algos.pieces.types import Rollouts, Totals, make_batch
from algos.training.assemble import Checkpoints, make_run
from algos.training.config import LoraSettings, RunConfig
from algos.training.models.checkpoints import ScalarModel, load_policy, save_policy
from algos.training.models.logprobs import in_micro_batches, token_logprobs
from algos.training.models.packing import Layout, shares_prompts
from algos.training.models.tokens import encode_prompts, load_tokenizer
from algos.training.rewards import reward_model
from algos.training.rewards.config import RewardModelConfig
from algos.training.run import Run
from algos.training.sampling.respond import respond
from algos.training.sampling.sampler import decode_ids, sample
from algos.training.stage.config import OptimizerConfig
from algos.training.supervised import distillation as distill
from algos.training.supervised import sft
from algos.training.supervised.config import DistillationConfig, RejectionConfig, SupervisedConfig
from algos.training.supervised.examples import Example, as_batch, encode_examples, ordered_batches
from algos.training.trl import baseline
from algos.training.update.optimize import make_optimizer, optimizer_step
from evaluation.tasks.files import read_jsonl, write_jsonl

CPU = torch.device("cpu")
OPTIMIZER = OptimizerConfig(learning_rate=0.1, adam_epsilon=1.0)
ROWS = [
    {"id": f"train/{i}", "question": f"{a}+1", "prompt": f"{a}+1=", "answer": f"{a}+1={a + 1}\n#### {a + 1}"}
    for i, a in enumerate((3, 1024, 58, 307))  # prompts of different length
]
RL: dict[str, Any] = {
    "seed": 0, "steps": 1, "prompts_per_step": len(ROWS), "group_size": 4, "minibatches": 1, "max_response_tokens": 8,
    "rewards": {"correctness": 1.0, "edit_similarity": 1.0}, "optimizer": OPTIMIZER, "device": "cpu",
}  # fmt: skip
TOKENS = 8  # of a sampled response at most


@dataclass(frozen=True)
class Tried:
    """A model that was imported, and a folder for what the stages write."""

    path: Path
    work: Path

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.path)

    @cached_property
    def prompts(self) -> list[list[int]]:
        return encode_prompts(self.tokenizer, [row["prompt"] for row in ROWS])

    @cached_property
    def rows(self) -> str:
        write_jsonl(self.work / "rows.jsonl", ROWS)
        return str(self.work / "rows.jsonl")

    def load(self, path: Path | None = None):
        return load_policy(path or self.path, CPU)


# plain computations


def plain_logprobs(model, prompt: list[int], response: list[int]) -> Tensor:
    """Log-probabilities (t,) of a response."""
    return plain_logits(model, prompt, response).log_softmax(dim=-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def plain_logits(model, prompt: list[int], response: list[int]) -> Tensor:
    """Logits (t, V) that predict the tokens of a response."""
    ids = torch.tensor([prompt + response])
    return model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()


def texts_of(rollouts: Rollouts) -> list[Example]:
    """The prompt and the response of each row."""
    responses = [ids[mask].tolist() for ids, mask in zip(rollouts.response_ids, rollouts.response_mask, strict=True)]
    return [(rollouts.prompts[row // rollouts.group_size], response) for row, response in enumerate(responses)]


def stacked(parts: list[Tensor]) -> Tensor:
    """Rows of different length as one tensor, 0 behind their ends."""
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)


def logprobs_difference(model, texts: list[Example], logprobs: Tensor) -> float:
    """The largest difference of log-probabilities (B, T) to the plain ones."""
    with torch.no_grad():
        plain = [plain_logprobs(model, *text) for text in texts]
    return max(float((logprobs[row, : len(p)] - p).abs().max()) for row, p in enumerate(plain))


def step_difference(tried: Tried, loss: Callable[[Any], Tensor], trained) -> float:
    """Weights after a plain step on loss(model) against those of a trained model, in units of the largest change."""
    model = tried.load()
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer, scheduler = make_optimizer(model, OPTIMIZER, 1)
    loss(model).backward()
    optimizer_step(model, optimizer, scheduler, OPTIMIZER.max_grad_norm)
    ours, theirs = ({name: w.detach() for name, w in m.named_parameters()} for m in (model, trained))
    moved = max(float((ours[name] - start[name]).abs().max()) for name in ours)
    apart = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    return apart / moved


# kinds of stage


def sampling(tried: Tried) -> float:
    """Greedy responses are those of generate, alone; sampled ones have the log-probabilities of a plain pass."""
    model, tokenizer, generator = tried.load(), tried.tokenizer, torch.Generator().manual_seed(0)
    greedy = sample(model, tokenizer, tried.prompts, 2, TOKENS, 0.0, generator)
    for prompt, response in texts_of(greedy):
        if response != generated(model, prompt):
            return math.inf
    drawn = sample(model, tokenizer, tried.prompts, 2, TOKENS, 1.0, generator)
    return logprobs_difference(model, texts_of(drawn), drawn.sampler_logprobs)


def generated(model, prompt: list[int]) -> list[int]:
    """The greedy response of transformers' generate to one prompt."""
    ids = torch.tensor([prompt])
    said = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS)
    return said[0, len(prompt) :].tolist()


def graded(tried: Tried) -> float:
    """Evaluation, rejection sampling, preferences, expert iteration: the texts that they grade are generate's."""
    config = RejectionConfig(0, max_response_tokens=TOKENS, device="cpu")
    model = tried.load()
    expected = decode_ids(tried.tokenizer, [generated(model, prompt) for prompt in tried.prompts])
    return 0.0 if [row["response"] for row in respond(str(tried.path), ROWS, 0, config)] == expected else math.inf


def logprobs(tried: Tried) -> float:
    """The passes of all kinds of training, in training mode: padded, in micro-batches, and with shared prompts."""
    model, tokenizer = tried.load(), tried.tokenizer
    drawn = sample(model, tokenizer, tried.prompts, 2, TOKENS, 1.0, torch.Generator().manual_seed(0))
    texts, batch = texts_of(drawn), make_batch(drawn, torch.zeros(2 * len(ROWS)), tokenizer.pad_token_id)
    layouts = [Layout(), Layout(responses=3)] + [Layout(share_prompts=True)] * shares_prompts(model.base_model)
    model.train()
    found = [in_micro_batches(lambda part: token_logprobs(model, part, 1.0)[0], batch, layout) for layout in layouts]
    model.eval()
    return max(logprobs_difference(model, texts, each) for each in found)


def supervised(tried: Tried, trainer: Literal["own", "trl"] = "own") -> float:
    """sft: one step."""
    config = SupervisedConfig(0, trainer, 1, batch_size=len(ROWS), optimizer=OPTIMIZER, device="cpu")
    out = tried.work / f"sft-{trainer}"
    sft.train(config, str(tried.path), tried.rows, str(out))
    (texts,) = ordered_batches(encode_examples(tried.tokenizer, ROWS), config)

    def loss(model) -> Tensor:
        return -torch.cat([plain_logprobs(model, *text) for text in texts]).mean()

    return step_difference(tried, loss, tried.load(out / "checkpoint"))


def grpo(tried: Tried) -> float:
    """rl: one step of GRPO on its own samples."""
    run = one_step(tried, RunConfig("grpo", **RL))
    hparams, algorithm, experience = run.config.hparams, ALGORITHMS["grpo"], run.experience
    assert experience is not None
    batch = make_batch(experience.rollouts, experience.rewards, tried.tokenizer.pad_token_id)
    advantages = algorithm.advantages(batch, hparams)

    def loss(model) -> Tensor:
        new = stacked([plain_logprobs(model, *text) for text in texts_of(experience.rollouts)])
        mask = batch.response_mask
        return algorithm.loss(new, new.detach(), advantages, mask, hparams, Totals.of(mask))[0]

    return step_difference(tried, loss, run.state.learner.policy)


def one_step(tried: Tried, config: RunConfig) -> Run:
    """A run after one step. Raises FloatingPointError if its losses are not finite."""
    torch.manual_seed(0)
    run = make_run(config, Checkpoints(str(tried.path)), ROWS, CPU)
    check_finite(run.step())
    return run


def check_finite(metrics: dict) -> None:
    for name, value in metrics.items():
        if name.endswith(("loss", "grad_norm")) and not math.isfinite(value):
            raise FloatingPointError(f"{name} is {value}")


def ppo(tried: Tried) -> float:
    """rl with a critic, of its own and on the policy's backbone: values side by side are those of each text alone."""
    differences = []
    for critic in ("separate", "shared"):
        run = one_step(tried, RunConfig("ppo", settings={"critic": critic}, **RL))
        assert run.experience is not None
        batch = make_batch(run.experience.rollouts, run.experience.rewards, tried.tokenizer.pad_token_id)
        together, alone = (
            in_micro_batches(run.state.learner.critic.values, batch, layout)
            for layout in (run.state.learner.layout(run.config), Layout(responses=1))
        )
        differences.append(float((together - alone).abs().max()))
    return max(differences)


def rewards(tried: Tried) -> float:
    """reward_model: after one epoch its scores side by side are those of each text alone."""
    rows = [{**row, "responses": [row["answer"], "#### 0"], "pairs": [[0, 1]]} for row in ROWS]
    for split in ("train", "held_out"):
        write_jsonl(tried.work / f"{split}.jsonl", rows)
    out, config = tried.work / "reward_model", RewardModelConfig(0, epochs=1, optimizer=OPTIMIZER, device="cpu")
    reward_model.train(config, str(tried.path), str(tried.work), str(out), "", 1)
    model = ScalarModel.load(out / "checkpoint", CPU)
    batch = as_batch(encode_examples(tried.tokenizer, ROWS), tried.tokenizer.pad_token_id, CPU)
    with torch.no_grad():
        together = model.batch_scores(batch)
        alone = torch.cat([model.batch_scores(batch.select(torch.tensor([row]))) for row in range(len(batch))])
    return float((together - alone).abs().max())


def distilled(tried: Tried, trainer: Literal["own", "trl"] = "own") -> float:
    """distillation: one step on given responses, from a teacher of the same architecture."""
    teacher, out = tried.work / "teacher", tried.work / f"distillation-{trainer}"
    save_policy(shaken(tried.load()), tried.tokenizer, teacher)
    config = DistillationConfig(
        0, trainer, on_policy_share=0.0, steps=1, prompts_per_step=len(ROWS), responses=1, optimizer=OPTIMIZER,
        device="cpu",
    )  # fmt: skip
    distill.train(config, str(tried.path), str(teacher), tried.rows, tried.rows, str(out))
    texts, guide = encode_examples(tried.tokenizer, ROWS), tried.load(teacher)
    mask = as_batch(texts, tried.tokenizer.pad_token_id, CPU).response_mask

    def loss(model) -> Tensor:
        with torch.no_grad():
            theirs = stacked([plain_logits(guide, *text) for text in texts])
        ours = stacked([plain_logits(model, *text) for text in texts])
        return distillation.loss(theirs, ours, mask, config.beta, config.temperature, Totals.of(mask))

    return step_difference(tried, loss, tried.load(out / "checkpoint"))


@torch.no_grad()
def shaken(model):
    """Another model of the same shape, not far away."""
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight += 0.1 * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
    return model


def lora(tried: Tried) -> float:
    """rl with adapters on every layer: after a step the checkpoint, in which they are merged, is the policy."""
    run = one_step(tried, RunConfig("grpo", lora=LoraSettings(rank=2), **RL))
    policy, out = run.state.learner.policy, tried.work / "lora"
    save_policy(policy, tried.tokenizer, out)
    assert run.experience is not None
    batch = make_batch(run.experience.rollouts, run.experience.rewards, tried.tokenizer.pad_token_id)
    with torch.no_grad():
        adapted = in_micro_batches(
            lambda part: token_logprobs(policy, part, 1.0)[0], batch, run.state.learner.layout(run.config)
        )
    return logprobs_difference(tried.load(out), texts_of(run.experience.rollouts), adapted)


def trl_grpo(tried: Tried) -> float:
    """TRL's GRPO: its step on what it sampled is a plain one, and it has no KL to the reference that it starts from."""
    from trl import GRPOTrainer

    config = RunConfig("grpo", settings={"std_epsilon": 1.0e-4, "kl_coef": 0.1}, trainer="trl", **RL)
    seen: list[dict] = []
    compute_loss = GRPOTrainer._compute_loss

    def noting(trainer, model, inputs):
        seen.append(inputs)
        return compute_loss(trainer, model, inputs)

    with patch.object(GRPOTrainer, "_compute_loss", noting):
        line = trl_step(tried, config)
    (inputs,) = seen
    rows = zip(
        *(inputs[f"{part}_{kind}"] for part in ("prompt", "completion") for kind in ("ids", "mask")), strict=True
    )
    texts = [(p[pm.bool()].tolist(), c[cm.bool()].tolist()) for p, pm, c, cm in rows]
    advantages, mask = inputs["advantages"].view(-1, 1), inputs["completion_mask"].bool()

    def loss(model) -> Tensor:
        new = stacked([plain_logprobs(model, *text) for text in texts])
        old = new.detach()
        return config.algorithm_entry.loss(new, old, advantages, mask, config.hparams, Totals.of(mask), old)[0]

    trained = tried.load(tried.work / "trl-grpo" / "checkpoint")
    return max(step_difference(tried, loss, trained), abs(line["kl_loss_k3"]))


def trl_ppo(tried: Tried) -> float:
    """TRL's PPO: no token is clipped at a range of 0.001 in the first update, as no dropout is on."""
    settings = {"clip_low": 1.0e-3, "clip_high": 1.0e-3, "gae_lambda": 1.0}
    return trl_step(tried, RunConfig("ppo", settings=settings, trainer="trl", **RL))["clip_fraction"]


def trl_step(tried: Tried, config: RunConfig) -> dict:
    """The metrics of one step by TRL. Raises FloatingPointError if its losses are not finite."""
    out = tried.work / f"trl-{config.algorithm}"
    baseline.train(config, str(tried.path), tried.rows, str(out))
    (line,) = read_jsonl(out / "metrics.jsonl")
    check_finite(line)
    return line


STAGES: dict[str, Callable[[Tried], float]] = {
    "sampling": sampling,
    "evaluation": graded,
    "log-probabilities": logprobs,
    "sft": supervised,
    "rl": grpo,
    "rl with critic": ppo,
    "rl with LoRA": lora,
    "reward model": rewards,
    "distillation": distilled,
    "TRL sft": lambda tried: supervised(tried, "trl"),
    "TRL rl": trl_grpo,
    "TRL rl with critic": trl_ppo,
    "TRL distillation": lambda tried: distilled(tried, "trl"),
}
