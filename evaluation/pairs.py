"""Which stages differ in what: for each pair, the settings and edges that differ, and the difference of the scores.

Pairs are of one kind, or start from one stage or model. The pairwise table is of those RL stages that share a start.

Two stages are a controlled comparison if they differ in one thing. RULE says in one sentence what counts as one.
"""

import json
from collections.abc import Iterator
from dataclasses import fields

import pandas as pd

from algos import ALGORITHMS
from algos.pieces.critic import WithCritic
from algos.pieces.estimator import Estimator
from algos.pieces.ratios import PER_RESPONSE
from evaluation.collect import Stage, columns, interval_for
from evaluation.families import SAME_START, Verdicts, pairs_of
from evaluation.statistics.robust import probability_of_improvement

RULE = (
    "Counted is each edge, each resolved setting and each hyperparameter that differs, and the objective if it is "
    "another function. A setting that acts in one of the two stages only, or in neither (the critic’s settings without "
    "a critic, the kind of a KL whose coefficient is 0), is listed as a consequence and not counted: the setting that "
    "switches it on is counted. The name of an algorithm counts for nothing by itself. A setting that tuning "
    "has chosen in one of the two follows from the tuning, which is counted if they have tried other configurations."
)
CRITIC = {f.name for f in fields(WithCritic)} - {f.name for f in fields(Estimator)}
KL = ("kl_in", "kl_estimator", "kl_direction", "kl_importance_weighted", "kl_target")
WHOLE_SPREADS = ("group_std", "leave_one_out_std", "group_mean", "batch_std")  # scales that add std_epsilon
ONE_VALUE = ("rewards",)  # written and read as one value, not key by key
MEASURED = ("dev_every", "dev_problems")  # how a run is watched: it is the same run with other values
TUNING = "tuning"  # the key of the difference between two stages that have tried other configurations
ABSENT = "absent"  # shown for a setting that a stage does not have

Difference = tuple[str, object, object]  # key, value in the first stage, value in the second
Split = tuple[list[Difference], list[Difference]]  # counted, consequences


def differing(a: dict, b: dict, prefix: str = "") -> Iterator[Difference]:
    """The keys of two nested dicts whose values differ, as ("settings.clip_high", 0.2, 0.28)."""
    for key in {**a, **b}:
        old, new = a.get(key, ABSENT), b.get(key, ABSENT)
        if isinstance(old, dict) and isinstance(new, dict) and key not in ONE_VALUE:
            yield from differing(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new


def in_effect(key: str, settings: dict) -> bool:
    """Whether a stage with these resolved settings makes use of the setting `key`."""
    hparams = settings.get("settings", {})
    folder, _, name = key.rpartition(".")
    if key == "critic_learning_rate" or (folder == "settings" and name in CRITIC):
        return hparams.get("baseline") == "critic"
    if key.startswith("vllm"):
        return settings.get("engine") == "vllm"
    rewards = settings.get("rewards", {})
    if key in ("reward_clip", "reward_scale_running"):
        return "reward_model" in rewards
    if key == "reward_combination":
        return len(rewards) > 1
    if folder == "reward_settings":
        return any(name.startswith(rule) for rule in rewards)
    return folder != "settings" or _hparam_in_effect(name, hparams)


def _hparam_in_effect(name: str, hparams: dict) -> bool:
    kl = bool(hparams.get("kl_coef"))
    per_token = hparams.get("ratio") not in PER_RESPONSE or bool(hparams.get("entropy_coef"))
    rules = {
        **dict.fromkeys(KL, kl),
        "kl_horizon": kl and hparams.get("kl_target") is not None,
        "credit": kl and hparams.get("kl_in") == "reward" and hparams.get("baseline") != "critic",
        "std_ddof": hparams.get("scale") not in ("none", "group_mean"),
        "std_epsilon": hparams.get("scale") in WHOLE_SPREADS,
        "aggregation": per_token or (kl and hparams.get("kl_in") == "loss"),  # of the terms that have a value a token
        "aggregation_length": hparams.get("aggregation") == "seq-mean-token-sum-norm",
        "max_rounds": bool(hparams.get("dynamic_sampling")),
        "correction_low": str(hparams.get("correction")).endswith("_mask"),
        "correction_high": hparams.get("correction") != "none",
    }
    return rules.get(name, True)


def objective(algorithm: str) -> object:
    """The functions of an algorithm's loss and advantages; its name, if it is not among the installed algorithms."""
    if algorithm not in ALGORITHMS:
        return algorithm
    entry = ALGORITHMS[algorithm]
    return type(entry), entry.objective, entry.advantages, entry.select, entry.adapt, entry.update


def setting_differences(first: Stage, second: Stage) -> Split:
    """Of the resolved settings, and of the objective."""
    a, b = (as_written(stage.settings) for stage in (first, second))
    other_objective = objective(first.algorithm) != objective(second.algorithm)
    counted: list[Difference] = [("objective", first.algorithm, second.algorithm)] if other_objective else []
    consequences: list[Difference] = []
    chosen = {key for tuning in (first.tuning, second.tuning) if tuning for key in tuning["trials"][0]["values"]}
    if tried(first.tuning) != tried(second.tuning):
        counted.append((TUNING, _tuned_by(first.tuning), _tuned_by(second.tuning)))
    for key, old, new in differing(a, b):
        if key in chosen:
            counts = False
        elif ABSENT in (old, new) and key.startswith("settings."):
            value, side = (new, b) if old == ABSENT else (old, a)
            if value in (None, 0, False):  # switched off is the same as absent
                continue
            counts = not other_objective and in_effect(key, side) and key.removeprefix("settings.") not in CRITIC
        elif key == "engine":  # TRL's trainers always sample with transformers: the engine follows from the trainer
            counts = a.get("trainer") == b.get("trainer")
        else:
            counts = in_effect(key, a) and in_effect(key, b)
        (counted if counts else consequences).append((key, old, new))
    return counted, consequences


def tried(tuning: dict | None) -> list | None:
    """The configurations of a stage's trials, and what they are judged by; None for a stage that is not tuned."""
    if tuning is None:
        return None
    return [tuning["metric"], tuning["seeds"], *(trial["values"] for trial in tuning["trials"])]


def _tuned_by(tuning: dict | None) -> str:
    if tuning is None:
        return "none"
    return f"{len(tuning['trials'])} trials of {', '.join(tuning['trials'][0]['values'])} by {tuning['metric']}"


def as_written(settings: dict) -> dict:
    """Resolved settings without seeds, algorithm, what only watches a run, and what follows from another setting."""
    found = {key: value for key, value in _without_seeds(settings).items() if key not in ("algorithm", *MEASURED)}
    length = found.get("settings", {}).get("aggregation_length")
    if length is not None and length == found.get("max_response_tokens"):  # its default
        found["settings"]["aggregation_length"] = None
    return found


def _without_seeds(settings: dict) -> dict:
    return {k: _without_seeds(v) if isinstance(v, dict) else v for k, v in settings.items() if k != "seed"}


def uses(edge: str, settings: dict) -> bool:
    """Whether a stage with these resolved settings needs the checkpoint or data of an optional edge."""
    hparams = settings.get("settings", {})
    critic = hparams.get("critic_init") if hparams.get("baseline") == "critic" else None
    return {
        "reward_model": "reward_model" in (settings.get("rewards") or {}) or critic == "reward_model",
        "reference": bool(hparams.get("kl_coef")),
        "critic": critic == "policy" and hparams.get("critic") == "separate",
        "data": settings.get("on_policy_share", 0) < 1,
    }.get(edge, True)


def edge_differences(first: Stage, second: Stage) -> Split:
    """Of the edges. An edge that one of the two has no use for follows from the settings."""
    a, b = ({k: v for k, v in {"from": s.start, **s.edges}.items() if v is not None} for s in (first, second))
    counted: list[Difference] = []
    consequences: list[Difference] = []
    for key, old, new in differing(a, b):
        follows = uses(key, first.settings) != uses(key, second.settings)
        if key == "reference":  # by default a stage's own start
            follows |= old in (ABSENT, a.get("from")) and new in (ABSENT, b.get("from"))
        (consequences if follows else counted).append((key, old, new))
    return counted, consequences


def differences(first: Stage, second: Stage) -> Split:
    """(counted, consequences) of two stages; see RULE. Stages of two kinds have other settings altogether."""
    if first.kind != second.kind:
        return [("kind", first.kind, second.kind), ("settings", f"of {first.kind}", f"of {second.kind}")], []
    settings, edges = setting_differences(first, second), edge_differences(first, second)
    return edges[0] + settings[0], edges[1] + settings[1]


def say(found: list[Difference]) -> str:
    """settings.clip_high: 0.2 -> 0.28; steps: 30 -> 60"""
    return "; ".join(f"{key}: {_text(old)} -> {_text(new)}" for key, old, new in found)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def trl_baselines(stages: dict[str, Stage]) -> dict[str, str]:
    """{TRL baseline: our own stage}: stages that differ from the stage that they are like by `trainer: trl` alone."""
    found = {}
    for name, stage in stages.items():
        own = stages.get(stage.like or "")
        if own is None or own.kind != stage.kind or (own.trainer, stage.trainer) != ("own", "trl"):
            continue
        if differences(own, stage)[0] == [("trainer", "own", "trl")]:
            found[name] = own.name
    return found


def pairs(stages: dict[str, Stage], metric: str, verdicts: Verdicts) -> pd.DataFrame:
    """One row a pair of stages of one kind or one start: what differs, and the paired difference stage - against.

    Pairs that differ in one thing come first, among them those where one stage is written as `like` the other.
    """
    rows = [_pair(first, second, metric, verdicts) for first, second in pairs_of(stages)]
    if not rows:
        return pd.DataFrame(columns=["stage", "against", "kind", "like", "differences", "family"])
    table = pd.DataFrame(rows)
    order = table.assign(rank=table["differences"].where(table["differences"] > 0, 1.5), unlike=~table["like"])
    return table.loc[order.sort_values(["rank", "unlike"], kind="stable").index].reset_index(drop=True)


def pairwise(table: pd.DataFrame) -> pd.DataFrame:
    """Of the table of pairs, the RL stages with the same start; those that differ in one setting come first."""
    chosen = table[table["family"] == SAME_START].drop(columns=["family", "kind"], errors="ignore")
    chosen.insert(2, "one_setting", chosen["differences"] == 1)
    return chosen.reset_index(drop=True)


def _pair(first: Stage, second: Stage, metric: str, verdicts: Verdicts) -> dict:
    if first.like == second.name:  # the stage that the other one is like is the one to compare with
        first, second = second, first
    counted, follows = differences(first, second)
    found = verdicts(second, first)
    parts = found.spread
    by_seed = [stage.grid(metric).mean(axis=1) for stage in (second, first)]
    return {
        "stage": second.name,
        "against": first.name,
        "kind": first.kind if first.kind == second.kind else f"{first.kind}, {second.kind}",
        "like": second.like == first.name,
        "differences": len(counted),
        "differs": say(counted),
        "consequences": say(follows),
        "paired_seeds": len(second.paired_seeds(first)),
        **columns("difference", found.interval),
        "verdict": found.verdict,
        "interval_for": interval_for(found.interval.one_seed),
        "family": verdicts.family_of(first, second),
        "p_different": found.p,
        "p_equal": found.equivalence_p,
        "detectable": found.detectable,
        "probability_of_improvement": probability_of_improvement(*by_seed),
        "questions": parts.questions if parts else None,
        "seed_part": parts.seed_part if parts else None,
        "question_part": parts.question_part if parts else None,
        "cell_part": parts.cell_part if parts else None,
    }
