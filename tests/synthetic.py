"""Results folders of studies that never ran: records, scores and responses as the stages would write them."""

import copy
import json
from pathlib import Path

import numpy as np

from algos.describe import estimator
from algos.training.config import RunConfig
from evaluation.collect import record_folders
from evaluation.tasks.files import write_json, write_jsonl

QUESTIONS = 40
SAMPLES = 2
ENVIRONMENT = {
    "commit": "abc123",
    "packages": {"torch": "2", "transformers": "5", "trl": "1"},
    "hardware": {"cpu": "a CPU", "cores": 2, "gpu": None},
    "command": ["python", "-m", "x"],
    "threads": 1,
    "started": 1.0,
    "finished": 11.0,
    "seconds": 10.0,
    "status": "finished",
}
WORK = {
    "phase_seconds": {"generate": 1.0, "reward": 0.1, "logprobs": 0.5, "update": 2.0},
    "memory": {"policy": {"parameters": 10, "weights": 40, "gradients": 40, "optimizer": 80, "master": 0}},
    "peak_memory": {"peak_bytes": 10**6, "source": "a test"},
}


def stage(kind: str, start: str, seeds=(0, 1, 2), like=None, score=0.5, evaluated=True, edges=None, **settings) -> dict:
    """A stage's entry, with the share of right answers that its checkpoints reach."""
    return {
        "kind": kind,
        "seeds": list(seeds),
        "from": start,
        "like": like,
        "trainer": settings.get("trainer", "own"),
        "evaluated": evaluated,
        "edges": {"from": start, **(edges or {})},
        "settings": settings,
        "rewards": settings.get("rewards"),
        "score": score,
    }


def rl(start: str, algorithm: str = "grpo", seeds=(0, 1, 2), like=None, score=0.6, edges=None, **settings) -> dict:
    """A stage of kind rl with resolved settings; hparams by keyword, the loop's settings under `loop`."""
    loop = settings.pop("loop", {})
    config = RunConfig(algorithm=algorithm, seed=0, settings=settings, **loop)
    resolved = {key: value for key, value in config.resolved().items() if key != "seed"}
    made = stage("rl", start, seeds, like, score, edges=edges, **json.loads(json.dumps(resolved)))
    made["facts"] = {"algorithm": algorithm, "estimator": estimator(config.hparams)}
    return made


def study(**stages: dict) -> dict:
    return {
        "study": "made_up",
        "source": "made_up.yaml",
        "task": "word_problems",
        "samples": SAMPLES,
        "margin": 2.0,
        "seed": 0,
        "models": ["base"],
        "stages": stages,
    }


def write_results(results: Path, made: dict) -> dict:
    """Write the study's results; returns its `--study` value."""
    made = copy.deepcopy(made)
    write_record(results / "data", "data", {})
    write_jsonl(results / "data" / "test.jsonl", [{"id": f"test/{q}", "prompt": f"{q}?"} for q in range(QUESTIONS)])
    for number, (name, entry) in enumerate(made["stages"].items()):
        score, facts = entry.pop("score"), entry.pop("facts", {})
        for seed, (folder, evaluation) in zip(entry["seeds"], record_folders(results, name, entry), strict=True):
            settings = {**entry["settings"], "seed": seed}
            write_record(folder, entry["kind"], settings, trainer=entry["trainer"], **facts, **work(entry["kind"]))
            write_metrics(folder, entry)
            if entry["evaluated"]:
                write_evaluation(evaluation, score, 100 * number + seed)
    return made


def work(kind: str) -> dict:
    """The facts of a finished stage that depend on its kind."""
    tokens = {"trained_tokens": 500} if kind == "sft" else {"generated_tokens": 1000, "generated_responses": 64}
    if kind == "reward_model":
        tokens = {"held_out": {"held_out_prompts": 20, "held_out_pairs": 50, "pair_accuracy_rater": 0.75}}
    return {**(WORK if kind != "model" else {"memory": {}}), **tokens}


def write_record(folder: Path, kind: str, settings: dict, **facts) -> None:
    folder.mkdir(parents=True)
    write_json(folder / "run.json", {"kind": kind, "settings": settings, **ENVIRONMENT, **facts})


def write_metrics(folder: Path, entry: dict) -> None:
    learned = {"reward_reward_model": 0.3} if "reward_model" in entry["settings"].get("rewards", {}) else {}
    lines = [
        {
            "step": step,
            "accuracy": 0.1 * step,
            "generated_tokens": 100 * step,
            "step_seconds": 1.0,
            "clip_fraction": 0.01,
            **learned,
        }
        for step in range(4)
    ]
    write_jsonl(folder / "metrics.jsonl", lines)


def write_evaluation(folder: Path, score: float, seed: int) -> None:
    """Each question is answered right with probability `score`, drawn anew for every checkpoint."""
    write_record(folder, "evaluation", {})
    right = (np.random.default_rng(seed).random((SAMPLES, QUESTIONS)) < score).astype(float)
    ones, mean = [1.0] * QUESTIONS, right.mean(axis=0).tolist()
    per_problem = {
        "greedy": right[0].tolist(),
        "greedy_flexible": right[0].tolist(),
        **dict.fromkeys((f"mean@{SAMPLES}", f"mean@{SAMPLES}_flexible", f"pass@{SAMPLES}", f"maj@{SAMPLES}"), mean),
        **dict.fromkeys(("format_rate", "truncation_rate", "response_tokens", "distinct_answers"), ones),
    }
    write_json(folder / "scores.json", {"problems": QUESTIONS, "samples": SAMPLES, "per_problem": per_problem})
    rows = [{"problem": f"test/{q}", "sample": 0, "response": "<script>x</script>", "correct": True} for q in range(2)]
    write_jsonl(folder / "responses.jsonl", rows)
