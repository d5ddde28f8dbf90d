"""The kinds of stages: the settings of each, the edges that it may have, and what it makes."""

from dataclasses import dataclass, field, fields

from algos.training.config import RunConfig
from algos.training.rewards.config import PreferenceConfig, RewardModelConfig
from algos.training.supervised.config import (
    DistillationConfig,
    ExpertIterationConfig,
    RejectionConfig,
    SupervisedConfig,
)

SPLITS = ("train", "demonstrations", "text", "dev", "test")
TRAINING_SPLITS = ("train", "demonstrations", "text")  # the others are there to measure with
POLICIES = ("model", "sft", "rl", "expert_iteration", "distillation")  # what holds a language model
COMMON = ("kind", "like", "vary", "seeds", "evaluate", "threads")  # keys of a stage that are no settings


@dataclass(frozen=True)
class Edge:
    """What a stage takes from another one."""

    sources: tuple[str, ...]  # kinds that it may lead to; `model` and `split` are those of the study's own sections
    option: str  # of the command line
    required: bool = True


@dataclass(frozen=True)
class Kind:
    settings: type
    edges: dict[str, Edge]
    makes: tuple[str, ...]  # files and folders in the folder of each seed
    prompts: bool = True  # whether it reads the train problems
    others: tuple[str, ...] = field(default=())  # keys of the stage that are neither settings nor edges

    @property
    def has_checkpoint(self) -> bool:
        return "checkpoint" in self.makes

    @property
    def shared(self) -> list[str]:
        """The keys that all stages of this kind may share."""
        return [*(f.name for f in fields(self.settings) if f.name != "seed"), "threads"]

    @property
    def keys(self) -> list[str]:
        """All keys that a stage of this kind may have."""
        return [*dict.fromkeys([*COMMON, *self.edges, *self.shared, *self.others])]


FROM = {"from": Edge(POLICIES, "--from")}
KINDS = {
    "sft": Kind(
        SupervisedConfig,
        FROM | {"data": Edge(("split", "rejection_sampling"), "--data")},
        ("checkpoint",),
        prompts=False,
    ),
    "preferences": Kind(
        PreferenceConfig,
        {"from": Edge(POLICIES, "--from", required=False)},
        ("train.jsonl", "held_out.jsonl"),
        others=("path",),
    ),
    "reward_model": Kind(
        RewardModelConfig, FROM | {"data": Edge(("preferences",), "--data")}, ("checkpoint",), prompts=False
    ),
    "rl": Kind(
        RunConfig,
        FROM
        | {
            "reward_model": Edge(("reward_model",), "--reward-model", required=False),
            "reference": Edge(POLICIES, "--reference", required=False),
            "critic": Edge(POLICIES, "--critic", required=False),
        },
        ("checkpoint",),
    ),
    "rejection_sampling": Kind(RejectionConfig, FROM, ("accepted.jsonl",)),
    "expert_iteration": Kind(ExpertIterationConfig, FROM, ("accepted.jsonl", "checkpoint")),
    "distillation": Kind(
        DistillationConfig,
        FROM
        | {
            "teacher": Edge(POLICIES, "--teacher"),
            "data": Edge(("split", "rejection_sampling"), "--data", required=False),
        },
        ("checkpoint",),
    ),
}
EVALUATED = tuple(name for name, kind in KINDS.items() if kind.has_checkpoint and name != "reward_model")
