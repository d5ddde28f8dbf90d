"""One reinforcement-learning run, from its settings to its checkpoint. `Run.step` (run.py) is what it repeats.

By hand:
    python -m algos.training.train --settings '{"algorithm": "grpo", "seed": 0}' --from DIR --prompts FILE --out DIR
"""

from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from pathlib import Path

import torch

from algos.pieces.settings import from_dict
from algos.training.assemble import Checkpoints, make_run, read_problems, start_record
from algos.training.config import RunConfig
from algos.training.dev import DevAccuracy, read_dev
from algos.training.experience import Experience
from algos.training.failure import FAILURES, batch_rows, collapse, fail
from algos.training.models.checkpoints import import_model, resolve_device, save_policy
from algos.training.rewards.own import RewardFailure
from algos.training.run import Run
from algos.training.stage.config import EVERY_TEN_MINUTES, Saving, read_saving
from algos.training.stage.environment import resident_bytes
from algos.training.stage.record import (
    Progress,
    Record,
    component_memory,
    load_settings,
    main_guard,
    peak_memory,
    resumable_parser,
    use_threads,
    warn_if_budget_left,
)
from algos.training.stage.saves import Saves


def train(
    config: RunConfig,
    policy_path: str,
    prompts_path: str,
    out: str,
    name: str = "",
    threads: int = 1,
    reward_model_path: str | None = None,
    reference_path: str | None = None,
    critic_path: str | None = None,
    dev_path: str | None = None,
    saving: Saving = EVERY_TEN_MINUTES,
) -> None:
    """Train config.algorithm from the policy checkpoint; writes checkpoint/, metrics.jsonl, samples.jsonl, run.json.

    A run that was killed goes on from its last saved state.
    """
    problems, dev_problems = read_problems(prompts_path, config), read_dev(dev_path, config)
    paths = Checkpoints(policy_path, reward_model_path, reference_path, critic_path)
    device = resolve_device(config.device)
    torch.manual_seed(config.seed)
    import_model(policy_path)  # so that the memory measured from here on is not that of code
    before = resident_bytes()
    run = make_run(config, paths, problems, device, dev_problems)
    saves = Saves(out, saving, [prompts_path, dev_path, *astuple(paths)])
    record = start_record(config, paths, out, name, threads, device, saves)
    policy, tokenizer = run.state.learner.policy, run.inputs.tokenizer
    dev = DevAccuracy(config, dev_problems, policy, tokenizer, run.engine, record, run.phases)
    try:
        if saves.hold(run.state, run.phases):
            run.synchronize()
        repeat(run, record, saves, Progress(config.budget_tokens or config.steps, name or config.algorithm), dev)
    except FAILURES as error:
        rows, facts = rows_of(run, error), facts_of(run, device, before)
        fail(record, error, run.state.step, policy, tokenizer, policy_path, rows, **facts, **collapse(record))
    finally:
        run.engine.close()
    warn_if_budget_left(config, "steps", run.state.generated_tokens)
    save_policy(policy, tokenizer, Path(out) / "checkpoint")
    record.finish(**facts_of(run, device, before), **collapse(record))


def facts_of(run: Run, device, before: int) -> dict:
    """What is recorded of a run at its end."""
    return {
        "phase_seconds": run.phases.total,
        "generated_tokens": run.state.generated_tokens,
        "optimizer_steps": run.state.optimizer_steps,
        "generated_responses": run.state.generated_responses,
        "memory": component_memory(**run.inputs.models),
        "peak_memory": peak_memory(device, before),
    }


def rows_of(run: Run, error: Exception) -> list[dict]:
    """The batch in which a run has failed; without rewards, where it is the reward that failed."""
    scored = None if isinstance(error, RewardFailure) else run.experience
    chosen, texts = run.sampler.latest if scored is None else (scored.problems, scored.texts)
    size = len(texts) // max(len(chosen), 1)
    problems = [run.inputs.problems[i] for i in chosen for _ in range(size)]
    return batch_rows(problems, texts, scored.rewards if scored else None, scored.components if scored else {})


def repeat(run: Run, record: Record, saves: Saves, progress: Progress, dev: DevAccuracy) -> None:
    """All steps of a run, each with its line of metrics, and now and then some responses and the accuracy on dev."""
    while not run.finished:
        number = run.state.step
        dev.measure(number, run.state.generated_tokens)
        metrics = run.step()
        record.log(number, metrics)
        if number % run.config.sample_every == 0 or run.finished:
            assert run.experience is not None
            keep_samples(record, number, run.experience, run.inputs.problems)
        saves.after_step()
        show(progress, run, metrics)
    dev.measure(run.state.step, run.state.generated_tokens, last=True)
    progress.close()


def show(progress: Progress, run: Run, metrics: dict) -> None:
    budget, state = run.config.budget_tokens, run.state
    progress.update(
        state.step if budget is None else min(state.generated_tokens, budget),
        reward=metrics["reward"].item(),
        accuracy=metrics["accuracy"].item(),
        **{"tokens/s": metrics["batch_tokens"] / metrics["step_seconds"]},
    )


def keep_samples(record: Record, step: int, experience: Experience, problems: list[dict], most: int = 4) -> None:
    """Some responses of a rollout batch into samples.jsonl, as the policy gave them."""
    for row in range(min(most, len(experience.texts))):
        record.sample(
            step=step,
            prompt=problems[experience.problems[row // experience.rollouts.group_size]]["prompt"],
            response=experience.texts[row],
            reward=experience.rewards[row].item(),
            correct=bool(experience.components["correctness"][row]),
        )


def main() -> None:
    parser = resumable_parser(__doc__.splitlines()[0], tunable=True)
    parser.add_argument(
        "--from", dest="start", metavar="DIR", required=True, help="checkpoint that the policy starts from"
    )
    parser.add_argument("--prompts", metavar="FILE", required=True, help="train problems, JSONL")
    parser.add_argument("--reward-model", metavar="DIR", help="reward model, if the rewards or the critic name it")
    parser.add_argument(
        "--reference", metavar="DIR", help="checkpoint of the frozen reference (default: that of --from)"
    )
    parser.add_argument(
        "--critic", metavar="DIR", help="checkpoint that the critic starts from (default: that of --from)"
    )
    parser.add_argument("--dev", metavar="FILE", help="dev problems, JSONL, if the settings have dev_every")
    args = parser.parse_args()
    use_threads(args.threads)
    config = from_dict(RunConfig, load_settings(args.settings, args.tuned), "settings")
    run: Callable[..., None] = partial(train, saving=read_saving(args.saving))
    if config.trainer == "trl":
        from algos.training.trl import baseline

        run = baseline.train
    paths = (args.reward_model, args.reference, args.critic, args.dev)
    run(config, args.start, args.prompts, args.out, args.name, args.threads, *paths)


if __name__ == "__main__":
    main_guard(main)
