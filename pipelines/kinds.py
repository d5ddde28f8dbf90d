"""The kinds of stages: the settings of each, and the edges that it may have."""

from dataclasses import dataclass, field, fields

from algos.training.config import RunConfig
from algos.training.rewards.config import PreferenceConfig, RewardModelConfig
from algos.training.supervised.config import (
    DistillationConfig,
    ExpertIterationConfig,
    RejectionConfig,
    SupervisedConfig,
)

TRAINING_SPLITS = ("train", "demonstrations", "text")
SPLITS = (*TRAINING_SPLITS, "dev", "test")  # the last two are there to measure with
EVALUATED = ("sft", "rl", "expert_iteration", "distillation")  # make a language model
POLICIES = ("model", *EVALUATED)  # hold one
COMMON = ("kind", "like", "vary", "tune", "seeds", "evaluate", "threads")  # keys of a stage that are no settings
BUDGET = (  # settings that decide how much a stage computes: equal for all trials, so they are not tuned
    *("steps", "budget_tokens", "prompts_per_step", "group_size", "epochs", "batch_size"),
    *("max_prompt_tokens", "max_response_tokens", "prompts", "responses", "max_per_prompt", "rounds"),
)
COMPARED = ("algorithm", "trainer", "engine", "device", "dtype", "vllm")  # what a study compares, or runs on


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
    prompts: bool = True  # whether it reads the train problems
    others: tuple[str, ...] = field(default=())  # keys of the stage that are neither settings nor edges

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
    "sft": Kind(SupervisedConfig, FROM | {"data": Edge(("split", "rejection_sampling"), "--data")}, prompts=False),
    "preferences": Kind(PreferenceConfig, {"from": Edge(POLICIES, "--from", required=False)}, others=("path",)),
    "reward_model": Kind(RewardModelConfig, FROM | {"data": Edge(("preferences",), "--data")}, prompts=False),
    "rl": Kind(
        RunConfig,
        FROM
        | {
            "reward_model": Edge(("reward_model",), "--reward-model", required=False),
            "reference": Edge(POLICIES, "--reference", required=False),
            "critic": Edge(POLICIES, "--critic", required=False),
        },
    ),
    "rejection_sampling": Kind(RejectionConfig, FROM),
    "expert_iteration": Kind(ExpertIterationConfig, FROM),
    "distillation": Kind(
        DistillationConfig,
        FROM
        | {
            "teacher": Edge(POLICIES, "--teacher"),
            "data": Edge(("split", "rejection_sampling"), "--data", required=False),
        },
    ),
}
