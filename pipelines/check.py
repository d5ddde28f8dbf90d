"""A rehearsal of a study, before anything trains: python -m pipelines.check STUDY

Loads data, models and tokenizers, grades the gold answers, calls the rewards, and predicts the memory. It prints one
sample of each as the stages will see it, and every problem that it finds in one sentence. Exit status 1: there are
problems. The checks of the study file itself are those of every other command, and come first.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory

from algos.pieces.settings import SettingsError, refusals
from algos.training.config import RunConfig
from pipelines.checks import check_sizes
from pipelines.kinds import SPLITS
from pipelines.study import Study, load

MOST_ROWS = 2000  # rows of a split that are tokenized
TOO_LONG = 0.05  # share of worked solutions that may be longer than a response
SAID = 64  # tokens of the model's sample response


@dataclass
class Rehearsal:
    """What has been loaded so far, and what was wrong."""

    study: Study
    folder: Path
    say: Callable[[str], None] = print
    problems: list[str] = field(default_factory=list)
    rows: dict[str, list[dict]] = field(default_factory=dict)
    models: dict[str, tuple] = field(default_factory=dict)  # name -> model and tokenizer

    def problem(self, sentence: str) -> None:
        self.problems.append(sentence)
        self.say(f"  PROBLEM: {sentence}")

    def part(self, title: str, check: Callable[[], None]) -> None:
        """One part of the rehearsal; a refusal in it is a problem, and the other parts go on."""
        self.say(title)
        try:
            check()
        except SettingsError as error:
            self.problem(str(error))


def rehearse(study: Study, say: Callable[[str], None] = print) -> list[str]:
    """All parts of the rehearsal; returns the problems."""
    with TemporaryDirectory(prefix="check-") as scratch:
        made = Rehearsal(study, Path(scratch), say)
        made.part(f"data: {study.settings.task.name}", partial(_data, made))
        if study.other_task is not None:
            made.part(f"another task: {study.other_task.name}", partial(_other_task, made))
        for name in study.settings.models if made.rows else ():
            made.part(f"model {name}: {study.model(name).source or 'built here'}", partial(_model, made, name))
        for name, stage in study.stages.items():
            if (path := stage.values.get("path")) is not None:
                made.part(f"preferences {name}: {path}", partial(_pairs, made, name, path))
        for name in [name for name in study.of_kind("rl") if name not in study.trials]:
            made.part(f"stage {name}", partial(_run, made, name))
        say(f"{len(made.problems)} problems found." if made.problems else "No problem found.")
        return made.problems


def _data(made: Rehearsal) -> None:
    from evaluation.data import write_splits
    from evaluation.tasks.files import read_jsonl
    from evaluation.tasks.grader import grader_of

    task = made.study.settings.task
    write_splits(task, made.study.settings.prompt, made.folder / "data")
    made.rows = {split: read_jsonl(made.folder / "data" / f"{split}.jsonl") for split in SPLITS}
    made.say("  " + ", ".join(f"{split} {len(rows)}" for split, rows in made.rows.items()) + " problems")
    row = made.rows["train"][0]
    made.say(f"  prompt: {row['prompt']!r}\n  worked solution: {row['answer']!r}")
    made.say(f"  gold answer: {' or '.join(grader_of(row).gold(row))} ({task.extract}, compared as {task.compare})")
    for split in ("train", "demonstrations", "test"):
        _solutions(made, made.rows[split], split)
    sizes: dict[str, int | None] = {split: len(made.rows[split]) for split in ("train", "dev")}
    for name, stage in made.study.stages.items():
        if stage.values.get("path") is not None:
            continue
        try:
            check_sizes(made.study.parsed(name, made.study.seeds_of(name)[0]), sizes, f"stages.{name}")
        except SettingsError as error:
            made.problem(str(error))


def _solutions(made: Rehearsal, rows: list[dict], split: str) -> None:
    wrong = [row for row in rows if not _right(row, row["answer"])]
    if wrong:
        made.problem(
            f"{len(wrong)} of {len(rows)} worked solutions of {split} earn no reward for their own answer; the first "
            f"ends in {wrong[0]['answer'][-60:]!r}. Where does `extract` look?"
        )


def _other_task(made: Rehearsal) -> None:
    """Its test problems, none of which may be one that a stage trains on."""
    from evaluation.data import write_splits
    from evaluation.tasks.files import read_jsonl

    folder = made.folder / "data" / "other_task"
    write_splits(made.study.other_task, made.study.settings.prompt, folder)
    rows = read_jsonl(folder / "test.jsonl")
    made.say(f"  test {len(rows)} problems\n  prompt: {rows[0]['prompt']!r}")
    _solutions(made, rows, "evaluation.other_task")
    trained = {row["question"] for split in ("train", "demonstrations") for row in made.rows.get(split, ())}
    if known := [row["question"] for row in rows if row["question"] in trained]:
        made.problem(
            f"{len(known)} of {len(rows)} questions of evaluation.other_task are trained on: {known[0][:80]!r}."
        )


def _right(row: dict, response: str) -> bool:
    from evaluation.tasks.grader import grader_of

    grader = grader_of(row)
    return grader.correct(grader.strict(response), grader.gold(row))


def _model(made: Rehearsal, name: str) -> None:
    from algos.training.models.build import make
    from algos.training.models.checkpoints import save_policy
    from algos.training.models.tokens import end_ids

    study, folder = made.study, made.folder / "models"
    other = study.tokenizer_of(name)
    texts = str(made.folder / "data" / "demonstrations.jsonl")
    model, tokenizer = make(study.model(name), name, study.settings.seed, texts, str(folder / other) if other else None)
    if name in map(study.tokenizer_of, study.settings.models):
        save_policy(model, tokenizer, folder / name)
    made.models[name] = model, tokenizer
    parameters = sum(p.numel() for p in model.parameters())
    ends = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(end_ids(tokenizer))))
    made.say(f"  {parameters:,} parameters, {len(tokenizer):,} tokens; a response ends with {ends}")
    made.say(f"  padding {tokenizer.pad_token!r}")
    for problem in _lengths(made, name, model, tokenizer):
        made.problem(problem)
    _show_response(made, model, tokenizer)


def _lengths(made: Rehearsal, name: str, model, tokenizer) -> Iterator[str]:
    """Prompts and worked solutions against the limits of the study and of the model."""
    from algos.training.models.checkpoints import positions_of
    from algos.training.models.tokens import encode_prompts, encode_response

    study, rows = made.study, made.rows["train"][:MOST_ROWS]
    prompts = encode_prompts(tokenizer, [row["prompt"] for row in rows])
    made.say(f"  a prompt as the model sees it: {tokenizer.decode(prompts[0])!r}")
    bos = tokenizer.bos_token_id
    if bos is not None and prompts[0][:2] == [bos, bos]:
        yield "its prompts begin with two beginning-of-sequence tokens; take one out of the template."
    if tokenizer.unk_token_id is not None and any(tokenizer.unk_token_id in ids for ids in prompts):
        yield f"its tokenizer does not know all characters of the prompts: they hold {tokenizer.unk_token!r}."
    limits = [study.parsed(s, study.seeds_of(s)[0]).max_prompt_tokens for s in _runs_from(study, name)]
    longest, response = max(map(len, prompts)), study.settings.sampling.max_response_tokens
    if limits and longest > min(limits):
        yield f"its longest prompt has {longest} tokens, more than max_prompt_tokens = {min(limits)}."
    positions = positions_of(model)
    if positions is not None and longest + response > positions:
        yield (
            f"its longest prompt of {longest} tokens and a response of max_response_tokens = {response} are more than "
            f"its {positions} positions."
        )
    shown = made.rows["demonstrations"][:MOST_ROWS]
    solutions = [encode_response(tokenizer, row["answer"]) for row in shown]
    long = sum(len(ids) > response for ids in solutions) / len(solutions)
    made.say(f"  worked solutions: at most {max(map(len, solutions))} tokens; a response has at most {response}")
    if long > TOO_LONG:
        yield f"{long:.0%} of the worked solutions are longer than sampling.max_response_tokens = {response}."
    lost = [row for row, ids in zip(shown, solutions, strict=True) if not _right(row, tokenizer.decode(ids[:-1]))]
    if lost:
        yield (
            f"{len(lost)} of {len(shown)} worked solutions are wrong once they have been tokenized and decoded: the "
            f"tokenizer loses text, as in {tokenizer.decode(encode_response(tokenizer, lost[0]['answer']))[-60:]!r}."
        )


def _runs_from(study: Study, model: str) -> list[str]:
    return [name for name in study.of_kind("rl") if study.origin(name) == model]


def _show_response(made: Rehearsal, model, tokenizer) -> None:
    import torch

    from algos.training.models.tokens import encode_prompt
    from algos.training.sampling.sampler import decode, sample

    row = made.rows["train"][0]
    prompt = encode_prompt(tokenizer, row["prompt"])
    tokens = min(SAID, made.study.settings.sampling.max_response_tokens)
    rollouts = sample(model, tokenizer, [prompt], 1, tokens, 0.0, torch.Generator())
    (text,) = decode(tokenizer, rollouts)
    made.say(f"  it answers (greedy, at most {tokens} tokens): {text!r}")


def _pairs(made: Rehearsal, name: str, path: str) -> None:
    from algos.training.rewards.preferences import read_rows

    rows = read_rows(path, made.study.parsed(name, made.study.seeds_of(name)[0]))
    made.say(f"  {len(rows)} rows; the first: {str(rows[0])[:200]}")


def _run(made: Rehearsal, name: str) -> None:
    study = made.study
    config = study.parsed(name, study.seeds_of(name)[0])
    if made.rows and study.origin(name) in made.models:
        _rewards(made, name, config)
    _memory(made, name, config)


def _rewards(made: Rehearsal, name: str, config: RunConfig) -> None:
    """What a right, a wrong and an empty response earn by the stage's rewards; the learned one is not there yet."""
    import torch

    from algos.training.rewards.rewards import Rewards

    _, tokenizer = made.models[made.study.origin(name)]
    row = made.rows["train"][0]
    other = next((r["answer"] for r in made.rows["train"] if not _right(row, r["answer"])), "")
    texts = {"its worked solution": row["answer"], "another one's": other, "an empty response": ""}
    rules = {key: weight for key, weight in config.rewards.items() if key != "reward_model"}
    made.say(f"  rewards {', '.join(f'{key} x {weight:g}' for key, weight in config.rewards.items())}")
    if not rules:
        return
    learned = torch.zeros(3) if "reward_model" in config.rewards else None
    rewards = Rewards(config, tokenizer, reward_model=learned)  # which is only asked whether it is there
    lengths = [len(tokenizer(text)["input_ids"]) + 1 for text in texts.values()]
    responses = rewards.responses([*texts.values()], lengths, [False] * 3, [row] * 3, [[]] * 3)
    _, components = rewards.grade(responses, 3, learned)
    totals = [sum(weight * float(components[key][i]) for key, weight in rules.items()) for i in range(3)]
    made.say("  " + ", ".join(f"{what}: {total:.3g}" for what, total in zip(texts, totals, strict=True)))
    what, most = max(zip(("a wrong response", "an empty response"), totals[1:], strict=True), key=itemgetter(1))
    if totals[0] <= most and learned is None:
        made.problem(f"{what} earns {most:.3g}, not less than the {totals[0]:.3g} of a right one.")


def _memory(made: Rehearsal, name: str, config: RunConfig) -> None:
    """The predicted peak of an RL run against what this machine has."""
    from algos.training.models.checkpoints import resolve_device
    from evaluation.memory.closed_form import config_of
    from evaluation.memory.plan import peak_with_vllm, settings_phases
    from pipelines.stage import memory_arguments

    if config.trainer == "trl":
        made.say("  memory: not predicted for TRL's trainer")
        return
    model, on_reference = memory_arguments(made.study, name)
    phases = settings_phases(config, config_of(model), head_on_reference=on_reference)
    device = resolve_device(config.device)
    available = available_bytes(device)
    peak = peak_with_vllm(config, phases, available if device.type == "cuda" else 0)
    made.say(f"  memory: {peak / 1e9:.2f} GB predicted, {available / 1e9:.1f} GB on {device.type}")
    if peak > available:
        made.problem(
            f"its predicted peak of {peak / 1e9:.1f} GB is more than the {available / 1e9:.1f} GB of this machine's "
            f"{device.type}; python -m pipelines memory {made.study.source} {name} says what to switch on."
        )


def available_bytes(device) -> int:
    """The memory of the device, used or not."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.check", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("study", metavar="STUDY", help="study file")
    args = parser.parse_args(words)
    with refusals():
        problems = rehearse(load(args.study))
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
