"""Learning curves on dev problems, and the sigmoid over generated tokens."""

import json

import numpy as np
import pandas as pd
import pytest
from synthetic import rl, study, write_results

from evaluation.collect import collect
from evaluation.curves import curves, measured_on, scaling
from evaluation.curves.sigmoid import NotFitted, fit, fit_seeds, sigmoid
from evaluation.report import write
from evaluation.tasks.files import read_jsonl, write_json, write_jsonl

TOKENS = np.arange(7) * 5e4  # before the first of 30 steps, and after every 5
TRUE = {"start": 0.4, "asymptote": 0.75, "half": 8e4, "exponent": 1.5}
CURVE = sigmoid(TOKENS, **TRUE)


def test_the_sigmoid_by_hand():
    # half of the gain at C_mid; at 2 C_mid with B = 1: 1 / (1 + 1/2) = 2/3 of it; nothing at 0
    values = sigmoid(np.array([0.0, 10.0, 20.0]), start=0.2, asymptote=0.8, half=10.0, exponent=1.0)
    assert values == pytest.approx([0.2, 0.5, 0.6])


@pytest.mark.parametrize("change", [{}, {"asymptote": 0.98}, {"half": 1.6e5, "exponent": 3.0}, {"start": 0.0}])
def test_a_curve_without_noise_gives_back_its_parameters(change):
    true = TRUE | change
    found = fit(TOKENS, sigmoid(TOKENS, **true))
    assert vars(found) | {"covariance": 0} == pytest.approx(true | {"covariance": 0}, rel=1e-4)
    several = fit_seeds([TOKENS] * 3, [sigmoid(TOKENS, **true)] * 3)
    assert several.asymptote.mean == pytest.approx(true["asymptote"], rel=1e-4)
    assert several.asymptote.high - several.asymptote.low < 1e-3  # no seed differs
    assert several.half.low == pytest.approx(several.half.high, rel=1e-2)


@pytest.mark.parametrize(
    "tokens, accuracy, reason",
    [
        (TOKENS[:4], CURVE[:4], "4 places on the curve, at least 5 are needed"),
        (TOKENS[1:], CURVE[1:], "6 places"),  # R_0 is not measured
        (TOKENS, np.full(7, 0.5), "no rise"),
        (TOKENS, [0.50, 0.53, 0.48, 0.51, 0.49, 0.52, 0.50], "no rise"),
        (TOKENS, CURVE[::-1], "no rise"),
        (TOKENS, sigmoid(TOKENS, 0.4, 1.3, 1.5e5, 1.5), "asymptote would be 130 %"),
        (TOKENS, sigmoid(TOKENS, 0.4, 0.9, 4.5e5, 1.5), "beyond the last measurement"),
        (TOKENS, sigmoid(TOKENS, 0.4, 0.7, 5e3, 1.5), "lower dev_every"),
    ],
)
def test_a_curve_that_determines_no_sigmoid_says_why(tokens, accuracy, reason):
    with pytest.raises(NotFitted, match=reason):
        fit(tokens, np.asarray(accuracy))


def test_the_intervals_of_several_seeds_cover_about_as_often_as_they_say():
    """Three seeds, each with an asymptote of its own and 100 dev problems: 95 % within what 150 studies can tell."""
    generator, hits, studies = np.random.default_rng(0), [], 0
    while len(hits) < 150:
        studies += 1
        tops = 0.75 + 0.03 * generator.standard_normal(3)
        seeds = [generator.binomial(100, sigmoid(TOKENS, 0.4, top, 8e4, 1.5)) / 100 for top in tops]
        try:
            found = fit_seeds([TOKENS] * 3, seeds)
        except NotFitted:
            continue
        if np.isfinite(found.asymptote.low):
            hits.append(found.asymptote.low <= 0.75 <= found.asymptote.high)
    assert 0.88 <= np.mean(hits) <= 1.0 and len(hits) / studies > 0.5


def with_dev(results, made, only=None) -> dict:
    """The study's results, with a line of dev accuracy before and after each of four steps; seeds differ by 0.02."""
    made = write_results(results, made)
    for path in results.glob("stages/*/seed*/metrics.jsonl"):
        stage, seed = path.parts[-3], int(path.parts[-2].removeprefix("seed"))
        lines = read_jsonl(path)
        for step in range(5) if only in (None, stage) else ():
            share = float(sigmoid(np.array(100.0 * step), 0.3, 0.8, 150.0, 2.0)) + 0.02 * (seed - 1)
            more = {"dev_accuracy": share, "dev_seconds": 0.5, "generated_tokens": 100 * step}
            lines.insert(2 * step, {"step": step, **more})
        write_jsonl(path, lines)
        facts = json.loads((path.parent / "run.json").read_text())
        facts["phase_seconds"]["dev"] = 2.5
        write_json(path.parent / "run.json", facts)
    return made


@pytest.fixture
def measured(tmp_path):
    made = with_dev(tmp_path, study(a=rl("base"), b=rl("base", like="a", kl_coef=0.1)))
    write(tmp_path, made, tmp_path / "report")
    return tmp_path, made


def test_the_curves_are_those_on_dev_problems(measured):
    results, made = measured
    stages = collect(results, made)
    table = curves(stages).query("stage == 'a'")
    assert measured_on(stages) == "dev problems" and set(table["measured_on"]) == {"dev problems"}
    assert list(table["step"]) == [0, 1, 2, 3, 4] and list(table["generated_tokens"]) == [0, 100, 200, 300, 400]
    assert list(table["seconds"]) == [0, 1, 2, 3, 4]  # a second a step; those of dev are none
    expected = sigmoid(np.arange(5) * 100.0, 0.3, 0.8, 150.0, 2.0)
    assert list(table["accuracy"]) == pytest.approx(list(expected))  # and not averaged over neighbors
    assert list(table["highest_seed"] - table["lowest_seed"]) == pytest.approx([0.04] * 5)
    assert "accuracy on dev problems (%)" in (results / "report" / "curves_time.svg").read_text()


def test_the_seconds_of_dev_are_none_of_training(measured):
    results, _ = measured
    speed = pd.read_csv(results / "report" / "throughput.csv")
    assert list(speed["seconds"]) == pytest.approx([3.6, 3.6]) and "dev_seconds" not in speed
    assert list(pd.read_csv(results / "report" / "comparison.csv")["train_seconds"]) == pytest.approx([3.6, 3.6])


def test_the_report_shows_each_sigmoid(measured):
    results, _ = measured
    row = pd.read_csv(results / "report" / "scaling.csv").set_index("stage").loc["a"]
    assert row["fitted"] == "yes" and row["interval_for"] == "new seeds" and row["measurements"] == 15
    assert row["start"] == pytest.approx(0.3) and row["asymptote"] == pytest.approx(0.8, abs=1e-3)
    assert row["half_tokens"] == pytest.approx(150, rel=1e-2) and row["exponent"] == pytest.approx(2, rel=1e-2)
    # seeds 0.02 apart: leaving one out moves the asymptote by 0.01, 0, -0.01; SE = sqrt(2/3 * 2e-4) = 0.01155
    assert row["asymptote_high"] - row["asymptote"] == pytest.approx(4.3027 * 0.01155, rel=0.02)
    page = (results / "report" / "report.html").read_text()
    assert "A sigmoid over generated tokens" in page and "80.0 [75.0, 85.0]" in page


def test_one_seed_has_the_interval_of_its_own_fit(tmp_path):
    noisy = CURVE + 0.005 * np.array([0, 1, -1, 1, -1, 1, -1])
    found = fit_seeds([TOKENS], [noisy])
    assert found.interval_for == "this seed only" and found.asymptote.one_seed
    assert found.asymptote.low < 0.75 < found.asymptote.high and found.half.low < 8e4 < found.half.high


def test_without_dev_on_every_stage_the_curves_are_on_training_prompts(tmp_path):
    made = with_dev(tmp_path, study(a=rl("base"), b=rl("base", like="a", kl_coef=0.1)), only="a")
    stages = collect(tmp_path, made)
    assert measured_on(stages) == "training prompts" and list(scaling(stages)["stage"]) == ["a"]
    table = curves(stages).query("stage == 'a'")
    assert list(table["step"]) == [0, 1, 2, 3]
    assert list(table["accuracy"]) == pytest.approx([0.05, 0.1, 0.2, 0.25])  # 0, 0.1, 0.2, 0.3, each over 3 neighbors


def test_without_dev_the_table_of_sigmoids_is_empty(tmp_path):
    made = write_results(tmp_path, study(a=rl("base")))
    write(tmp_path, made, tmp_path / "report")
    assert pd.read_csv(tmp_path / "report" / "scaling.csv").empty
    assert "sigmoid" not in (tmp_path / "report" / "report.html").read_text()
