"""A run described by options -> bytes by model, component and phase; and what to switch on to make it fit.

No weights are loaded: closed_form.py has the closed forms, dry_run.py runs Run.step() on weightless tensors.
"""

from collections import Counter
from collections.abc import Collection, Set
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

from algos import ALGORITHMS, check_name
from algos.pieces.settings import SettingsError, from_dict, one_of
from algos.training.config import RunConfig
from algos.training.update.needs import PARTS, needed_parts
from evaluation.memory import closed_form as closed
from evaluation.memory.closed_form import GB, MODELS, PRECISIONS, STATES
from evaluation.memory.dry_run import Workload, predict
from evaluation.memory.layers import with_layers

KL_COEF = 0.05  # of --reference yes where the algorithm has none
CHOICES: dict[str, Collection[str]] = {
    "precision": PRECISIONS,
    "optimizer": closed.OPTIMIZER_BYTES,
    "critic": ("separate", "shared"),
    "reference": ("default", "yes", "no"),
    "logits": ("chunked", "full"),
}


@dataclass(frozen=True)
class Plan:
    """A run as the command line describes it."""

    model: str = "qwen2.5-0.5b"  # named shape, folder, hub id or, for model states only, a size such as 7B
    algorithm: str = "grpo"
    optimizer: str = "adamw"
    precision: str = "float32"  # or mixed (bf16, float32 master), mixed_float32_gradients, bfloat16
    critic: str = "separate"  # of algorithms that have one; or shared: a head on the policy
    critic_layers: int | None = None  # of a separate critic: the first so many layers of the policy
    reference: str = "default"  # yes or no; default: if the algorithm has a KL term
    reward_model: bool = False
    freeze_backbone: bool = False  # the reward model is a head on the reference's backbone
    prompts: int = 32  # per step
    group_size: int = 8
    minibatches: int = 4
    epochs: int = 1
    prompt_tokens: int = 256
    response_tokens: int = 512
    micro_batch_tokens: int = 4096
    checkpointing: bool = False  # keep a layer's input alone and compute the rest again
    logits: str = "chunked"  # full: all tokens' at once
    offload: tuple[str, ...] = ()
    lora_rank: int | None = None  # train adapters of this rank on every linear layer
    sync_every: int = 1  # above 1: a copy of the policy samples

    def __post_init__(self):
        check_name(self.algorithm, "algorithm")
        for name, allowed in CHOICES.items():
            one_of(getattr(self, name), allowed, name)
        for name in self.offload:
            one_of(name, PARTS, "offload")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                flag = "--" + field.name.replace("_", "-")
                raise SettingsError(f"{flag} must be at least 1, got {value}.")
        if self.freeze_backbone and not (self.reward_model and self.run.hparams.needs_reference):
            raise SettingsError("--freeze-backbone needs --reward-model and --reference yes.")

    @property
    def run(self) -> RunConfig:
        defaults = ALGORITHMS[self.algorithm].defaults
        settings: dict = {}
        if hasattr(defaults, "critic"):
            settings |= {"critic": self.critic, "critic_layers": self.critic_layers}
            if self.critic == "shared" and getattr(defaults, "critic_init", "policy") != "policy":
                settings["critic_init"] = "policy"
        if self.reference == "no":
            settings |= {"kl_coef": 0.0} | ({"kl_target": None} if defaults.kl_target is not None else {})
        elif self.reference == "yes" and not defaults.kl_coef:
            settings["kl_coef"] = KL_COEF
        return from_dict(
            RunConfig,
            {
                "algorithm": self.algorithm,
                "seed": 0,
                "settings": settings,
                "prompts_per_step": self.prompts,
                "group_size": self.group_size,
                "minibatches": self.minibatches,
                "epochs": self.epochs,
                "sync_every": self.sync_every,
                "old_logprobs": "sampler" if self.sync_every == 1 else "recomputed",  # which every algorithm takes
                "micro_batch_tokens": self.micro_batch_tokens,
                "max_prompt_tokens": self.prompt_tokens,
                "max_response_tokens": self.response_tokens,
                "rewards": {"correctness": 1.0, **({"reward_model": 1.0} if self.reward_model else {})},
                "optimizer": {"name": self.optimizer},
                "device": "cpu",
                "dtype": "float32" if self.precision == "float32" else "bfloat16",
                "gradient_checkpointing": self.checkpointing,
                **({"logits_at_once": None} if self.logits == "full" else {}),
            },
            "options",
        )


# from a plan to bytes


def copies(plan: Plan, parameters: float, backbone: float, head: float, critic_backbone=None) -> closed.Copies:
    """Parameters of each model of a run. critic_backbone gives those of a critic's backbone with so many layers."""
    hparams = plan.run.hparams
    critic = 0.0
    if hparams.has_critic:
        whole = backbone if hparams.critic_layers is None else critic_backbone(hparams.critic_layers)
        critic = head if hparams.critic == "shared" else whole + head
    reward_model = head if plan.freeze_backbone else backbone + head
    return closed.Copies(
        policy=parameters,
        critic=critic,
        reference=parameters if hparams.needs_reference else 0,
        reward_model=reward_model if plan.reward_model else 0,
        behavior=parameters if plan.sync_every > 1 else 0,
    )


def plan_states(plan: Plan) -> Counter:
    """Bytes by (model, state), all at once."""
    size = closed.model_size(plan.model)
    if size is not None:
        if plan.lora_rank is not None:
            raise SettingsError("--lora-rank needs a model's shape, not a bare size; name one of its kind.")
        if plan.critic_layers is not None:
            raise SettingsError("--critic-layers needs a model's shape, not a bare size; name one of its kind.")
        return closed.model_states(copies(plan, size, size, 0), plan.precision, plan.optimizer)
    shape = plan_shape(plan.model)

    def critic_backbone(layers: int) -> int:
        if layers > shape.layers:
            raise SettingsError(f"--critic-layers is {layers}, but {plan.model} has {shape.layers} layers.")
        return closed.shape_of(with_layers(closed.model_config(plan.model), layers)).backbone_parameters

    return closed.model_states(
        copies(plan, shape.parameters, shape.backbone_parameters, shape.hidden + 1, critic_backbone),
        plan.precision,
        plan.optimizer,
        shape.adafactor_floats / shape.parameters,
        None if plan.lora_rank is None else shape.lora_parameters(plan.lora_rank) / shape.parameters,
    )


@lru_cache
def plan_shape(model: str) -> closed.Shape:
    return closed.shape_of(closed.model_config(model))


@lru_cache
def _peaks(plan: Plan) -> dict:
    return predict(Workload(plan.run, closed.model_config(plan.model), plan.prompt_tokens, plan.freeze_backbone))


def plan_phases(plan: Plan) -> dict[str, Counter]:
    """Bytes by (model, component) at the peak of each phase.

    The dry run counts everything. Two kinds of states that this project's own code has in another form (gradients of 16
    bits beside float32 masters, and adapters) come from the closed form. Offloaded parts are taken out.
    """
    peaks = _peaks(replace(plan, offload=(), lora_rank=None))
    states = plan_states(plan)
    own = plan.precision in ("float32", "mixed_float32_gradients") and plan.lora_rank is None
    needed = needed_parts(plan.run, plan.freeze_backbone)
    phases = {}
    for name, peak in peaks.items():
        adapted = []
        for _, places in peak.moments.values():
            places = Counter(places)
            if not own:
                _replace_states(places, states, plan)
            take_out(places, set(plan.offload) - needed[name])
            adapted.append(places)
        phases[name] = max(adapted, key=Counter.total)
    return phases


def settings_phases(
    run: RunConfig, model, prompt_tokens: int | None = None, head_on_reference: bool = False
) -> dict[str, Counter]:
    """plan_phases of a run's own settings, without what vLLM takes (vllm_bytes).

    model: transformers' config. prompt_tokens: None, as long as the settings admit.
    """
    needed = needed_parts(run, head_on_reference)
    tokens = run.max_prompt_tokens if prompt_tokens is None else prompt_tokens
    peaks = predict(Workload(run, model, tokens, head_on_reference))
    for phase, peak in peaks.items():
        take_out(peak.places, set(run.offload) - needed[phase])
    phases = {phase: peak.places for phase, peak in peaks.items()}
    if run.engine == "vllm":  # which holds weights, keys and values of its own
        phases["generate"] = Counter({place: size for place, size in phases["generate"].items() if place[1] in STATES})
    return phases


def vllm_bytes(run: RunConfig, gpu_bytes: float) -> dict[str, float]:
    """What vLLM takes of a GPU of this size in each phase in which it is there: its weights, keys and values."""
    if run.engine != "vllm" or run.vllm.mode != "colocated":
        return {}
    share = run.vllm.gpu_memory_utilization * gpu_bytes
    return dict.fromkeys(("generate",) if run.vllm.sleep else ("generate", "reward", "logprobs", "update"), share)


def peak_with_vllm(run: RunConfig, phases: dict[str, Counter], gpu_bytes: float) -> float:
    """The peak of settings_phases on a GPU of this size."""
    taken = vllm_bytes(run, gpu_bytes)
    return max(places.total() + taken.get(phase, 0.0) for phase, places in phases.items())


def take_out(places: Counter, away: Set[str]) -> None:
    """Parts that are on the CPU have no bytes here."""
    for model, state in list(places):
        optimizer = state in ("optimizer", "master") and "optimizer" in away
        if optimizer or (state == "weights" and model in away):
            del places[model, state]


def _replace_states(places: Counter, states: Counter, plan: Plan) -> None:
    for model in MODELS:
        if plan.lora_rank is not None and model == "reference":
            places.pop((model, "weights"), None)
        for state in ("optimizer", "master"):
            places.pop((model, state), None)
            if states[model, state]:
                places[model, state] = states[model, state]
        if places[model, "gradients"] > 0:
            places[model, "gradients"] = states[model, "gradients"]
        if plan.lora_rank is not None and places[model, "weights"]:
            places[model, "weights"] = states[model, "weights"]


def plan_peak(plan: Plan) -> float:
    return max(phase.total() for phase in plan_phases(plan).values())


def remedies(plan: Plan):
    """(switches, plan) with one switch more at a time, the cheapest switch first."""
    done: list[str] = []
    steps: list[tuple[str, dict[str, Any]]] = [
        ("--logits chunked", {"logits": "chunked"}),
        ("--precision mixed", {"precision": "mixed"}),
        ("--checkpointing", {"checkpointing": True}),
        ("--micro-batch-tokens", {"micro_batch_tokens": max(plan.micro_batch_tokens // 4, 1)}),
        ("--offload", {"offload": PARTS}),
        ("--optimizer adamw_8bit", {"optimizer": "adamw_8bit"}),
        ("--optimizer adafactor", {"optimizer": "adafactor"}),
        ("--lora-rank 16", {"lora_rank": 16}),
    ]
    for name, change in steps:
        if all(getattr(plan, key) == value for key, value in change.items()):
            continue
        if name == "--precision mixed" and plan.precision != "float32":
            continue
        if "optimizer" in change and plan.optimizer in ("adafactor", change["optimizer"]):
            continue
        plan = replace(plan, **change)
        if name.startswith("--optimizer"):
            done = [step for step in done if not step.startswith("--optimizer")]
        value = f" {plan.micro_batch_tokens}" if name == "--micro-batch-tokens" else ""
        value = " " + " ".join(PARTS) if name == "--offload" else value
        done.append(name + value)
        yield list(done), plan


def fits(plan: Plan, limit: float) -> bool:
    """Whether the peak is within the limit in bytes. A lower bound, the policy's states, is compared first."""
    states = plan_states(plan)
    least = sum(states["policy", state] for state in ("weights", "gradients", "optimizer", "master"))
    return least <= limit and plan_peak(plan) <= limit


class Advice:
    """What to switch on to stay within a limit; each remedy is predicted once."""

    def __init__(self, plan: Plan):
        self.steps = remedies(plan)
        self.known: list[tuple[list[str], float]] = []

    def for_(self, limit: float) -> str:
        """The first remedies, one on top of the other, that are enough for `limit` bytes."""
        for done, peak in self._peaks():
            if peak <= limit:
                return f"{', '.join(done)}: {peak / GB:.2f} GB"
        return "nothing here makes it fit"

    def _peaks(self):
        yield from list(self.known)
        for done, plan in self.steps:
            self.known.append((done, plan_peak(plan)))
            yield self.known[-1]
