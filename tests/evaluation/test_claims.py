"""The ledger of claims: synthetic tables flip the verdicts, and every name in a row leads to something that exists."""

import math
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from synthetic import rl, stage, study, write_results

from algos.pieces.settings import SettingsError, from_dict
from evaluation import report
from evaluation.claims import __main__ as command
from evaluation.claims import exact
from evaluation.claims.dynamics import METRICS, _points
from evaluation.claims.ledger import IDS, Cell, Claim, Difference, Exact, Rule, UnitTests, Value, read
from evaluation.claims.published import NotRun, Published, ratio
from evaluation.claims.verdicts import NOT_RUN, REFUTED, SUPPORTED, UNKNOWN, judge, judge_difference, judge_value
from evaluation.collect import read_json
from evaluation.statistics import Interval
from evaluation.tasks.files import write_json
from pipelines.study import load

PROJECT = Path(__file__).parents[2]
CLAIMS = read()
FORMS = [(claim.id, rule.form) for claim in CLAIMS for rule in claim.rules]
STUDIES = {p.stem: p for p in (PROJECT / "pipelines" / "studies").glob("*.yaml")}
STUDIES["default"] = PROJECT / "pipelines" / "config.yaml"
MEASURED = ("memory", "bench", "statistics", "models")  # published folders that are no studies


def difference(want: str, margin: float | None = None) -> Difference:
    return Difference("made_up", "a", "b", want, margin=margin)


@pytest.mark.parametrize(
    "want, interval, verdict",
    [
        ("higher", (0.03, 0.01, 0.05), SUPPORTED),
        ("higher", (0.008, 0.001, 0.015), UNKNOWN),  # above 0, but smaller than a point
        ("higher", (0.03, -0.01, 0.07), UNKNOWN),
        ("higher", (0.0, -0.009, 0.009), REFUTED),  # a point is excluded
        ("lower", (-0.03, -0.05, -0.01), SUPPORTED),
        ("lower", (0.03, 0.01, 0.05), REFUTED),
        ("not worse", (-0.01, -0.019, -0.001), SUPPORTED),  # worse, but by less than two points
        ("not worse", (0.0, -0.03, 0.03), UNKNOWN),
        ("not worse", (-0.03, -0.05, -0.01), REFUTED),
        ("equal", (0.0, -0.019, 0.019), SUPPORTED),
        ("equal", (0.0, -0.021, 0.019), UNKNOWN),
        ("equal", (0.03, 0.01, 0.05), REFUTED),
    ],
)
def test_the_interval_of_a_difference_decides(want, interval, verdict):
    assert judge_difference(Interval(*interval), difference(want)) == verdict


def test_a_difference_of_one_seed_or_without_an_interval_decides_nothing():
    assert judge_difference(Interval(0.5, 0.4, 0.6, one_seed=True), difference("higher")) == UNKNOWN
    assert judge_difference(Interval(0.5, math.nan, math.nan), difference("higher")) == UNKNOWN


def test_a_margin_of_ones_own_counts():
    assert judge_difference(Interval(-0.005, -0.015, 0.005), difference("not worse")) == SUPPORTED
    assert judge_difference(Interval(-0.005, -0.015, 0.005), difference("not worse", 0.01)) == UNKNOWN


@pytest.mark.parametrize(
    "interval, verdict",
    [
        ((0.5, 0.5, 0.5), SUPPORTED),
        ((0.5, 0.44, 0.56), UNKNOWN),
        ((0.3, 0.3, 0.3), UNKNOWN),  # outside, but not below refuted_below
        ((0.2, 0.2, 0.2), REFUTED),
        ((0.6, 0.56, 0.64), REFUTED),
    ],
)
def test_a_value_is_judged_by_its_range(interval, verdict):
    asked = Value(Cell("made_up/comparison", "x"), low=0.45, high=0.55, refuted_below=0.25)
    assert judge_value(Interval(*interval), asked) == verdict


def test_a_ratio_takes_the_errors_of_both():  # 10 % and 0 %; 3-4-5: 30 % and 40 % are 50 %
    assert ratio(Interval(2, 1.8, 2.2), Interval(4, 4, 4)) == Interval(0.5, 0.45, 0.55)
    found = ratio(Interval(10, 7, 13), Interval(10, 6, 14))
    assert (found.low, found.high) == pytest.approx((0.5, 1.5))


@pytest.mark.parametrize("bottom", [4, 0])
@pytest.mark.parametrize("top", [2, 0])
def test_a_ratio_rests_on_one_seed_if_either_number_does(top, bottom):
    one, more = Interval(top, top, top, one_seed=True), Interval(bottom, bottom, bottom)
    assert ratio(one, more).one_seed and not ratio(replace(one, one_seed=False), more).one_seed
    assert ratio(replace(one, one_seed=False), replace(more, one_seed=True)).one_seed


def publish(folder: Path, **tables: list[dict]) -> Published:
    (folder / "made_up").mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        pd.DataFrame(rows).to_csv(folder / "made_up" / f"{name}.csv", index=False)
    return Published(folder)


def arm(name: str, score: float, half: float = 0.01, **own) -> dict:
    return {"stage": name, "kind": "rl", "from": "start", "seeds": 3, "mean@8": score, "mean@8_low": score - half} | {
        "mean@8_high": score + half,
        "interval_for": "new seeds and questions",
        **own,
    }


def pair(difference: float, half: float, verdict: str = "cannot tell") -> dict:
    return {"stage": "a", "against": "b", "difference": difference, "verdict": verdict} | {
        "difference_low": difference - half,
        "difference_high": difference + half,
    }


def claim(*rules: dict, **own) -> Claim:
    rows = {"id": "C01", "claim": "a is better", "source": "S1", "kind": "E", "rules": list(rules), **own}
    return from_dict(Claim, rows, "row")


BETTER = {"difference": {"study": "made_up", "stage": "a", "against": "b", "want": "higher"}}
LEARNS = {"value": {"of": {"table": "made_up/comparison", "column": "mean@k", "where": {"stage": "a"}}, "low": 0.5}}


@pytest.mark.parametrize(
    "found, verdict",
    [((0.05, 0.01), SUPPORTED), ((-0.05, 0.01), REFUTED), ((0.0, 0.04), UNKNOWN)],
)
def test_tables_flip_a_verdict(tmp_path, found, verdict):
    published = publish(tmp_path, pairs=[pair(*found)])
    outcome = judge(claim(BETTER), published, {}.get)
    assert outcome.verdict == verdict and "made_up, a - b" in outcome.evidence
    assert outcome.detectable == pytest.approx(found[1] * 2.8 / 1.96)
    other = {"difference": {"study": "made_up", "stage": "b", "against": "a", "want": "lower"}}
    assert judge(claim(other), published, {}.get).verdict == verdict  # the pair the other way round


def test_a_pair_of_one_seed_cannot_tell(tmp_path):
    published = publish(tmp_path, pairs=[pair(0.05, 0.01, "this seed only")])
    outcome = judge(claim(BETTER), published, {}.get)
    assert outcome.verdict == UNKNOWN and "one seed" in outcome.evidence


def test_what_is_not_published_is_not_run_and_is_decided_when_the_table_comes(tmp_path):
    published = Published(tmp_path)
    assert judge(claim(BETTER), published, {}.get).verdict == NOT_RUN
    publish(tmp_path, pairs=[pair(0.05, 0.01)])
    assert judge(claim(BETTER), published, {}.get).verdict == SUPPORTED
    with pytest.raises(NotRun, match=r"no column"):
        published.cell(Cell("made_up/pairs", "difference", {"colour": "red"}))


def test_without_a_pair_the_intervals_of_both_arms_are_taken_as_independent(tmp_path):
    published = publish(tmp_path, comparison=[arm("a", 0.8, 0.03), arm("b", 0.7, 0.04)])
    found = published.difference(difference("higher"))
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.05, 0.15))  # 3-4-5


def test_the_one_seed_of_a_start_counts_for_those_that_begin_there_alone(tmp_path):
    lone = {"interval_for": "this seed only", "seeds": 1}
    rows = [arm("b", 0.5, **lone, kind="sft"), arm("a", 0.8, **{"from": "b"}), arm("c", 0.8)]
    published = publish(tmp_path, comparison=[{**row} for row in rows])
    assert not published.difference(difference("higher")).one_seed
    assert published.difference(Difference("made_up", "c", "b", "higher")).one_seed


@pytest.mark.parametrize(
    "pairs, score, combine, verdict",
    [
        ((0.05, 0.01), 0.6, "all", SUPPORTED),
        ((0.05, 0.01), 0.4, "all", REFUTED),
        ((0.0, 0.04), 0.4, "all", REFUTED),
        ((0.0, 0.04), 0.6, "all", UNKNOWN),
        ((0.0, 0.04), 0.6, "any", SUPPORTED),
        ((0.0, 0.04), 0.4, "any", UNKNOWN),
        ((-0.05, 0.01), 0.4, "any", REFUTED),
    ],
)
def test_rules_are_joined_by_all_or_any(tmp_path, pairs, score, combine, verdict):
    published = publish(tmp_path, pairs=[pair(*pairs)], comparison=[arm("a", score), arm("b", 0.5)])
    assert judge(claim(BETTER, LEARNS, combine=combine), published, {}.get).verdict == verdict


def test_a_claim_rests_on_tests_that_pass(tmp_path):
    asked = {"tests": {"names": ["tests/x.py::test_a", "tests/x.py::test_b"], "passing": "refuted"}}
    published = Published(tmp_path)
    assert judge(claim(asked), published, {"tests/x.py::test_a": True}.get).verdict == NOT_RUN
    both = {"tests/x.py::test_a": True, "tests/x.py::test_b": True}
    assert judge(claim(asked), published, both.get).verdict == REFUTED
    assert judge(claim(asked), published, (both | {"tests/x.py::test_b": False}).get).verdict == UNKNOWN


def test_the_command_runs_the_tests_that_are_named(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('x', [1, 2])\ndef test_good(x):\n    pass\n"
        "@pytest.mark.parametrize('x', [1, 2])\ndef test_half(x):\n    assert x == 1\n"
        "@pytest.mark.skip\ndef test_skipped():\n    pass\n"
    )
    names = [f"tests/test_it.py::test_{name}" for name in ("good", "half", "skipped")]
    found = command.run_tests([*names, "tests/gone.py::test_x"], tmp_path)
    assert found == {names[0]: True, names[1]: False}


def test_the_ledger_is_written_with_what_could_have_been_seen(tmp_path, capsys):
    publish(tmp_path, pairs=[pair(0.0, 0.04)])
    rows = [{"id": name, "claim": "x", "source": "S1", "kind": "E", "needs": "a | b"} for name in IDS[1:]]
    first = {"id": "C01", "claim": "a is better", "source": "S1", "kind": "E", "rules": [BETTER]}
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "some.yaml").write_text(yaml.safe_dump([first, *rows]))
    command.main(["--claims", str(tmp_path / "rows"), "--published", str(tmp_path), "--skip-tests"])
    table = pd.read_csv(tmp_path / "claims" / "claims.csv").set_index("id")
    assert list(table["verdict"].value_counts().items()) == [(NOT_RUN, 89), (UNKNOWN, 1)]
    assert table.loc["C01", "detectable"] == pytest.approx(0.04 * 2.8 / 1.96, rel=1e-5)
    text = (tmp_path / "claims" / "claims.md").read_text()
    assert "90 claims: 0 supported, 0 refuted, 1 cannot tell, 89 not run here." in text and r"needs a \| b" in text
    assert "1 of 90 claims have a verdict" in capsys.readouterr().out


@pytest.mark.parametrize(
    "row, message",
    [
        ({"id": "C91"}, r"some\.yaml, C91: id: 'C91' is unknown"),
        ({"needs": "y", "rules": [BETTER]}, r"some\.yaml, C01: write rules, or needs"),
        ({"needs": ""}, r"some\.yaml, C01: write rules, or needs"),
        ({"verdict": "supported"}, r"some\.yaml, C01, key: 'verdict' is unknown"),
        ({"needs": "", "rules": [{}]}, "a rule is one of difference, value, exact, tests, got none"),
        ({"needs": "", "rules": [{"exact": {"number": "savings", "low": 0}}]}, "'savings' is unknown"),
        ({"needs": "", "rules": [{"exact": {"number": "saving_adamw"}}]}, "needs low, high or both"),
        (
            {"needs": "", "rules": [{"difference": {**BETTER["difference"], "want": "best"}}]},
            r"some\.yaml, C01\.rules\[0\]\.difference\.want: 'best' is unknown",
        ),
    ],
)
def test_a_mistake_in_a_row_is_named_with_row_and_key(tmp_path, row, message):
    first = {"id": "C01", "claim": "x", "source": "S1", "kind": "E", "needs": "y", **row}
    (tmp_path / "some.yaml").write_text(yaml.safe_dump([first]))
    with pytest.raises(SettingsError, match=message):
        read(tmp_path)


def test_a_missing_row_is_named(tmp_path):
    (tmp_path / "some.yaml").write_text("[]")
    with pytest.raises(SettingsError, match="C01 must stand once, got 0 rows"):
        read(tmp_path)


def test_all_ids_are_there():
    assert [claim.id for claim in CLAIMS] == [f"C{number:02}" for number in range(1, 91)]


# the names in the rows


@pytest.fixture(scope="module")
def columns(tmp_path_factory):
    """The columns of each table of a report, from a made-up study with `evaluation.reach`."""
    results = tmp_path_factory.mktemp("results")
    made = write_results(results, study(start=stage("sft", "base", steps=1, trainer="own"), a=rl("start")))
    for path in results.rglob("scores.json"):
        scores = read_json(path)
        scores["per_problem"] |= {"mean@4": [0.5, 0.0], "pass@4": [1.0, 0.0]}
        write_json(path, scores)
    report.write(results, made, results / "report")
    return {path.stem: set(pd.read_csv(path, nrows=0)) for path in (results / "report").glob("*.csv")}


@cache
def stages_of(name: str) -> set[str]:
    """The stages of a shipped study."""
    return set(load(STUDIES[name]).stages)


def cells(form) -> list[Cell]:
    return [cell for cell in (form.of, form.over) if cell is not None] if isinstance(form, Value) else []


@pytest.mark.parametrize("name, form", [(i, f) for i, f in FORMS if isinstance(f, Difference)])
def test_the_arms_of_a_difference_are_stages_of_a_shipped_study(name, form, columns):
    assert {form.stage, form.against} <= stages_of(form.study)
    assert _plain(form.metric) in {_plain(column) for column in columns["comparison"]}


def _plain(column: str) -> str:
    return re.sub(r"@(k|\d+)", "@", column)


@pytest.mark.parametrize("name, cell", [(i, cell) for i, f in FORMS for cell in cells(f)])
def test_the_cells_of_a_value_are_of_a_shipped_table(name, cell, columns):
    folder, _, table = cell.table.partition("/")
    if folder in MEASURED:
        assert Published(PROJECT / "results" / "published").cell(cell).mean > 0
        return
    assert {*map(_plain, cell.where), _plain(cell.column)} <= {_plain(column) for column in columns[table]}
    assert cell.where["stage"] in stages_of(folder) and cell.where.get("metric", "accuracy") in METRICS


@pytest.mark.parametrize("test", [test for _, f in FORMS if isinstance(f, UnitTests) for test in f.names])
def test_the_tests_of_a_claim_exist(test):
    path, _, function = test.partition("::")
    assert f"def {function}(" in (PROJECT / path).read_text(encoding="utf-8")


def test_the_exact_numbers_by_hand():
    numbers = {name: compute() for name, (_, compute) in exact.NUMBERS.items()}
    assert numbers["saving_adamw"] == pytest.approx(16 / 36)  # 1 - (16 + 2 x 2) / (2 x 16 + 2 x 2)
    assert numbers["saving_no_optimizer"] == pytest.approx(1 / 3)  # t = 2 f
    assert (numbers["gigabytes_adamw"], numbers["gigabytes_weights"]) == pytest.approx((252, 56))
    assert numbers["flops_saving_1"] == pytest.approx(1 - 14 / 22)  # 2 + 6 + 6 against 2 + 8 + 12
    assert numbers["flops_saving_4"] == pytest.approx(1 - 32 / 58)
    assert numbers["bias_product_ratio"] < 1e-9 < 0.01 < numbers["bias_token_ratio"]
    used = {form.number for _, form in FORMS if isinstance(form, Exact)}
    assert used == set(numbers)


def test_dynamics_by_hand(columns):  # a fifth of ten steps is two
    values = np.array([1.0, 2, 9, 4, 5, 6, 7, 8, 3, 5])
    assert _points(values) == (1.5, 4.0, 2.5, 9.0)
    assert _points(values[:3]) == (1.0, 9.0, 8.0, 9.0)
    assert {"stage", "metric", "start", "end_low", "change_high", "highest"} <= columns["dynamics"]


def test_one_rule_has_one_form():
    with pytest.raises(SettingsError, match="got difference, exact"):
        Rule(difference=difference("higher"), exact=Exact("saving_adamw", low=0.1))
