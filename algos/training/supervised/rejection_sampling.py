"""Sample from a policy and keep the correct responses: data for SFT and for distillation.

Source: Yuan et al. 2023 (RFT), arXiv:2308.01825. Repeated responses count once, and a prompt gives at most
max_per_prompt, else easy prompts dominate. The prompts are train problems. Their gold answers filter the responses and
are never shown to the policy.
By hand:
    python -m algos.training.supervised.rejection_sampling --settings '{"seed": 0}' \\
        --from DIR --prompts FILE --out DIR
"""

from dataclasses import asdict
from pathlib import Path

from algos.pieces.settings import SettingsError, from_dict
from algos.training.models.checkpoints import check_causal_lm
from algos.training.sampling.respond import draw_problems, respond
from algos.training.stage.config import read_saving
from algos.training.stage.record import (
    Progress,
    Record,
    load_settings,
    main_guard,
    resumable_parser,
    use_threads,
    warn_if_budget_left,
)
from algos.training.stage.saves import Saves
from algos.training.supervised.config import RejectionConfig
from evaluation.tasks.files import write_jsonl


def acceptable(row: dict) -> bool:
    """Correct, and complete: cut off before its end, a response teaches not to end."""
    return row["correct"] and not row["truncated"]


def nothing_accepted(responses: int, cut_off: float, most_tokens: int, when: str = "") -> SettingsError:
    """What is said where no response is acceptable; cut_off: their share that has no end within most_tokens."""
    return SettingsError(
        f"{when}none of the {responses} sampled responses is correct and complete ({cut_off:.0%} are cut off at "
        f"max_response_tokens = {most_tokens}), so there is nothing to train on. Start from a checkpoint that solves "
        "some of the problems, sample more, or raise max_response_tokens."
    )


def accept(problem: dict, responses: list[dict], most: int) -> list[dict]:
    """The first `most` different responses to a problem that are correct and complete, as training rows."""
    texts = dict.fromkeys(row["response"] for row in responses if acceptable(row))
    return [
        {"id": problem["id"], "prompt": problem["prompt"], "question": problem["question"], "answer": text}
        for text in list(texts)[:most]
    ]


def main() -> None:
    parser = resumable_parser(__doc__.splitlines()[0])
    parser.add_argument("--from", dest="policy", required=True, metavar="DIR", help="checkpoint to sample from")
    parser.add_argument("--prompts", required=True, metavar="FILE", help="train problems, JSONL")
    args = parser.parse_args()
    use_threads(args.threads)
    config = from_dict(RejectionConfig, load_settings(args.settings), "settings")
    check_causal_lm(args.policy)
    problems = draw_problems(args.prompts, config.prompts, config.seed, "settings.prompts")
    saves = Saves(args.out, read_saving(args.saving), [args.policy, args.prompts])
    facts = {"name": args.name, "seed": config.seed}
    record = Record(args.out, "rejection_sampling", asdict(config), args.threads, saves, **facts)
    progress = Progress(len(problems), args.name or "rejection sampling", unit="prompt")
    responses = respond(args.policy, problems, config.responses, config, progress, config.budget_tokens, saves)
    progress.close()
    problems = problems[: len(responses) // config.responses]
    accepted = [
        accept(problem, responses[i * config.responses : (i + 1) * config.responses], config.max_per_prompt)
        for i, problem in enumerate(problems)
    ]
    rows = [row for group in accepted for row in group]
    if not rows:
        cut_off = sum(row["truncated"] for row in responses) / len(responses)
        raise nothing_accepted(len(responses), cut_off, config.max_response_tokens)
    write_jsonl(Path(args.out) / "accepted.jsonl", rows)
    tokens = sum(row["tokens"] for row in responses)
    warn_if_budget_left(config, "prompts", tokens)
    record.log(
        0,
        {
            "acceptance_rate": sum(map(acceptable, responses)) / len(responses),
            "accepted": len(rows),
            "prompts_solved": sum(bool(group) for group in accepted) / len(problems),
            "generated_tokens": tokens,
        },
    )
    for row in rows[:8]:
        record.sample(step=0, prompt=row["prompt"], response=row["answer"])
    record.finish(generated_tokens=tokens, generated_responses=len(responses))


if __name__ == "__main__":
    main_guard(main)
