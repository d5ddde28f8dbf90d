"""The same RunConfig handed to TRL's trainers: a second implementation of the same estimator, writing the same files.

Policy, order of the prompts, grader, group size, lengths, number of responses and optimizer are the same. Where TRL
cannot do what the settings say, check.py refuses them: nothing is approximated. trainers.py says which trainer and
which options a run gets. group.py and ppo.py say in what TRL 1.12 remains different.
"""

from collections.abc import Callable
from pathlib import Path

from algos.pieces.settings import SettingsError
from algos.training.assemble import Checkpoints, other_reference, read_problems, start_record
from algos.training.config import RunConfig
from algos.training.dev import DevAccuracy, read_dev
from algos.training.experience import prompt_schedule
from algos.training.failure import FAILURES, fail
from algos.training.models.checkpoints import (
    check_response_fits,
    import_model,
    load_policy,
    resolve_device,
    save_policy,
)
from algos.training.models.tokens import encode_prompt, load_tokenizer
from algos.training.sampling.engines import TransformersEngine
from algos.training.stage.config import loaded_dtype
from algos.training.stage.environment import resident_bytes
from algos.training.stage.record import Phases, component_memory, peak_memory
from algos.training.trl.check import check
from algos.training.trl.common import Work, refuse_other_gpus, sample_plainly
from algos.training.trl.group import train_group
from algos.training.trl.monitor import Monitor
from algos.training.trl.ppo import train_ppo
from algos.training.trl.trainers import trainer_of

RUNS = {"grpo": train_group, "rloo": train_group, "ppo": train_ppo}


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
    after_step: Callable[[dict], None] | None = None,
) -> None:
    """Train with TRL; writes checkpoint/, metrics.jsonl, samples.jsonl and run.json as algos.training.train does.

    after_step is called with the metrics of each step, outside of the measured time; an exception in it ends the run.
    """
    check(config)
    if critic_path is not None:
        raise SettingsError(
            "trainer trl: the critic of the TRL baseline starts from the policy, got a critic (--critic); leave it out."
        )
    _import_trl()
    problems, dev_problems = read_problems(prompts_path, config), read_dev(dev_path, config)
    device = resolve_device(config.device)
    refuse_other_gpus(device)
    _seed(config.seed)
    import_model(policy_path)
    before = resident_bytes()
    paths = Checkpoints(policy_path, reference=reference_path)
    reference = other_reference(config, paths) or policy_path
    tokenizer = load_tokenizer(policy_path)
    tokenizer.padding_side = "left"
    policy = load_policy(policy_path, device, loaded_dtype(config))
    sample_plainly(policy, tokenizer)
    rows = [problems[i] for chosen in prompt_schedule(len(problems), config) for i in chosen]
    longest = max(len(encode_prompt(tokenizer, row["prompt"], config.max_prompt_tokens)) for row in rows + dev_problems)
    check_response_fits(policy, longest, config.max_response_tokens)
    record = start_record(config, paths, out, name, threads, device)
    phases, engine = Phases(device), TransformersEngine(tokenizer)
    dev = DevAccuracy(config, dev_problems, policy, tokenizer, engine, record, phases)
    monitor = Monitor(config, record, name, tokenizer, phases, dev, after_step)
    work = Work(config, policy, policy_path, reference, tokenizer, rows, out, device)
    try:
        models = RUNS[trainer_of(config).kind](work, monitor)
    except FAILURES as error:
        facts = {"phase_seconds": monitor.phases.total, "generated_tokens": monitor.generated, "memory": {}}
        facts["peak_memory"] = peak_memory(device, before)
        fail(record, error, monitor.step, policy, tokenizer, policy_path, monitor.latest, **facts)
    monitor.progress.close()
    save_policy(policy, tokenizer, Path(out) / "checkpoint")
    record.finish(
        phase_seconds=monitor.phases.total,
        generated_tokens=monitor.generated,
        optimizer_steps=config.steps * config.updates_per_step,
        generated_responses=config.steps * config.responses_per_step,
        memory=component_memory(**models),
        peak_memory=peak_memory(device, before),
    )


def _import_trl() -> None:
    """Before memory is first measured: what a library holds is not what the run needs."""
    import datasets  # noqa: F401
    import trl.experimental.ppo  # noqa: F401
    from trl import GRPOTrainer  # noqa: F401


def _seed(seed: int) -> None:
    """Of Python, numpy and torch: TRL's PPO shuffles its minibatches with numpy."""
    from transformers import set_seed

    set_seed(seed)
