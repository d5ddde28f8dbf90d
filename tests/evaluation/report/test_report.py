"""The report of any graph of stages: no stage's name means anything, and a study without cold start is complete."""

import json
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import rl, stage, study, write_results

from algos.pieces.settings import SettingsError
from evaluation.collect import collect, phases_of
from evaluation.config import figures_of
from evaluation.findings import study_records
from evaluation.publish import publish
from evaluation.report import write
from evaluation.statistics import mean_interval, spread
from evaluation.tasks.files import write_json

SFT = {"steps": 10, "trainer": "own"}
CHAIN = study(  # base -> RL -> rejection sampling -> SFT -> RL again, one seed beside three, a TRL baseline, `vary`
    zero=rl("base", score=0.3),
    kept=stage("rejection_sampling", "zero", evaluated=False, responses=2),
    on_kept=stage("sft", "base", score=0.5, edges={"data": "kept"}, **SFT),
    cheap=stage("sft", "base", seeds=[0], score=0.2, edges={"data": "demonstrations"}, **SFT),
    again=rl("on_kept", like="zero", score=0.8),
    trl_again=rl("on_kept", like="again", score=0.8, loop={"trainer": "trl"}),
    from_cheap=rl("cheap", like="zero", score=0.7),
    **{"again-kl_coef=0.01": rl("on_kept", like="again", score=0.8, kl_coef=0.01)},
)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    made = write_results(results, CHAIN)
    write(results, made, results / "report")
    return results


def table(results: Path, name: str, **options) -> pd.DataFrame:
    return pd.read_csv(results / "report" / f"{name}.csv", **options)


def test_every_evaluated_stage_is_a_row_in_the_studys_order(chain):
    rows = table(chain, "comparison")
    assert list(rows["stage"]) == [name for name in CHAIN["stages"] if name != "kept"]
    assert list(rows.columns[:7]) == ["stage", "kind", "algorithm", "trainer", "from", "seeds", "interval_for"]
    assert list(rows["seeds"]) == [3, 3, 1, 3, 3, 3, 3]
    by_name = rows.set_index("stage")
    assert by_name.loc["zero", "generated_tokens"] == 1000 and np.isnan(by_name.loc["cheap", "generated_tokens"])
    assert by_name.loc["cheap", "trained_tokens"] == 500 and np.isnan(by_name.loc["cheap", "clip_fraction"])


def test_a_stage_is_compared_with_the_evaluated_stage_that_it_starts_from(chain):
    rows = table(chain, "comparison").set_index("stage")
    assert set(rows.index[rows["minus_start"].isna()]) == {"zero", "on_kept", "cheap"}  # they start from a model
    stages = collect(chain, CHAIN)
    by_hand = mean_interval(stages["again"].grid("mean@2") - stages["on_kept"].grid("mean@2"))
    assert rows.loc["again", "minus_start"] == pytest.approx(by_hand.mean, rel=1e-5)
    assert rows.loc["again", "minus_start_low"] == pytest.approx(by_hand.low, rel=1e-4)
    only_seed = mean_interval(stages["from_cheap"].grid("mean@2") - stages["cheap"].grid("mean@2"))  # (3, Q) - (1, Q)
    assert rows.loc["from_cheap", "minus_start_low"] == pytest.approx(only_seed.low, rel=1e-4)
    assert rows.loc["from_cheap", "against_start"] == "higher"


def test_a_trl_baseline_is_compared_with_our_own_stage(chain):
    rows = table(chain, "comparison").set_index("stage")
    assert rows["own"].dropna().to_dict() == {"trl_again": "again"}
    expected = rows.loc["trl_again", "mean@2"] - rows.loc["again", "mean@2"]
    assert rows.loc["trl_again", "minus_own"] == pytest.approx(expected, abs=1e-5)
    page = (chain / "report" / "report.html").read_text()
    assert "TRL minus own" in page


def test_the_page_is_complete_and_escapes_model_output(chain):
    page = (chain / "report" / "report.html").read_text()
    assert all(f">{name}<" in page for name in CHAIN["stages"] if name != "kept")
    assert "again-kl_coef=0.01" in page and page.count('<figure data-chart="') == 7
    assert {f"{name}.svg" for name in figures_of(CHAIN)} == {path.name for path in (chain / "report").glob("*.svg")}
    assert "\\u003cscript\\u003ex" in page and "<script>x" not in page
    assert "cold" not in page[: page.index("<script>")]


def test_the_page_names_stages_with_one_seed_and_the_markdown_its_origin(chain):
    page = (chain / "report" / "report.html").read_text()
    assert "cheap: one seed; intervals cover new questions only" in page
    lines = (chain / "report" / "comparison.md").read_text().splitlines()
    assert lines[-1] == "Study file made_up.yaml, commit abc123, on a CPU (2 cores)."
    assert sum(line.startswith("| ") for line in lines) == 2 + 7


def test_pairs_that_differ_in_one_thing_come_first(chain):
    rows = table(chain, "pairs")
    one = rows[rows["differences"] == 1]
    assert list(one.index) == list(range(len(one)))
    found = {(row["against"], row["stage"]): row["differs"] for _, row in one.iterrows()}
    assert found[("zero", "again")] == "from: base -> on_kept"
    assert found[("again", "trl_again")] == "trainer: own -> trl"
    assert found[("again", "again-kl_coef=0.01")] == "settings.kl_coef: 0.0 -> 0.01"
    assert found[("cheap", "on_kept")] if ("cheap", "on_kept") in found else found[("on_kept", "cheap")]
    likes = rows["like"] & (rows["differences"] == 1)
    assert likes.iloc[: likes.sum()].all()
    assert rows["kind"].value_counts().to_dict() == {"rl": 10, "sft": 1, "rl, sft": 2}  # the last two start from base


def test_rl_stages_with_one_start_are_a_table_of_their_own_and_a_matrix(chain):
    rows, everything = table(chain, "pairwise"), table(chain, "pairs")
    found = {frozenset(pair) for pair in zip(rows["stage"], rows["against"], strict=True)}
    names = ("again", "trl_again", "again-kl_coef=0.01")  # these three start from on_kept
    assert found == {frozenset(pair) for pair in combinations(names, 2)}
    assert list(rows["one_setting"]) == [True, True, False]
    assert set(everything["family"]) == {"RL, same start", "other"}
    shared = everything[everything["family"] == "RL, same start"]
    assert list(rows["p_different"]) == pytest.approx(list(shared["p_different"]))
    lines = (chain / "report" / "pairwise.md").read_text().splitlines()
    assert lines[0].startswith("| stage | against | verdict | difference, points |") and "within 2 points" in lines[6]
    assert "trainer: own -> trl" in lines[2] + lines[3]
    assert (chain / "report" / "matrix.svg").read_text().count("again-kl_coef=0.01") == 2  # a row and a column


def test_the_parts_of_the_variance_and_what_the_seeds_hide_are_in_the_tables(chain):
    row = table(chain, "pairwise").iloc[0]
    stages = collect(chain, CHAIN)
    gaps = stages[row["stage"]].grid("mean@2") - stages[row["against"]].grid("mean@2")
    by_hand = spread(gaps)
    parts = (by_hand.seed_part, by_hand.question_part, by_hand.cell_part)
    assert tuple(row[["seed_part", "question_part", "cell_part"]]) == pytest.approx(parts, rel=1e-4)
    rows = table(chain, "comparison").set_index("stage")
    seeds = stages["zero"].grid("mean@2").mean(axis=1)
    assert rows.loc["zero", "mean@2_median"] == pytest.approx(np.median(seeds))
    assert tuple(rows.loc["zero", ["failed_seeds", "failed_seeds_high"]]) == pytest.approx((0, 0.707598))
    assert rows.loc["zero", "mean@2_without_failed_low"] == rows.loc["zero", "mean@2_low"]
    profile = table(chain, "profile").query("stage == 'zero'").set_index("threshold")["share_of_seeds_above"]
    assert profile[0.0] == 1 and profile[1.0] == 0 and profile[0.3] == pytest.approx((seeds > 0.3).mean())


def test_a_seed_that_collapses_is_told_and_its_stage_gets_no_verdict(tmp_path):
    made = write_results(tmp_path, study(a=rl("base", score=0.9), b=rl("base", like="a", score=0.9)))
    path = tmp_path / "stages" / "b" / "evaluation" / "seed1" / "scores.json"
    scores = json.loads(path.read_text())
    scores["per_problem"]["mean@2"] = [0.0] * 40
    write_json(path, scores)
    write(tmp_path, made, tmp_path / "report")
    row = table(tmp_path, "comparison").set_index("stage").loc["b"]
    assert row["failed_seeds"] == pytest.approx(1 / 3, rel=1e-5) and row["mean@2_without_failed"] > 0.8 > row["mean@2"]
    assert row["mean@2_low"] >= 0 and row["mean@2_high"] <= 1 and row["mean@2_median"] > 0.8
    assert table(tmp_path, "pairs")["verdict"].item() == "cannot tell"
    assert "b: 1 of 3 seeds failed (1)" in (tmp_path / "report" / "report.html").read_text()


def test_one_seed_has_no_verdict_and_its_interval_says_so(chain):
    rows = table(chain, "comparison").set_index("stage")
    assert rows.loc["cheap", "interval_for"] == "this seed only"
    assert rows.loc["zero", "interval_for"] == "new seeds and questions"
    lines = (chain / "report" / "comparison.md").read_text().splitlines()
    assert [line.count("this seed only") for line in lines if line.startswith("| cheap ")] == [4]  # its four scores
    cells = dict(zip(*([c.strip() for c in line.split("|")] for line in (lines[0], lines[2])), strict=True))
    assert cells["median seed"] == f"{100 * rows.loc['zero', 'mean@2_median']:.1f}"
    pair = table(chain, "pairs").query("kind == 'sft'").iloc[0]
    assert pair["verdict"] == pair["interval_for"] == "this seed only" and np.isnan(pair["p_different"])


def test_a_stage_with_one_seed_stands_against_all_seeds_of_the_other(chain):
    row = table(chain, "pairs").query("kind == 'sft'").iloc[0]
    assert row["paired_seeds"] == 3
    stages = collect(chain, CHAIN)
    by_hand = mean_interval(stages["cheap"].grid("mean@2") - stages["on_kept"].grid("mean@2"))  # (1, Q) - (3, Q)
    assert (row["difference"], row["difference_low"]) == pytest.approx((by_hand.mean, by_hand.low), rel=1e-4)


def test_pairs_and_comparison_give_one_difference_for_a_stage_and_its_start(tmp_path):
    made = write_results(
        tmp_path,
        study(
            one=rl("base", seeds=[0]),
            several=rl("one", like="one", score=0.8),
            last=rl("several", seeds=[2], like="one", score=0.9),
        ),
    )
    stages = collect(tmp_path, made)
    for name, start in (("several", "one"), ("last", "several")):
        gain, pair = stages[name].minus_start(stages[start], "mean@2"), stages[name].minus(stages[start], "mean@2")
        assert gain == pair and gain.mean == pytest.approx(-stages[start].minus(stages[name], "mean@2").mean)
    assert stages["last"].paired_seeds(stages["several"]) == [(2, 2)]
    assert stages["several"].paired_seeds(stages["one"]) == [(0, 0), (1, 0), (2, 0)]


def test_stages_of_two_kinds_are_paired_where_they_start_from_the_same(tmp_path):
    made = write_results(tmp_path, study(a=stage("sft", "base", **SFT), b=rl("base"), c=rl("a")))
    write(tmp_path, made, tmp_path / "report")
    rows = table(tmp_path, "pairs").set_index(["against", "stage"])
    assert rows.loc[("a", "b"), "differs"] == "kind: sft -> rl; settings: of sft -> of rl"
    assert rows.loc[("a", "b"), "differences"] == 2 and ("a", "c") not in rows.index and ("b", "c") in rows.index


def test_what_an_earlier_study_left_in_the_folder_is_not_its_origin(tmp_path):
    made = write_results(tmp_path, study(a=rl("base", seeds=[0, 1])))
    made["stages"]["a"]["seeds"] = [0]
    for left in ("stages/a/seed1", "stages/a/evaluation/seed1", "stages/b/seed0", "models/old"):
        folder = tmp_path / left
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "run.json", {"kind": "rl", "commit": "old-dirty"})
    records = study_records(tmp_path, made)
    assert {record["commit"] for record in records} == {"abc123"} and len(records) == 3  # data, a stage, its evaluation


def test_stages_without_a_common_seed_have_a_difference_without_an_interval(tmp_path):
    made = write_results(tmp_path, study(a=rl("base", seeds=[0, 1]), b=rl("base", seeds=[2, 3])))
    stages = collect(tmp_path, made)
    difference = stages["a"].minus(stages["b"], "mean@2")
    assert np.isnan(difference.low) and not np.isnan(difference.mean)
    write(tmp_path, made, tmp_path / "report")
    assert "a, b: two seeds" in (tmp_path / "report" / "report.html").read_text()


def test_a_study_without_any_sft(tmp_path):
    made = write_results(tmp_path, study(a=rl("base"), b=rl("a", like="a", score=0.9)))
    write(tmp_path, made, tmp_path / "report")
    assert table(tmp_path, "comparison").set_index("stage").loc["b", "against_start"] == "higher"


def test_a_study_without_any_rl(tmp_path):
    made = write_results(tmp_path, study(a=stage("sft", "base", **SFT))) | {"source": "my own.yaml"}
    write(tmp_path, made, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert figures_of(made) == ["accuracy"] and page.count('<figure data-chart="') == 3
    assert "Learning curves" not in page
    assert "--configfile &#39;my own.yaml&#39;" in page  # a command that can be pasted


def test_learned_rewards_and_reward_models_are_shown(tmp_path):
    learned = {"rewards": {"reward_model": 1.0}}
    made = study(
        start=stage("sft", "base", seeds=[0], **SFT),
        judge=stage("reward_model", "start", seeds=[0], evaluated=False, edges={"data": "mine"}),
        plain=rl("start"),
        judged=rl("start", like="plain", loop=learned, edges={"reward_model": "judge"}),
    )
    made = write_results(tmp_path, made)
    write(tmp_path, made, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert "judge, seed 0: on 50 held-out pairs of 20 prompts" in page
    assert "75.0 [53.1, 88.8] %" in page  # Wilson: 15 of 20
    assert page.count('<figure data-chart="') == 8 and "proxy_and_gold" in page
    assert ">judged<" in (tmp_path / "report" / "proxy_and_gold.svg").read_text()  # the legend
    pair = table(tmp_path, "pairs").query("like").iloc[0]
    assert pair["differs"] == 'rewards: {"correctness": 1.0} -> {"reward_model": 1.0}'
    assert pair["consequences"] == "reward_model: absent -> judge"


def test_what_is_not_measured_is_an_empty_cell(tmp_path):
    made = write_results(tmp_path, study(a=rl("base"), b=rl("base", "ppo", like="a")))
    for path in tmp_path.glob("stages/a/seed*/run.json"):
        record = json.loads(path.read_text())
        del record["phase_seconds"]["update"]
        write_json(path, record)
    write(tmp_path, made, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert np.isnan(table(tmp_path, "throughput")["update_tokens_per_second"][0])
    assert re.findall(">(nan|NaN|None|NaT)<", page) == []  # in the cost table and, of the GPU, in the provenance


def test_the_phases_of_a_stage_add_up_to_its_seconds(tmp_path):
    made = write_results(tmp_path, study(a=rl("base"), b=rl("base", like="a")))
    for path in tmp_path.glob("stages/a/seed*/run.json"):
        record = json.loads(path.read_text())
        record["phase_seconds"]["offload"] = 1.5
        write_json(path, record)
    write(tmp_path, made, tmp_path / "report")
    rows = table(tmp_path, "throughput")
    sums = rows[[f"{phase}_seconds" for phase in phases_of(rows)]].sum(axis=1)
    assert list(sums) == pytest.approx(list(rows["seconds"]))
    assert list(rows["offload_seconds"]) == [1.5, 0.0]
    assert "offload, s" in (tmp_path / "report" / "report.html").read_text()


def test_a_start_whose_seeds_do_not_match_is_refused(tmp_path):
    made = write_results(tmp_path, study(a=rl("base", seeds=[0, 1]), b=rl("a", seeds=[0, 1, 2])))
    with pytest.raises(SettingsError, match=r"b has the seeds \[0, 1, 2\] and starts from a, which has \[0, 1\]"):
        write(tmp_path, made, tmp_path / "report")


def test_a_missing_score_is_named(tmp_path):
    made = write_results(tmp_path, study(a=rl("base")))
    (tmp_path / "stages" / "a" / "evaluation" / "seed1" / "scores.json").unlink()
    write_json(tmp_path / "study.json", made)
    command = [sys.executable, "-m", "evaluation.report", "--study", str(tmp_path / "study.json")]
    command += ["--results", str(tmp_path), "--out", str(tmp_path / "report")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 2 and "seed1/scores.json is missing" in done.stderr and "Traceback" not in done.stderr


def test_a_stage_that_runs_again_is_named(tmp_path):
    made = write_results(tmp_path, study(a=rl("base")))
    path = tmp_path / "stages" / "a" / "seed1" / "run.json"
    write_json(path, {**json.loads(path.read_text()), "status": "running"})
    with pytest.raises(SettingsError, match=r"seed1/run.json: status is running; let the stage finish first"):
        collect(tmp_path, made)


def test_publishing_replaces_the_tables_and_leaves_the_page_out(chain, tmp_path):
    (tmp_path / "made_up").mkdir()
    for name in ("comparison.csv", "old.csv"):
        (tmp_path / "made_up" / name).write_text("x")
    files = publish(chain, tmp_path)
    names = {path.name for path in files}
    assert {"comparison.csv", "comparison.md", "pairs.csv", "accuracy.svg"} <= names
    assert {path.name for path in (tmp_path / "made_up").iterdir()} == names
    with pytest.raises(SettingsError, match=r"report.html is missing: let the study finish first"):
        publish(tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["..", ".", "", "a/b"])
def test_a_study_is_not_published_outside_of_its_folder(chain, tmp_path, name):
    shutil.copytree(chain / "report", tmp_path / "results" / "report")
    described = tmp_path / "results" / "report" / "study.json"
    write_json(described, {**json.loads(described.read_text()), "study": name})
    with pytest.raises(SettingsError, match="is no folder's name"):
        publish(tmp_path / "results", tmp_path / "out")


def test_publishing_leaves_files_alone_that_are_no_studys(chain, tmp_path):
    (tmp_path / "made_up").mkdir()
    (tmp_path / "made_up" / "check.csv").write_text("x")
    with pytest.raises(SettingsError, match=r"made_up holds files that are no study's tables; rename the study"):
        publish(chain, tmp_path)
    assert (tmp_path / "made_up" / "check.csv").read_text() == "x"


def test_a_figure_of_an_earlier_report_is_not_published(chain, tmp_path):
    shutil.copytree(chain / "report", tmp_path / "results" / "report")
    (tmp_path / "results" / "report" / "proxy_and_gold.svg").write_text("old")
    assert "proxy_and_gold.svg" not in {path.name for path in publish(tmp_path / "results", tmp_path / "out")}
