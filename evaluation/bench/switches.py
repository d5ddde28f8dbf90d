"""The gain of each optimization of a run: two runs that differ in one optimization alone, a step of each in turn.

To add an optimization, add a line to SWITCHES. Settings that runs do not know are reported as not measured.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from algos.pieces.settings import SettingsError
from evaluation.bench.output import row
from evaluation.bench.parts import Bench, ratio_row
from evaluation.bench.steps import counted, in_turns


@dataclass(frozen=True)
class Switch:
    """A run with and without one thing. The settings are a run's; a mapping among them is merged into the study's."""

    name: str
    with_it: dict
    without: dict = field(default_factory=dict)
    algorithm: str = "grpo"
    both: dict = field(default_factory=dict)  # of both runs, where the switch has no visible effect at the default size
    shape: dict = field(default_factory=dict)  # the model's, over the study's


WIDE = {"vocab_size": 320, "hidden_size": 256, "intermediate_size": 704}
SWITCHES = (
    Switch("micro-batches by tokens", {"micro_batch_tokens": 4096}, {"micro_batch_tokens": None}),
    Switch("micro-batches of 1,024 tokens", {"micro_batch_tokens": 1024}, {"micro_batch_tokens": 4096}),
    Switch("micro-batches of 16,384 tokens", {"micro_batch_tokens": 16384}, {"micro_batch_tokens": 4096}),
    Switch("share_prompts", {"share_prompts": True}, {"share_prompts": False}),
    Switch("minibatch_of: prompts", {"minibatch_of": "prompts"}, {"minibatch_of": "responses"}),
    Switch("logits_at_once", {"logits_at_once": 2**16}, {"logits_at_once": None}),
    Switch("old_logprobs: sampler", {"old_logprobs": "sampler"}, {"old_logprobs": "recomputed"}),
    Switch("gradient_checkpointing", {"gradient_checkpointing": True}, {"gradient_checkpointing": False}),
    Switch("bfloat16", {"dtype": "bfloat16"}, {"dtype": "float32"}),
    Switch("torch.compile", {"compile": True}, {"compile": False}),
    Switch("offload: optimizer", {"offload": ["optimizer"]}, {"offload": []}),
    Switch("lora, rank 8", {"lora": {"rank": 8, "alpha": 16.0}}, {"lora": None}),
    Switch("adamw_8bit", {"optimizer": {"name": "adamw_8bit"}}, {"optimizer": {"name": "adamw"}}, shape=WIDE),
    Switch("adafactor", {"optimizer": {"name": "adafactor"}}, {"optimizer": {"name": "adamw"}}, shape=WIDE),
    Switch("shared critic", {"settings": {"critic": "shared"}}, {"settings": {"critic": "separate"}}, "ppo"),
    Switch("critic of 1 layer", {"settings": {"critic_layers": 1}}, {"settings": {"critic_layers": None}}, "ppo"),
)


def merged(settings: dict, changed: dict) -> dict:
    """settings with `changed` over them; the parts that are mappings are merged."""
    parts = {k: {**settings[k], **v} for k, v in changed.items() if isinstance(v, dict) and settings.get(k)}
    return {**settings, **changed, **parts}


def table(bench: Bench, switches: tuple[Switch, ...] = SWITCHES) -> Iterator[dict]:
    """For each switch: seconds of a step and of its update without / with, and peak bytes with / without."""
    for switch in switches:
        workload = bench.workload(**({} if bench.toy else switch.shape))
        base = merged(bench.settings(switch.algorithm), switch.both)
        sides = {"with": merged(base, switch.with_it), "without": merged(base, switch.without)}
        try:
            loops = {side: bench.loop(settings, workload) for side, settings in sides.items()}
        except SettingsError as error:
            yield row(switch.name, "not measured", None, note=str(error).split(";")[0][:100])
            continue
        try:
            found = in_turns(loops, bench.steps, warmup=2)
        except Exception as error:  # torch.compile without a compiler, a kernel that a device lacks
            yield row(switch.name, "not measured", None, note=f"{type(error).__name__}: {str(error)[:80]}")
            continue
        for phase in ("wall", "generate", "update"):
            slow, fast = ([line.get(f"{phase}_seconds", 0.0) for line in found[side]] for side in ("without", "with"))
            name = "step" if phase == "wall" else phase
            if min(*slow, *fast) > 0:
                yield ratio_row(switch.name, slow, fast, f"seconds of {name}, without / with") | {
                    "quantity": f"{name}_gain"
                }
        yield from peaks(bench, switch.name, sides, workload)


def peaks(bench: Bench, name: str, sides: dict[str, dict], workload) -> Iterator[dict]:
    """Bytes of live tensors at the fullest moment of a run's second step and of its update, with / without."""
    try:
        runs = {s: counted(settings, workload, bench.folder(), bench.threads) for s, settings in sides.items()}
    except Exception as error:  # compiled code cannot be watched
        yield row(name, "peak not measured", None, note=f"{type(error).__name__}: {str(error)[:80]}")
        return
    step = {side: max(run.peak_bytes.values()) for side, run in runs.items()}
    note = f"{step['with'] / 2**20:.1f} / {step['without'] / 2**20:.1f} MiB of live tensors"
    yield row(name, "peak_ratio", step["with"] / step["without"], "x", note)
    update = {side: run.peak_bytes["update"] for side, run in runs.items()}
    yield row(name, "update_peak_ratio", update["with"] / update["without"], "x", "in the update alone")
