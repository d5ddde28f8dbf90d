"""Settings of evaluation, and of the prompt around a question."""

import re
from dataclasses import field
from pathlib import Path

from pydantic import PositiveFloat, PositiveInt

from algos.pieces.settings import DType, settings
from algos.training.sampling.config import EngineName, VllmConfig, check_engine

FOLDER_NAME = re.compile(r"\w[\w.-]*")  # of a study's folder in results/ and in results/published/


def text_file(path: str) -> Path:
    """A file as it is named, or else below the project's folder."""
    return Path(path) if Path(path).is_file() else Path(__file__).parents[1] / path


@settings
class Reach:
    """Many more responses to some of the problems: pass@k up to a large k says what a model can solve at all."""

    problems: PositiveInt = 100  # the first of the test problems
    samples: PositiveInt = 64


@settings
class EvaluationConfig:
    """How every checkpoint is evaluated; the same for all."""

    seed: int = 0  # of the sampling
    samples: PositiveInt = 8  # k of mean@k, pass@k and maj@k
    temperature: PositiveFloat = 1.0  # of the sampled responses
    max_response_tokens: PositiveInt = 48
    text: str | None = None  # a file, such as evaluation/english.txt: the loss on its paragraphs is measured too
    reach: Reach | None = None  # pass@k up to reach.samples
    rows_at_once: PositiveInt = 512  # responses generated side by side; bounds memory
    engine: EngineName = "transformers"
    vllm: VllmConfig = field(default_factory=VllmConfig)
    device: str = "auto"
    dtype: DType = "float32"

    def __post_init__(self):
        check_engine(self.engine, self.temperature)
        if self.text is not None and not text_file(self.text).is_file():
            raise ValueError(f"text must be a file, such as evaluation/english.txt; there is no {self.text!r}")
        if self.reach is not None and self.reach.samples <= self.samples:
            raise ValueError(f"reach.samples must be above samples = {self.samples}, got {self.reach.samples}")
        if self.reach is not None and self.reach.samples > self.rows_at_once:  # those of a problem stay together
            most = f"rows_at_once = {self.rows_at_once}"
            raise ValueError(f"reach.samples must be at most {most}, got {self.reach.samples}")


@settings
class StudyEvaluation(EvaluationConfig):
    """The study's `evaluation` section: the settings of every evaluation, and of the report on all of them."""

    margin: PositiveFloat = 2.0  # points: two stages whose difference is shown to be smaller are called equal
    other_task: dict | None = None  # as the section `task`: every checkpoint answers its test problems, too


@settings
class PromptSettings:
    """How a question becomes a prompt."""

    template: str = "Question: {question}\nAnswer:\n"  # the text around the question
    chat: bool = False  # true: the template's text is a user message in the tokenizer's chat template

    def __post_init__(self):
        if self.template.count("{question}") != 1:
            raise ValueError(f"template must contain {{question}} once, got {self.template!r}")

    def prompt(self, question: str) -> str | list[dict]:
        text = self.template.replace("{question}", question)
        return [{"role": "user", "content": text}] if self.chat else text


def tuning_tables_of(study: dict) -> list[str]:
    """The tables about tuning of a study's report, given its `--study` value: <name>.csv."""
    return ["tuning", "tuned", "expected_best"] if any(s.get("tuned") for s in study["stages"].values()) else []


def figures_of(study: dict) -> list[str]:
    """The figures of a study's report, given its `--study` value: <name>.svg, each with a caption of the same name."""
    rl = [stage for stage in study["stages"].values() if stage["kind"] == "rl" and stage["evaluated"]]
    names = ["accuracy"]
    if rl:
        names += ["curves_tokens", "curves_time", "memory", "throughput"]
    starts = [stage["from"] for stage in rl]
    if len(set(starts)) < len(starts):  # two RL stages share a start
        names.append("matrix")
    if any("reward_model" in (stage["rewards"] or {}) for stage in rl):
        names.append("proxy_and_gold")
    if study.get("reach"):
        names.append("reach")
    return names
