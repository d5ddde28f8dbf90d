"""Expert iteration: sample from the current policy, keep what is correct, fine-tune on it, and again.

Sources: Zelikman et al. 2022 (STaR), arXiv:2203.14465, algorithm 1; Singh et al. 2024 (ReST-EM), arXiv:2312.06585,
algorithm 1; Dong et al. 2023 (RAFT), arXiv:2304.06767. STaR and ReST-EM train the starting model anew in every round
(restart: true), which forgets a round's mistakes; RAFT goes on from the last round (restart: false). Each round trains
on its own accepted responses alone, with a new optimizer and learning-rate schedule.

`hint` is STaR's rationalization: where every response was wrong, the problem is asked once more with its gold answer
behind the question. Correct responses to it are trained on with the plain prompt. Hints hold answers of train problems
only. Responses to a hint may reason backwards from the answer, so the log counts them apart. By hand:
    python -m algos.training.supervised.expert_iteration \\
        --settings '{"sampling": {"seed": 0}, "training": {"seed": 0}}' --from DIR --prompts FILE --out DIR
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from algos.pieces.settings import SettingsError, from_dict
from algos.training.models.checkpoints import import_model, load_policy, resolve_device, save_policy
from algos.training.models.tokens import load_tokenizer
from algos.training.sampling.respond import draw_problems, opened, sampled
from algos.training.stage.config import EVERY_TEN_MINUTES, Saving, read_saving
from algos.training.stage.environment import resident_bytes
from algos.training.stage.record import (
    Phases,
    Progress,
    Record,
    component_memory,
    load_settings,
    main_guard,
    peak_memory,
    resumable_parser,
    use_threads,
)
from algos.training.stage.saves import Saves
from algos.training.supervised.config import ExpertIterationConfig, RejectionConfig
from algos.training.supervised.examples import encode_examples
from algos.training.supervised.rejection_sampling import accept, acceptable, nothing_accepted
from algos.training.supervised.sft import fit
from algos.training.update.optimize import make_optimizer
from evaluation.tasks.files import write_jsonl
from evaluation.tasks.grader import grader_of


def with_hint(problem: dict, hint: str) -> dict:
    """The problem asked with its gold answer behind the question, which the prompt must hold once (SettingsError)."""
    question, prompt = problem["question"], problem["prompt"]
    told = question + hint.replace("{answer}", grader_of(problem).gold(problem)[0])
    texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    if sum(text.count(question) for text in texts) != 1:
        raise SettingsError(
            f"{problem['id']}: its prompt does not hold its question once, so no hint can be put there."
        )
    texts = [text.replace(question, told) for text in texts]
    if isinstance(prompt, str):
        return {**problem, "prompt": texts[0]}
    return {**problem, "prompt": [{**m, "content": text} for m, text in zip(prompt, texts, strict=True)]}


def answers(engine, policy, tokenizer, problems: list[dict], config: RejectionConfig, generator) -> tuple[list, dict]:
    """config.responses graded rows to each problem: one list a problem, and counts over all.

    nats is the negative log-probability of all sampled tokens; divided by tokens, it estimates the policy's entropy
    without bias.
    """
    rows, nats = [], 0.0
    for part, rollouts in sampled(engine, policy, tokenizer, problems, config.responses, config, generator):
        rows += part
        nats -= float(rollouts.sampler_logprobs.sum())
    groups = [rows[i : i + config.responses] for i in range(0, len(rows), config.responses)]
    correct = sum(map(acceptable, rows))
    return groups, {
        "tokens": sum(row["tokens"] for row in rows),
        "nats": nats,
        "responses": len(rows),
        "correct": correct,
        "truncated": sum(row["truncated"] for row in rows),
    }


def collect(
    engine, policy, tokenizer, problems: list[dict], config: ExpertIterationConfig, generator
) -> tuple[list, dict]:
    """One round's training rows, each with `hinted`, and the round's metrics.

    Rates and means are over the responses without a hint; `solved` holds the ids of the problems that these solve.
    """
    most = config.sampling.max_per_prompt
    groups, counts = answers(engine, policy, tokenizer, problems, config.sampling, generator)
    accepted = [accept(problem, group, len(group)) for problem, group in zip(problems, groups, strict=True)]
    rows = [{**row, "hinted": False} for kept in accepted for row in kept[:most]]
    generated, responses, cut_off = counts["tokens"], counts["responses"], counts["truncated"]
    failed = [problem for problem, kept in zip(problems, accepted, strict=True) if not kept]
    if config.hint is not None and failed:
        told = [with_hint(problem, config.hint) for problem in failed]
        groups, hinted = answers(engine, policy, tokenizer, told, config.sampling, generator)
        for problem, group in zip(failed, groups, strict=True):  # the row has the plain prompt, without the hint
            rows += [{**row, "hinted": True} for row in accept(problem, group, most)]
        generated, responses = generated + hinted["tokens"], responses + hinted["responses"]
        cut_off += hinted["truncated"]
    return rows, {
        "acceptance_rate": counts["correct"] / counts["responses"],
        "unique_per_prompt": sum(map(len, accepted)) / len(problems),
        "prompts_solved": 1 - len(failed) / len(problems),
        "entropy": counts["nats"] / counts["tokens"],
        "response_tokens": counts["tokens"] / counts["responses"],
        "truncation_rate": counts["truncated"] / counts["responses"],
        "accepted": len(rows),
        "hinted_share": sum(row["hinted"] for row in rows) / max(len(rows), 1),
        "round_tokens": generated,
        "round_responses": responses,
        "round_cut_off": cut_off / responses,
        "solved": {problem["id"] for problem, kept in zip(problems, accepted, strict=True) if kept},
    }


@dataclass
class State:
    """All that a step changes. A state is saved while a round trains; one that was killed in sampling samples again."""

    policy: Any
    optimizer: Any
    scheduler: Any
    generator: torch.Generator  # draws the responses
    round: int = 0  # under way
    rows: list[dict] | None = None  # that the round trains on; None: to be sampled
    metrics: dict = field(default_factory=dict)  # of the round's sampling
    steps: list[dict] = field(default_factory=list)  # metrics of the round's optimizer steps
    kept: list[dict] = field(default_factory=list)  # the rows of all rounds
    solved: list[str] = field(default_factory=list)  # problems, in any round
    generated: int = 0  # tokens
    responses: int = 0
    trained: int = 0  # tokens

    def start_round(self) -> None:
        self.round, self.rows, self.metrics, self.steps = self.round + 1, None, {}, []


def sample_round(state: State, engine, tokenizer, problems: list[dict], config: ExpertIterationConfig) -> None:
    """Sample the rows of a round. Raises SettingsError if no response is correct and complete."""
    rows, metrics = collect(engine, state.policy, tokenizer, problems, config, state.generator)
    cut_off = metrics.pop("round_cut_off")
    if not rows:
        most = config.sampling.max_response_tokens
        raise nothing_accepted(metrics["round_responses"], cut_off, most, f"round {state.round}: ")
    state.solved = sorted({*state.solved, *metrics.pop("solved")})
    state.generated += metrics.pop("round_tokens")
    state.responses += metrics.pop("round_responses")
    state.kept += [{"round": state.round, **row} for row in rows]
    state.rows, state.metrics = rows, metrics


def train(
    config: ExpertIterationConfig,
    policy_path: str,
    prompts_path: str,
    out: str,
    name: str = "",
    threads: int = 1,
    saving: Saving = EVERY_TEN_MINUTES,
) -> None:
    """All rounds; writes checkpoint/ (of the last round), accepted.jsonl (of all rounds) and the record."""
    sampling, training = config.sampling, config.training
    import_model(policy_path)
    problems = draw_problems(prompts_path, sampling.prompts, sampling.seed, "settings.sampling.prompts")
    device = resolve_device(sampling.device)
    torch.manual_seed(training.seed)
    generator = torch.Generator(device).manual_seed(sampling.seed)
    before = resident_bytes()
    tokenizer, policy = load_tokenizer(policy_path), load_policy(policy_path, device, training.dtype)
    saves = Saves(out, saving, [policy_path, prompts_path])
    record = Record(
        out,
        "expert_iteration",
        asdict(config),
        threads,
        saves,
        trainer="own",
        name=name,
        seed=sampling.seed,
        device=str(device),
    )
    asked = problems if config.hint is None else [*problems, *(with_hint(p, config.hint) for p in problems)]
    engine = opened(sampling, policy, tokenizer, policy_path, asked)
    phases, progress = Phases(device), Progress(config.rounds, name or "expert iteration", unit="round")
    optimizer, scheduler = make_optimizer(policy, training.optimizer, training.steps)
    state = State(policy, optimizer, scheduler, generator)
    del policy, optimizer, scheduler  # else two policies would be in memory when the next round loads another
    saves.hold(state, phases)
    while state.round < config.rounds:
        if state.rows is None:
            with phases("generate"):
                if state.round > 0:
                    engine.synchronize(state.policy)
                sample_round(state, engine, tokenizer, problems, config)
            assert state.rows is not None
            for row in state.rows[:: max(len(state.rows) // 4, 1)][:4]:
                record.sample(step=state.round, prompt=row["prompt"], response=row["answer"], hinted=row["hinted"])
            if state.round > 0:
                if config.restart:
                    state.policy = state.optimizer = state.scheduler = None
                    state.policy = load_policy(policy_path, device, training.dtype)
                state.optimizer, state.scheduler = make_optimizer(state.policy, training.optimizer, training.steps)

        def keep(_: int, step: dict) -> None:
            state.steps.append(step)
            saves.after_step()

        fit(
            state.policy,
            tokenizer,
            state.optimizer,
            state.scheduler,
            encode_examples(tokenizer, state.rows),
            training,
            phases,
            keep,
            len(state.steps),
        )
        log_round(state, record, phases.next_step(), len(problems), progress)
        state.start_round()
    progress.close()
    engine.close()
    write_jsonl(Path(out) / "accepted.jsonl", state.kept)
    save_policy(state.policy, tokenizer, Path(out) / "checkpoint")
    record.finish(
        phase_seconds=phases.total,
        generated_tokens=state.generated,
        generated_responses=state.responses,
        trained_tokens=state.trained,
        optimizer_steps=config.rounds * training.steps,
        memory=component_memory(policy=(state.policy, state.optimizer)),
        peak_memory=peak_memory(device, before),
    )


def log_round(state: State, record: Record, seconds: dict, problems: int, progress: Progress) -> None:
    """A round's line of metrics; problems: how many there are."""
    steps, rows = state.steps, state.rows or []
    state.trained += sum(step["batch_tokens"] for step in steps)
    record.log(
        state.round,
        {
            **state.metrics,
            "prompts_never_solved": 1 - len(state.solved) / problems,  # in no round so far; hints do not count
            "loss": sum(step["loss"] for step in steps) / len(steps),
            "loss_last": steps[-1]["loss"],
            "grad_norm": sum(step["grad_norm"] for step in steps) / len(steps),
            "generated_tokens": state.generated,
            "trained_tokens": state.trained,
            **seconds,
            "step_seconds": sum(seconds.values()),
        },
    )
    accepted = state.metrics["acceptance_rate"]
    progress.update(state.round + 1, accepted=len(rows), acceptance=accepted, loss=steps[-1]["loss"])


def main() -> None:
    parser = resumable_parser(__doc__.splitlines()[0], tunable=True)
    parser.add_argument("--from", dest="policy", required=True, metavar="DIR", help="checkpoint to start from")
    parser.add_argument("--prompts", required=True, metavar="FILE", help="train problems, JSONL")
    args = parser.parse_args()
    use_threads(args.threads)
    config = from_dict(ExpertIterationConfig, load_settings(args.settings, args.tuned), "settings")
    train(config, args.policy, args.prompts, args.out, args.name, args.threads, read_saving(args.saving))


if __name__ == "__main__":
    main_guard(main)
