"""The page of the report: nothing in it is loaded, and no text of a model becomes a part of it."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs
from synthetic import rl, stage, study, write_results

from evaluation import figures
from evaluation.collect import collect
from evaluation.pairs import trl_baselines
from evaluation.report import charts, responses, write
from evaluation.report.answer import answer, apart
from evaluation.report.passes import passes
from evaluation.report.responses import FIELDS, browser
from evaluation.report.updates import with_updates
from evaluation.tasks.files import write_json, write_jsonl

LONG = "a fake #### 5 " * 750_000  # 10.5 MB
HOSTILE = (
    "</script><script>document.title = 'taken'</script>",
    "<!-- <script> <![CDATA[",
    "<img src=x onerror=alert(1)> &lt;b&gt; &amp;",
    "\x1b[31mred\x1b[0m \x00 \x07",
    "no\n#### 5\nyes\r\n#### 7",
    "\u2028 \u2029 \u202e right to left, 中文, 🙂",
    "{{ 7 * 7 }} {% raw %} ${x} `y` \\ \" '",
    LONG,
)
MADE = study(
    cold_start=stage("sft", "base", seeds=[0], score=0.3, steps=10, trainer="own"),
    ppo=rl("cold_start", "ppo"),
    grpo=rl("cold_start", like="ppo"),
    trl_grpo=rl("cold_start", like="grpo", loop={"trainer": "trl"}),
)
SCRIPTS = re.compile(r"'sha256-([^']+)'")


class Page(HTMLParser):
    """The elements of a page with their attributes, and the content of each script."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.scripts: list[tuple[dict, str]] = []
        self.inside = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            attributes, before = self.scripts[-1]
            self.scripts[-1] = attributes, before + data

    def data(self, name: str):
        return next(json.loads(text) for attributes, text in self.scripts if attributes.get("id") == name)


def rows_of(results, name: str, seed: int, texts) -> list[dict]:
    path = results / "stages" / name / "evaluation" / f"seed{seed}" / "responses.jsonl"
    rows = [
        {"problem": f"test/{q}", "sample": q - 1, "response": text, "correct": q % 2 == 0, "strict": "5", "gold": "7"}
        for q, text in enumerate(texts)
    ]
    write_jsonl(path, rows)
    return rows


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    described = write_results(results, MADE)
    rows_of(results, "grpo", 1, HOSTILE)
    (results / "report").mkdir()
    claims = "claim,verdict\nC01 <b>clipping</b>,cannot tell\n"
    (results / "report" / "claims.csv").write_text(claims, encoding="utf-8")
    write(results, described, results / "report")
    return results, described, (results / "report" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(made):
    return Page(made[2])


def test_the_scripts_of_the_page_are_its_own_and_plotlys_once(made, page):
    kinds = [(attributes.get("type"), attributes.get("id")) for attributes, _ in page.scripts]
    assert kinds == [("application/json", "charts"), ("application/json", "responses-data"), (None, None), (None, None)]
    assert page.scripts[2][1] == get_plotlyjs() and made[2].count("plotly.js v") == 1
    assert not {"img", "iframe", "link", "object", "embed", "form", "base"} & set(page.tags)


def test_the_policy_forbids_the_network_and_other_scripts(page):
    policy = next(
        value for tag, name, value in page.attributes if tag == "meta" and name == "content" and "src" in value
    )
    assert "default-src 'none'" in policy and "connect-src 'none'" in policy and "'unsafe-eval'" not in policy
    script_policy = next(part for part in policy.split(";") if "script-src" in part)
    assert "unsafe-inline" not in script_policy
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for _, text in page.scripts[2:]]
    assert SCRIPTS.findall(script_policy) == digests
    addresses = [value for _, name, value in page.attributes if name in ("src", "href", "action", "data")]
    assert addresses and all(value.startswith("#") for value in addresses)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_responses_are_data_with_their_exact_text(page):
    found = page.data("responses-data")
    rows = [dict(zip(found["fields"], row, strict=True)) for row in found["rows"]]
    mine = [row for row in rows if (row["stage"], row["seed"]) == ("grpo", 1)]
    assert [row["text"] for row in mine] == [text[:4000] for text in HOSTILE]
    assert [row["characters"] for row in mine] == [len(text) for text in HOSTILE]
    assert [(row["right"], row["sample"], row["read"]) for row in mine[:2]] == [(1, -1, "5"), (0, 0, "5")]
    assert [found["prompts"][row["prompt"]] for row in mine[1:2]] == [
        {"id": "test/1", "text": "1?", "characters": 2, "gold": ""}  # as the first row of a problem has it
    ]
    assert found["total"] == len(rows) == 9 * 2 + len(HOSTILE)  # ten checkpoints, one of them with these


def test_a_page_with_ten_megabytes_of_text_stays_small(made):
    assert len(LONG) > 10_000_000 and len(made[2].encode()) < 6_000_000


def test_no_text_ends_the_element_of_the_data():
    for text in (*HOSTILE, "\ud800"):  # half of a character, too
        block = responses.embedded({"text": text})
        assert json.loads(block) == {"text": text} and block.isascii() and not re.search("[<>&]", block)


def test_what_is_left_out_is_counted_and_all_stages_show_the_same_problems(made):
    results, described, _ = made
    stages = collect(results, described)
    for name, entry in described["stages"].items():
        for seed in entry["seeds"]:
            rows_of(results, name, seed, [f"{q}" for q in range(30)])
    small = browser(results, stages, most_bytes=4000)
    shown = [dict(zip(FIELDS, row, strict=True)) for row in small["rows"]]
    counts = {(row["stage"], row["seed"]): 0 for row in shown}
    for row in shown:
        counts[row["stage"], row["seed"]] += 1
    assert small["total"] == 10 * 30 and len(counts) == 10 and set(counts.values()) == {len(small["prompts"])}
    assert 1 < len(small["prompts"]) < 30 and len(responses.embedded([small["rows"], small["prompts"]])) <= 4000
    one = browser(results, stages, most_bytes=200)  # not even one problem fits: what fits of it
    assert 0 < len(one["rows"]) < 10 and len(one["prompts"]) == 1


def test_plotly_knows_every_setting_of_the_charts(page):
    found = page.data("charts")
    assert list(found) == ["accuracy", "cost", "pass_at_k", "matrix", "curves", "memory", "throughput"]
    for chart in found.values():
        for view in chart["views"]:
            go.Figure(data=view["data"], layout=view["layout"])  # raises ValueError for a setting that it does not know
    assert [view["label"].split(" over ")[1] for view in found["curves"]["views"]] == [*charts.X_AXES.values()]
    assert [view["label"] for view in found["accuracy"]["views"]] == ["mean@2", "greedy", "pass@2", "maj@2"]


def test_the_charts_have_the_numbers_of_the_tables(made, page):
    results, described, _ = made
    table = pd.read_csv(results / "report" / "comparison.csv").set_index("stage")
    start, own, trl = page.data("charts")["accuracy"]["views"][0]["data"]
    assert own["y"] == ["cold_start (this seed only)", "ppo", "grpo"] and trl["y"] == ["trl_grpo"]
    assert own["x"] == pytest.approx(list(100 * table.loc[["cold_start", "ppo", "grpo"], "mean@2"]), rel=1e-4)
    high = table.loc["trl_grpo", "mean@2_high"] - table.loc["trl_grpo", "mean@2"]
    assert trl["error_x"]["array"] == pytest.approx([100 * high], rel=1e-3)
    assert start["x"] == pytest.approx([100 * table.loc["cold_start", "mean@2"]] * 3, rel=1e-4)
    heat = page.data("charts")["matrix"]["views"][0]["data"][0]
    numbers = [[float(re.sub("<.*?>", "", cell) or 0) for cell in row] for row in heat["text"]]
    assert np.array(numbers) == pytest.approx(-np.array(numbers).T) and heat["y"] == ["ppo", "grpo", "trl_grpo"]
    look = charts.looks(collect(results, described), trl_baselines(collect(results, described)))
    assert (look["trl_grpo"]["color"], look["trl_grpo"]["dash"]) == (look["grpo"]["color"], "dash")


def test_more_stages_than_colors_are_told_apart_by_dashes_and_names_are_no_tags():
    made = {f"s{i}": SimpleNamespace(name=f"s{i}", is_rl=i < 20) for i in range(24)}
    looks = charts.looks(made, {})
    assert len({(look["color"], look["dash"]) for look in looks.values()}) == 24
    assert charts._names(["<b>", "a&b"]) == ["&lt;b&gt;", "a&amp;b"]


def test_pass_at_k_by_hand(tmp_path):
    made = write_results(tmp_path, study(a=rl("base", seeds=[0])))
    path = tmp_path / "stages" / "a" / "evaluation" / "seed0" / "scores.json"
    scores = json.loads(path.read_text())
    scores["per_problem"]["mean@2"] = [1.0, 0.5, 0.0, 0.0]  # of 2 responses 2, 1, 0 and 0 are right
    write_json(path, scores)
    table = passes(collect(tmp_path, made), 2).set_index("k")
    assert table.loc[1, "pass"] == pytest.approx(1.5 / 4)
    assert table.loc[2, "pass"] == pytest.approx(2 / 4)  # both of the first problem's, and the second one's pair
    assert table.loc[2, "pass_low"] < 0.5 < table.loc[2, "pass_high"]
    scores["per_problem"] |= {"mean@4": [0.5, 0.0], "pass@4": [1.0, 0.0]}  # 2 and 0 of 4 responses are right
    write_json(path, scores)
    table = passes(collect(tmp_path, made), 2)
    figures.reach(table, 4, tmp_path / "reach.svg")
    assert "pass@k of 2 problems" in (tmp_path / "reach.svg").read_text()
    table = table.set_index(["of", "k"])["pass"]
    assert list(table["all problems"]) == pytest.approx([1.5 / 4, 2 / 4])
    assert list(table["2 problems"]) == pytest.approx([1 / 4, (1 - 1 / 6) / 2, 1 / 2])  # of k = 1, 2 and 4


def test_updates_are_those_recorded_or_else_those_asked_for(tmp_path):
    made = write_results(tmp_path, study(a=rl("base", seeds=[0]), b=rl("base", seeds=[0], loop={"minibatches": 2})))
    path = tmp_path / "stages" / "a" / "seed0" / "metrics.jsonl"
    rows = [{**json.loads(line), "updates": step + 1} for step, line in enumerate(path.read_text().splitlines())]
    write_jsonl(path, rows)
    write(tmp_path, made, tmp_path / "report")
    table = pd.read_csv(tmp_path / "report" / "curves.csv")
    assert list(table.columns[:3]) == ["stage", "step", "updates"]
    assert list(table.query("stage == 'a'")["updates"]) == [1, 3, 6, 10]
    assert list(table.query("stage == 'b'")["updates"]) == [2, 4, 6, 8]  # 1 epoch of 2 minibatches
    assert with_updates(pd.DataFrame(), {}).empty


def test_a_study_of_which_every_run_failed_has_a_page(tmp_path):
    made = write_results(tmp_path, study(a=rl("base", seeds=[0]), b=rl("base", seeds=[0])))
    for path in tmp_path.glob("stages/*/seed0/run.json"):
        failure = {"reason": "the loss was not finite", "checkpoint": "the start"}
        write_json(path, {**json.loads(path.read_text()), "status": "failed", "failure": failure})
    write(tmp_path, made, tmp_path / "report")
    page = Page((tmp_path / "report" / "report.html").read_text(encoding="utf-8"))
    assert [view["data"] for view in page.data("charts")["curves"]["views"]] == [[], [], []]


def test_updates_of_curves_that_are_measured_on_dev_problems(tmp_path):
    """There `step` counts the steps before the measurement; two seeds may differ in it."""
    stages = collect(tmp_path, write_results(tmp_path, study(a=rl("base", seeds=[0]))))  # 4 steps of 4 updates each
    table = pd.DataFrame({"stage": "a", "step": [0, 1.5, 4], "accuracy": 0.5, "measured_on": "dev problems"})
    assert list(with_updates(table, stages)["updates"]) == [0, 6, 16]
    shown = charts.curves(
        with_updates(table, stages).assign(generated_tokens=1, seconds=1, lowest_seed=0, highest_seed=1),
        {"a": {"color": "#000000", "dash": "solid"}},
    )
    assert shown["views"][2]["label"] == "accuracy on dev problems over updates of the policy"


def test_extra_tables_are_sections_and_escaped(made, page):
    assert "C01 &lt;b&gt;clipping&lt;/b&gt;" in made[2] and 'id="claims"' in made[2] and 'id="tuning"' not in made[2]
    assert "b" not in page.tags


def test_cells_of_estimators_that_differ_are_marked(made):
    table = made[2][made[2].index('class="estimators') :]
    row = re.search(r"<td>advantage baseline</td>(.*?)</tr>", table, re.S)[1]
    assert [mark == ' class="differs"' for mark in re.findall(r"<td(.*?)>", row)] == [False, True, True]


def test_the_answer_is_three_sentences_with_the_numbers_of_the_tables(made):
    report = made[0] / "report"
    tables = [pd.read_csv(report / f"{name}.csv", keep_default_na=True) for name in ("comparison", "pairs", "pairwise")]
    sentences = answer(*tables, 2, 2.0)
    rows = tables[0].set_index("stage")
    best = rows.loc[["ppo", "grpo"], "mean@2"].idxmax()
    assert sentences[0].startswith(f"Of 2 RL stages of our own, {best} has the highest mean: ")
    assert f"{100 * rows.loc[best, 'minus_start']:+.1f} [" in sentences[0] and "its start, cold_start" in sentences[0]
    assert sentences[1].startswith("Of 3 pairs of RL stages with the same start, ")
    assert sentences[2] == (
        "Cost of the RL stages of our own: training takes 4 s (ppo), and the measured peak of memory is 1 MB (ppo)."
    )
    assert all(sentence.replace("'", "&#39;") in made[2] for sentence in sentences)


def test_the_sentence_on_pairs_counts_each_verdict():
    table = pd.DataFrame(
        {
            "stage": ["a", "b", "c", "d"],
            "against": ["z"] * 4,
            "difference": [0.1, -0.2, 0.0, 0.01],
            "difference_low": [0.05, -0.3, -0.01, -0.2],
            "difference_high": [0.15, -0.1, 0.01, 0.2],
            "verdict": ["higher", "lower", "equal within the margin", "cannot tell"],
        }
    )
    assert apart(table, "stages", 2.0) == (
        "Of 4 pairs of stages, 2 differ beyond chance (most of all: b minus z, -20.0 [-30.0, -10.0] points), "
        "1 are equal within 2 points, 1 cannot be told apart."
    )
    assert apart(table.head(0), "stages", 2.0).startswith("No two stages")
