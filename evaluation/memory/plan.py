"""Memory of a run, predicted from its settings alone: by model, component and phase; and what fits on a GPU.

    python -m evaluation.memory                                             the worked table of 7 B models
    python -m evaluation.memory --model qwen2.5-0.5b --algorithm ppo        a named shape, a folder or a hub id
    python -m evaluation.memory --model 7B --precision mixed                a bare size: model states only
    python -m evaluation.memory --study pipelines/config.yaml --run ppo     a run of a study
    python -m evaluation.memory --check                                     predictions beside measurements
    python -m evaluation.memory --model qwen2.5-7b --figure                 PPO and GRPO as stacked bars

No weights are loaded: closed_form.py has the closed forms, dry_run.py runs the project's own code on weightless
tensors. GB is 1e9 bytes.
"""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

from algos import ALGORITHMS
from algos.pieces.settings import SettingsError, from_dict, one_of
from algos.training.config import RunConfig
from evaluation.memory import closed_form as closed
from evaluation.memory.closed_form import GB, MODELS, PRECISIONS, SETUPS, STATES

GPUS = {"24 GB": 24, "80 GB": 80, "141 GB": 141}
OFFLOAD = {  # what can wait in the CPU's memory, and the phases that it is needed in
    "optimizer": ("update",),
    "critic": ("logprobs", "update"),
    "reference": ("logprobs",),
    "reward_model": ("reward",),
}
KL_COEF = 0.05  # of --reference yes where the algorithm has none
CHOICES = {
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

    def __post_init__(self):
        one_of(self.algorithm, ALGORITHMS, "algorithm")
        for name, allowed in CHOICES.items():
            one_of(getattr(self, name), allowed, name)
        for name in self.offload:
            one_of(name, OFFLOAD, "offload")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                flag = "--" + field.name.replace("_", "-")
                raise SettingsError(f"{flag} must be at least 1, got {value}.")

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


def copies(run: RunConfig, parameters: float, backbone: float, head: float, critic_backbone=None) -> closed.Copies:
    """Parameters of each model of a run. critic_backbone gives those of a critic's backbone with so many layers."""
    settings = run.hparams
    critic = 0.0
    if settings.has_critic:
        whole = backbone if settings.critic_layers is None else critic_backbone(settings.critic_layers)
        critic = head if settings.critic == "shared" else whole + head
    return closed.Copies(
        policy=parameters,
        critic=critic,
        reference=parameters if settings.needs_reference else 0,
        reward_model=backbone + head if "reward_model" in run.rewards else 0,
    )


def plan_states(plan: Plan) -> Counter:
    """Bytes by (model, state), all at once."""
    size = closed.model_size(plan.model)
    if size is not None:
        if plan.lora_rank is not None:
            raise SettingsError("--lora-rank needs a model's shape, not a bare size; name one of its kind.")
        if plan.critic_layers is not None:
            raise SettingsError("--critic-layers needs a model's shape, not a bare size; name one of its kind.")
        return closed.model_states(copies(plan.run, size, size, 0), plan.precision, plan.optimizer)
    shape = plan_shape(plan.model)

    def critic_backbone(layers: int) -> int:
        if layers > shape.layers:
            raise SettingsError(f"--critic-layers is {layers}, but {plan.model} has {shape.layers} layers.")
        return closed.shape_of(closed.with_layers(closed.model_config(plan.model), layers)).backbone_parameters

    return closed.model_states(
        copies(plan.run, shape.parameters, shape.backbone_parameters, shape.hidden + 1, critic_backbone),
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
    from evaluation.memory.dry_run import Workload, predict

    return predict(Workload(plan.run, closed.model_config(plan.model), plan.prompt_tokens))


def plan_phases(plan: Plan) -> dict[str, Counter]:
    """Bytes by (model, component) at the peak of each phase.

    The dry run counts everything. States that this project's own code does not have in this form (gradients of 16 bits
    beside float32 masters, adapters) are put in in closed form, and what is offloaded is taken out.
    """
    peaks = _peaks(replace(plan, offload=(), lora_rank=None))
    states = plan_states(plan)
    own = plan.precision in ("float32", "mixed_float32_gradients") and plan.lora_rank is None
    phases = {}
    for name, peak in peaks.items():
        adapted = []
        for _, places in peak.moments.values():
            places = Counter(places)
            if not own:
                _replace_states(places, states, plan)
            for what in plan.offload:
                take_out(places, what, name)
            adapted.append(places)
        phases[name] = max(adapted, key=Counter.total)
    return phases


def take_out(places: Counter, what: str, phase: str) -> None:
    """What is offloaded has no bytes in a phase that does not need it."""
    if phase not in OFFLOAD[what]:
        for model, state in list(places):
            if state in ("optimizer", "master") if what == "optimizer" else model == what and state == "weights":
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
    """The plan with one thing more switched on at a time, what costs least first: (what was done, plan)."""
    done: list[str] = []
    steps = [
        ("--logits chunked", {"logits": "chunked"}),
        ("--precision mixed", {"precision": "mixed"}),
        ("--checkpointing", {"checkpointing": True}),
        ("--micro-batch-tokens", {"micro_batch_tokens": max(plan.micro_batch_tokens // 4, 1)}),
        ("--offload", {"offload": tuple(OFFLOAD)}),
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
        value = " " + " ".join(OFFLOAD) if name == "--offload" else value
        done.append(name + value)
        yield list(done), plan


# text


def table(rows: list[list[str]]) -> str:
    """Rows of cells as columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def size(value: float, unit: float) -> str:
    return f"{value / unit:,.2f}" if value else ""


def unit_of(largest: float) -> tuple[float, str]:
    return (GB, "GB") if largest >= GB else (1e6, "MB")


def worked_table(parameters: float = 7e9) -> str:
    rows = [["bytes trained/frozen", *SETUPS]]
    for name, (t, f) in closed.ASSUMPTIONS.items():
        cells = []
        for setup in SETUPS:
            saved = closed.saving(setup, t, f)
            percent = f" ({-100 * saved:.1f}%)" if saved else ""
            cells.append(f"{closed.states(setup, t, f, parameters) / GB:,.4g}{percent}")
        rows.append([f"{name} ({t}/{f})", *cells])
    return (
        f"Model states of equal models of {parameters / 1e9:.4g} B parameters, GB (against PPO with 4 models):\n"
        f"{table(rows)}\n"
        "Dropping the critic saves t / (2t + 2f): 25% at t = f, 50% at most, a third only at t = 2f.\n"
        "Dropping the reward model too saves 50%, whatever t and f. Activations, logits and cache do not shrink."
    )


def states_text(plan: Plan) -> str:
    t, f = closed.bytes_per_parameter(plan.precision, plan.optimizer)
    states = plan_states(plan)
    unit, name = unit_of(states.total())
    rows = [["", *STATES, "together"]]
    for model in MODELS:
        cells = [states[model, state] for state in STATES]
        if sum(cells):
            rows.append([model.replace("_", " "), *(size(c, unit) for c in cells), size(sum(cells), unit)])
    sums = [sum(states[model, state] for model in MODELS) for state in STATES]
    rows.append(["together", *(size(s, unit) for s in sums), size(sum(sums), unit)])
    return (
        f"Model states, {name}: {plan.precision}, {plan.optimizer}: {t:g} bytes per trained and {f:g} per frozen "
        f"parameter\n{table(rows)}"
    )


def phases_text(plan: Plan, phases: dict[str, Counter]) -> str:
    unit, name = unit_of(max(phase.total() for phase in phases.values()))
    rows = [["", *phases]]
    components = []
    for phase in phases.values():
        components += [place for place in phase if place not in components]
    order = {model: i for i, model in enumerate((*MODELS, ""))}
    states = [place for place in components if place[1] in STATES]
    for place in sorted(states, key=lambda p: (order[p[0]], STATES.index(p[1]))):
        rows.append([f"{place[0].replace('_', ' ')}: {place[1]}", *(size(p[place], unit) for p in phases.values())])
    rest = sorted({place[1] for place in components} - set(STATES))
    for category in rest:
        sums = [sum(v for (_, c), v in phase.items() if c == category) for phase in phases.values()]
        rows.append([category.replace("_", " "), *(size(s, unit) for s in sums)])
    rows.append(["peak", *(size(phase.total(), unit) for phase in phases.values())])
    most = max(phases, key=lambda n: phases[n].total())
    peak = size(phases[most].total(), unit)
    return f"Peak of each phase, {name}:\n{table(rows)}\nThe peak is that of {most}: {peak} {name}."


def rules_text(plan: Plan, shape: closed.Shape) -> str:
    bytes_ = 4 if plan.precision == "float32" else 2
    tokens = plan.micro_batch_tokens
    sequences = plan.prompts * plan.group_size
    per_token = shape.kv_bytes_per_token(bytes_)
    cache = sequences * (plan.prompt_tokens + plan.response_tokens) * per_token
    activations = shape.activation_bytes(tokens, plan.checkpointing) / GB
    return (
        f"In closed form: {shape.parameters:,} parameters; key-value cache {per_token / 1024:g} KiB a token, "
        f"{cache / GB:.2f} GB for {sequences} sequences of {plan.prompt_tokens + plan.response_tokens};\n"
        f"one float32 tensor of the logits of {tokens} tokens {shape.logits_bytes(tokens) / GB:.2f} GB; activations by "
        f"the rule 34 h per token\nand layer (16 bit, fused norms and activation functions) {activations:.2f} GB."
    )


def flops_text(run: RunConfig, checkpointing: bool) -> str:
    settings = run.hparams
    reward = "reward_model" in run.rewards
    old = run.old_logprobs != "sampler" or run.dtype != "float32"
    own_critic = settings.has_critic and settings.critic != "shared"
    ours = closed.flops_per_token(own_critic, settings.needs_reference, reward, run.epochs, old, checkpointing)
    full = closed.flops_per_token(True, True, True, run.epochs)
    rules = closed.flops_per_token(True, True, False, run.epochs)
    return (
        f"Compute: {ours} N FLOPs per generated token (N parameters; forward 2, training step 6, {run.epochs} epochs); "
        f"PPO with reward model {full}, with rules {rules}: {100 * (1 - ours / full):.1f}% and "
        f"{100 * (1 - ours / rules):.1f}% less."
    )


def fits(plan: Plan, limit: float) -> bool:
    """Whether the peak is within the limit in bytes; states that are never less are looked at first."""
    states = plan_states(plan)
    least = sum(states["policy", state] for state in ("weights", "gradients", "optimizer", "master"))
    return least <= limit and plan_peak(plan) <= limit


class Advice:
    """What to switch on to stay within a limit; each remedy is predicted once."""

    def __init__(self, plan: Plan):
        self.steps, self.known = remedies(plan), []

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


def fits_text(plan: Plan) -> str:
    sizes = {name: plan_shape(name).parameters for name in closed.SHAPES}
    own, advice = plan_peak(plan), Advice(plan)
    rows = [["", "largest known shape", plan.model, "headroom, GB", "switch on"]]
    for gpu, gigabytes in GPUS.items():
        by_size = sorted(sizes, key=sizes.get, reverse=True)
        largest = next((name for name in by_size if fits(replace(plan, model=name), gigabytes * GB)), "none")
        switch = "" if own <= gigabytes * GB else advice.for_(gigabytes * GB)
        yes = "fits" if own <= gigabytes * GB else "does not fit"
        rows.append([gpu, largest, yes, f"{gigabytes - own / GB:.1f}", switch])
    return f"What fits (one GPU, without fragmentation and CUDA's own context of about half a GB):\n{table(rows)}"


def report(plan: Plan) -> str:
    size_ = closed.model_size(plan.model)
    if size_ is not None:
        parts = [worked_table(size_), states_text(plan), flops_text(plan.run, plan.checkpointing)]
        return "\n\n".join(parts)
    shape = plan_shape(plan.model)
    phases = plan_phases(plan)
    parts = [
        worked_table(shape.parameters),
        states_text(plan),
        phases_text(plan, phases),
        rules_text(plan, shape),
        flops_text(plan.run, plan.checkpointing),
        fits_text(plan),
    ]
    return "\n\n".join(parts)


def study_report(study: str, name: str, prompt_tokens: int | None) -> str:
    """The peaks of a run of a study; prompts as long as the run admits, unless it is said how long they are."""
    from algos.training.models.config import ModelConfig
    from evaluation.memory.dry_run import Workload, predict
    from pipelines.study import load

    loaded = load(study)
    one_of(name, loaded.runs, "RUN")
    run = loaded.run_config(name)
    base = from_dict(ModelConfig, loaded.model("base_model"), "base_model")
    config = closed.model_config(base.path) if base.path else closed.built_config(base)
    peaks = predict(Workload(run, config, prompt_tokens or run.max_prompt_tokens))
    phases = {phase: peak.places for phase, peak in peaks.items()}
    for what in run.offload:
        for phase, places in phases.items():
            take_out(places, what, phase)
    title = f"{name} of {study}, prompts of {prompt_tokens or run.max_prompt_tokens} tokens"
    return "\n\n".join([title, phases_text(Plan(), phases), flops_text(run, False)])


# command line


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m evaluation.memory",
        description=__doc__.split("\n\n", 1)[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--model", help=f"{', '.join(closed.SHAPES)}, a folder, a hub id, or a size such as 7B")
    for field in fields(Plan):
        flag, default = "--" + field.name.replace("_", "-"), field.default
        if field.name == "model":
            continue
        if isinstance(default, bool):
            made.add_argument(flag, action="store_true")
        elif field.name == "offload":
            made.add_argument(flag, nargs="*", default=(), metavar="WHAT", help=", ".join(OFFLOAD))
        elif isinstance(default, int) or field.name in ("lora_rank", "critic_layers"):
            made.add_argument(flag, type=int, default=default, metavar="N", help=f"default: {default or 'off'}")
        else:
            names = CHOICES.get(field.name, ())
            made.add_argument(
                flag, default=default, help=f"{', '.join(names)}{'; ' if names else ''}default: {default}"
            )
    made.add_argument("--study", metavar="FILE", help="study file; with --run, a run of it")
    made.add_argument("--run", metavar="NAME")
    made.add_argument("--check", action="store_true", help="measure small configurations beside their predictions")
    made.add_argument("--figure", action="store_true", help="draw PPO and GRPO for the model")
    made.add_argument("--out", default="results/memory", metavar="DIR", help="for --check and --figure")
    return made


def main() -> None:
    args = parser().parse_args()
    try:
        plan = Plan(**{f.name: getattr(args, f.name) for f in fields(Plan) if f.name not in ("model", "offload")})
        plan = replace(plan, offload=tuple(args.offload), **({"model": args.model} if args.model else {}))
        if args.check:
            from evaluation.memory.check import check

            check(Path(args.out))
        elif args.figure:
            from evaluation.memory.figure import draw

            draw(plan, Path(args.out))
        elif args.study or args.run:
            if not (args.study and args.run):
                raise SettingsError("--study and --run go together: a study file, and the name of one of its runs.")
            given = "--prompt-tokens" in " ".join(sys.argv)
            print(study_report(args.study, args.run, plan.prompt_tokens if given else None))
        elif args.model is None:
            print(worked_table())
        else:
            print(report(plan))
    except (SettingsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
