"""Which differences of a study are judged together, and the verdict of each.

There are three families, and each is adjusted by itself for the number of its comparisons:
- each stage and the evaluated stage that it starts from;
- the pairs of RL stages with the same start;
- all other pairs of stages of one kind or with one start.
"""

from itertools import combinations

from evaluation.collect import Stage
from evaluation.statistics.verdicts import Judgement, judge

START, SAME_START, OTHER = "stage and its start", "RL, same start", "other"
Pair = tuple[Stage, Stage]  # the difference is the first minus the second


class Verdicts:
    """The verdict of every comparison of a study's report."""

    def __init__(self, stages: dict[str, Stage], metric: str, margin: float):
        self.stages = stages
        self.lost = {s.name: s.failed(metric, stages.get(s.start or "")).any() for s in stages.values()}
        self.family: dict[frozenset[str], str] = {}
        self._found: dict[tuple[str, str], Judgement] = {}
        for name, members in self._families().items():
            pools, freedoms = self._pools(name, members)
            compared = [a.against(b, metric, pool) for (a, b), pool in zip(members, pools, strict=True)]
            for (a, b), found in zip(members, judge(compared, freedoms, margin), strict=True):
                self._found[a.name, b.name], self._found[b.name, a.name] = found, found.flipped()
                self.family[frozenset((a.name, b.name))] = name

    def __call__(self, stage: Stage, other: Stage) -> Judgement:
        """Of the difference stage - other."""
        return self._found[stage.name, other.name]

    def family_of(self, stage: Stage, other: Stage) -> str:
        return self.family[frozenset((stage.name, other.name))]

    def _families(self) -> dict[str, list[Pair]]:
        starts = [(s, self.stages[s.start]) for s in self.stages.values() if s.start in self.stages]
        taken = {frozenset((a.name, b.name)) for a, b in starts}
        rest = [p for p in pairs_of(self.stages) if frozenset((p[0].name, p[1].name)) not in taken]
        same = [(a, b) for a, b in rest if a.is_rl and b.is_rl and a.start == b.start]
        return {START: starts, SAME_START: same, OTHER: [pair for pair in rest if pair not in same]}

    def _pools(self, family: str, members: list[Pair]) -> tuple[list, dict]:
        """The pool of each comparison, and the degrees of freedom of each pool's variance between seeds.

        Stages of one kind with one start share it. Left out are stages with one seed, stages of which a seed has
        failed, and pairs whose start has several seeds, since the start's seeds are then a part of the variance.
        """
        if family == OTHER:
            return [None] * len(members), {}
        keys = [self._key(family, a, b) for a, b in members]
        freedoms = {}
        for key in {key for key in keys if key is not None}:
            pairs = [pair for pair, other in zip(members, keys, strict=True) if other == key]
            stages = {s.name: s for pair in pairs for s in (pair[:1] if family == START else pair)}.values()
            cells = sum(len(stage.seeds) - 1 for stage in stages)
            shared = len({seed for stage in stages for seed in stage.seeds}) - 1  # the seeds' own part of the variance
            freedoms[key] = cells if family == START else cells - shared
        return [key if key in freedoms and freedoms[key] > 0 else None for key in keys], freedoms

    def _key(self, family: str, stage: Stage, other: Stage) -> tuple | None:
        compared = (stage,) if family == START else (stage, other)
        if any(len(s.seeds) == 1 or self.lost[s.name] for s in compared):
            return None
        if family == START:
            return (stage.kind, other.name) if len(other.seeds) == 1 else None
        return (stage.kind, stage.start)


def pairs_of(stages: dict[str, Stage]) -> list[Pair]:
    """The pairs of stages that are of one kind, or start from one stage or model."""
    return [(a, b) for a, b in combinations(stages.values(), 2) if a.kind == b.kind or a.start == b.start]
