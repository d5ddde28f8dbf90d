"""Predictions of memory as text."""

from collections import Counter
from dataclasses import replace

from algos.training.config import RunConfig
from algos.training.models.config import ModelConfig
from algos.training.update.needs import sampler_gives_old_logprobs
from evaluation.memory import closed_form as closed
from evaluation.memory.closed_form import GB, MODELS, SETUPS, STATES
from evaluation.memory.plan import (
    Advice,
    Plan,
    fits,
    peak_with_vllm,
    plan_peak,
    plan_phases,
    plan_shape,
    plan_states,
    settings_phases,
    vllm_bytes,
)

GPUS = {"24 GB": 24, "80 GB": 80, "141 GB": 141}


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


def phases_text(phases: dict[str, Counter]) -> str:
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
    cache = sequences * shape.kv_bytes(plan.prompt_tokens + plan.response_tokens, bytes_)
    activations = shape.activation_bytes(tokens, plan.checkpointing) / GB
    return (
        f"In closed form: {shape.parameters:,} parameters; key-value cache {per_token / 1024:g} KiB a token, "
        f"{cache / GB:.2f} GB for {sequences} sequences of {plan.prompt_tokens + plan.response_tokens};\n"
        f"one float32 tensor of the logits of {tokens} tokens {shape.logits_bytes(tokens) / GB:.2f} GB; activations by "
        f"the rule 34 h per token\nand layer (16 bit, fused norms and activation functions) {activations:.2f} GB."
    )


def flops_text(run: RunConfig, checkpointing: bool) -> str:
    hparams, reward = run.hparams, "reward_model" in run.rewards
    old = not sampler_gives_old_logprobs(run)
    critic = hparams.has_critic and hparams.critic != "shared"
    ours = closed.flops_per_token(critic, hparams.needs_reference, reward, run.epochs, old, checkpointing)
    full = closed.flops_per_token(True, True, True, run.epochs)
    rules = closed.flops_per_token(True, True, False, run.epochs)
    return (
        f"Compute: {ours} N FLOPs per generated token (N parameters; forward 2, training step 6, {run.epochs} epochs); "
        f"PPO with reward model {full}, with rules {rules}: {100 * (1 - ours / full):.1f}% and "
        f"{100 * (1 - ours / rules):.1f}% less."
    )


def fits_text(plan: Plan) -> str:
    sizes = {name: plan_shape(name).parameters for name in closed.SHAPES}
    own, advice = plan_peak(plan), Advice(plan)
    rows = [["", "largest known shape", plan.model, "headroom, GB", "switch on"]]
    for gpu, gigabytes in GPUS.items():
        by_size = sorted(sizes, key=lambda name: sizes[name], reverse=True)
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
        phases_text(phases),
        rules_text(plan, shape),
        flops_text(plan.run, plan.checkpointing),
        fits_text(plan),
    ]
    return "\n\n".join(parts)


def settings_report(
    run: RunConfig,
    model: ModelConfig | str,
    prompt_tokens: int | None = None,
    head_on_reference: bool = False,
    name: str = "",
) -> str:
    """The peaks of a run with these settings, on a model that a study builds or names.

    model: a ModelConfig, or a named shape, a folder or a hub id. prompt_tokens: None, as long as the settings admit.
    head_on_reference: the reward model was trained with freeze_backbone on the checkpoint of the run's reference.
    """
    tokens = run.max_prompt_tokens if prompt_tokens is None else prompt_tokens
    phases = settings_phases(run, closed.config_of(model), tokens, head_on_reference)
    title = f"{name or run.algorithm}, prompts of {tokens} tokens"
    parts = [title, phases_text(phases), *vllm_text(run, phases), flops_text(run, run.gradient_checkpointing)]
    return "\n\n".join(parts)


def vllm_text(run: RunConfig, phases: dict[str, Counter]) -> list[str]:
    """The peak with what vLLM takes, which is a share of the GPU; nothing for another engine or a server."""
    if not vllm_bytes(run, 1.0):
        return []
    peaks = {name: peak_with_vllm(run, phases, gigabytes * GB) for name, gigabytes in GPUS.items()}
    sizes = ", ".join(f"{size(peak, GB)} GB of a GPU of {name}" for name, peak in peaks.items())
    return [f"vLLM takes {run.vllm.gpu_memory_utilization:g} of the GPU beside that. The peak is then {sizes}."]
