"""The smoke study end to end: one command, then what a user does next."""

import contextlib
import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import yaml
from metrics_page import missing
from project import (
    PROJECT,
    STUDY,
    copy_project,
    environment,
    jobs_of,
    planned,
    planned_after_edits,
    record,
    results,
    run_here,
    run_module,
    snakemake,
)
from studies import sft, small
from test_cli import ask

from algos import ALGORITHMS
from algos import __main__ as algorithms
from evaluation import publish
from evaluation.bias import exact
from evaluation.report import write as write_report
from evaluation.tasks.files import read_jsonl
from pipelines import stage as predictions
from pipelines.study import load
from pipelines.workflow.resources import memory, minutes, policy_shape
from pipelines.workflow.work import of_evaluation, of_stage

SMOKE = load(PROJECT / STUDY)
RUNS = SMOKE.of_kind("rl")
FROM_COLD_START = [name for name in RUNS if SMOKE.edges(name)["from"] == "cold_start" and "trl" not in name]


def test_every_run_has_its_files(tree):
    for stage in SMOKE.evaluated:
        folder = record(tree, stage)
        facts = json.loads((folder / "run.json").read_text())
        assert facts["status"] == "finished" and facts["packages"]["torch"] and facts["command"][1] == "-m"
        assert facts["kind"] == SMOKE.stages[stage].kind and facts["name"] == f"{stage}/seed0"
        assert set(facts["memory"]["policy"]) == {"parameters", "weights", "gradients", "optimizer", "master"}
        assert read_jsonl(folder / "metrics.jsonl")
        assert (folder / "checkpoint" / "model.safetensors").is_file() and not list(folder.rglob("*.bin"))
        evaluation = folder.parent / "evaluation" / "seed0"
        responses = read_jsonl(evaluation / "responses.jsonl")
        assert len(responses) == 20 * 9
        scores = json.loads((evaluation / "scores.json").read_text())
        assert scores["overall"]["mean@8"] == pytest.approx(
            sum(r["correct"] for r in responses if r["sample"] >= 0) / 160
        )
        others = read_jsonl(evaluation / "other_responses.jsonl")
        sampled = [row["correct"] for row in others if row["sample"] >= 0]
        assert len(others) == 10 * 9 and scores["overall"]["other_mean@8"] == pytest.approx(sum(sampled) / 80)
        assert len(scores["per_problem"]["pass@16"]) == 5
    assert (results(tree) / "report" / "reach.svg").is_file()
    table = csv.DictReader((results(tree) / "report" / "comparison.csv").open())
    assert all(row["other_mean@8"] and row["other_greedy"] for row in table)


def test_every_job_took_less_memory_and_time_than_it_asked_for(tree):
    files = {name: (record(tree, name) / "benchmark.tsv", of_stage(SMOKE, name)) for name in SMOKE.stages}
    for name in SMOKE.evaluated:
        path = record(tree, name).parent / "evaluate.benchmark.tsv"
        files[f"evaluation of {name}"] = path, of_evaluation(SMOKE, 1)
    for name, (path, work) in files.items():
        (row,) = csv.DictReader(path.open(), delimiter="\t")
        shape = policy_shape(SMOKE, name.split()[-1], "")
        assert float(row["max_rss"]) < memory(work, shape, None), name
        assert float(row["s"]) / 60 < minutes(work, shape, None, 1), name


def steps_of(folder):
    return [line for line in read_jsonl(folder / "metrics.jsonl") if "dev_accuracy" not in line]


@pytest.mark.parametrize("run", RUNS)
def test_every_rl_run_logs_what_it_promises(tree, run):
    folder = record(tree, run)
    lines, facts = steps_of(folder), json.loads((folder / "run.json").read_text())
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert [line["step"] for line in read_jsonl(folder / "metrics.jsonl") if "dev_accuracy" in line] == [0, 2, 3]
    for line in lines:
        assert {
            "reward",
            "accuracy",
            "response_tokens",
            "truncation_rate",
            "degenerate_groups",
            "clip_fraction",
            "policy_loss",
            "generated_tokens",
            "generate_seconds",
            "reward_seconds",
            "logprobs_seconds",
            "update_seconds",
            "generate_tokens_per_second",
        } <= set(line)
    assert run == "trl_ppo" or all("entropy" in line for line in lines)  # TRL's PPO averages its own over padding
    assert lines[-1]["generated_tokens"] == facts["generated_tokens"] and facts["generated_responses"] == 48
    assert facts["optimizer_steps"] == 12 and facts["peak_memory"]["peak_bytes"] > 0
    assert read_jsonl(folder / "samples.jsonl")
    assert {
        "advantage_baseline",
        "advantage_divisor",
        "ratio_level",
        "clip_low",
        "clip_high",
        "kl_place",
        "kl_estimator",
        "loss_aggregation",
    } <= set(facts["estimator"])
    assert set(facts["phase_seconds"]) == {"generate", "reward", "logprobs", "update", "dev"}


def test_components_are_those_of_the_algorithm(tree):
    def components(run):
        return set(json.loads((record(tree, run) / "run.json").read_text())["memory"])

    assert components("grpo") == components("gspo") == components("trl_grpo") == {"policy"}
    assert components("ppo") == {"policy", "critic"}
    assert components("ppo_rm") == {"policy", "critic", "reference", "reward_model"}
    assert components("trl_ppo") == {"policy", "critic", "reference"}
    memory = json.loads((record(tree, "ppo_rm") / "run.json").read_text())["memory"]
    policy = memory["policy"]
    assert policy["weights"] == policy["gradients"] == 4 * policy["parameters"]
    assert policy["optimizer"] == pytest.approx(8 * policy["parameters"], rel=0.01)
    assert memory["reference"]["gradients"] == memory["reward_model"]["optimizer"] == 0


def test_runs_share_prompts_and_first_responses(tree):
    """Paired seeds: all of our runs begin from the same policy with the same prompts and random numbers."""
    samples = {run: read_jsonl(record(tree, run) / "samples.jsonl") for run in RUNS}
    assert len({tuple((row["step"], row["prompt"]) for row in rows) for rows in samples.values()}) == 1
    assert len({samples[run][0]["response"] for run in FROM_COLD_START}) == 1


def test_the_learned_reward_is_logged_beside_the_gold_accuracy(tree):
    line = steps_of(record(tree, "ppo_rm"))[0]
    assert line["reward"] == pytest.approx(line["reward_reward_model"]) and "kl_to_ref_sequence" in line
    assert line["accuracy"] == line["reward_correctness"]
    held_out = json.loads((record(tree, "reward_model") / "run.json").read_text())["held_out"]
    assert 0 <= held_out["pair_accuracy_gold"] <= 1 and held_out["held_out_prompts"] > 0


def test_the_report_is_complete_self_contained_and_names_its_source(tree):
    report = results(tree) / "report"
    page = (report / "report.html").read_text()
    assert all(f">{stage}<" in page for stage in SMOKE.evaluated)
    assert page.count('<figure data-chart="') == 8 and STUDY in page
    assert not re.search(r"<(link|iframe|img|script src)|\b(?:src|href)=\"https?:", page.split("<script>")[0])
    rows = (report / "comparison.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["stage", *SMOKE.evaluated]
    table = [line for line in (report / "comparison.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(SMOKE.evaluated)


def test_the_report_pairs_stages_that_differ_in_one_thing(tree):
    pairs = (results(tree) / "report" / "pairs.csv").read_text()
    assert "grpo_kl-kl_coef=0.01" in pairs and "trl_grpo" in pairs


def test_model_output_is_escaped_in_the_report(own):
    path = results(own) / "stages" / "grpo" / "evaluation" / "seed0" / "responses.jsonl"
    rows = read_jsonl(path)
    for row in rows:
        row["response"] = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report(results(own), load(own / STUDY).report(), own / "again")
    page = (own / "again" / "report.html").read_text()
    assert r"\u003cscript\u003ealert(1)" in page and not re.search("<script>alert|<img src=x", page)


def test_mlflow_has_every_stage_and_every_metric(tree):
    from mlflow import MlflowClient

    summary = json.loads((results(tree) / "mlflow_mirror.json").read_text())
    assert summary["errors"] == []
    client = MlflowClient(tracking_uri=f"sqlite:///{results(tree) / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("smoke")
    runs = {run.data.tags["directory"]: run for run in client.search_runs([experiment.experiment_id], max_results=500)}
    stages = {f"stages/{name}" for name in SMOKE.stages}
    models = {f"models/{name}" for name in SMOKE.settings.models}
    assert set(runs) == {"report", "data", "data/other_task", *models, *stages, *(f"{stage}/seed0" for stage in stages)}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tree, capture_output=True, text=True, check=True
    ).stdout.strip()
    for name in RUNS:
        run = runs[f"stages/{name}/seed0"]
        assert "eval/mean_at_8" in run.data.metrics and "eval/mean_at_8" in runs[f"stages/{name}"].data.metrics
        assert run.data.params["estimator.ratio_level"] and run.data.params["package.torch"]
        assert run.data.tags["mlflow.source.git.commit"] == head
        assert run.data.tags["from"] == SMOKE.edges(name)["from"]
        history = client.get_metric_history(run.info.run_id, "reward/reward")
        lines = steps_of(record(tree, name))
        assert [(m.step, m.value) for m in history] == [(line["step"], line["reward"]) for line in lines]
        assert {"run.json", "metrics.jsonl", "samples.jsonl", "evaluation"} == {
            a.path for a in client.list_artifacts(run.info.run_id)
        }
    data = {d.dataset.name for d in runs["stages/rejection_sft/seed0"].inputs.dataset_inputs}
    assert data == {"accepted/seed0/accepted", "smoke/data/test"}
    report = {a.path for a in client.list_artifacts(runs["report"].info.run_id)}
    assert {"report.html", "comparison.csv", "curves_tokens.svg"} <= report


def test_every_metric_that_a_stage_logs_is_on_the_page_of_metrics(tree):
    for path in (path for part in ("data", "models", "stages") for path in (results(tree) / part).rglob("run.json")):
        kind = json.loads(path.read_text())["kind"]
        logged = {name for line in read_jsonl(path.parent / "metrics.jsonl") for name in line} - {"step", "time"}
        assert not missing(logged, "eval" if kind == "evaluation" else None), path


def test_a_study_leaves_the_checkout_clean(tree):
    status = subprocess.run(["git", "status", "--porcelain"], cwd=tree, capture_output=True, text=True, check=True)
    assert status.stdout == "" and results(tree).is_dir()


def test_after_a_finished_run_there_is_nothing_to_do(tree):
    assert planned(tree) == {}


def test_one_changed_clip_range_runs_that_run_its_evaluation_and_the_report(own):
    study = own / STUDY
    study.write_text(study.read_text().replace("clip_low: 0.03", "clip_low: 0.02"))
    # gspo, and trl_gspo, which is like it
    assert planned(own) == {"rl": 2, "evaluate": 2, "report": 1, "mlflow": 1, "all": 1}


def test_a_changed_cold_start_runs_what_follows_from_it(own):
    study = own / STUDY
    study.write_text(study.read_text().replace("steps: 120", "steps: 121"))
    jobs = planned(own)
    assert jobs["rl"] == len(RUNS) and "data" not in jobs and "model" not in jobs
    assert jobs["evaluate"] == len(SMOKE.evaluated) - 1  # not student_cold, which starts from the student


def test_an_edited_file_of_an_algorithm_or_a_reward_runs_again_what_uses_it(tree):
    edits = {
        "algos/gspo.py": {"rl": 2, "evaluate": 2},  # gspo and its TRL baseline
        "algos/training/rewards/rules.py": {"rl": len(RUNS) - 1},  # ppo_rm has the learned reward alone
        "algos/distillation.py": {"distillation": 2, "evaluate": 2},  # student_gkd and its TRL baseline
        "algos/dapo.py": {},  # an algorithm that the study does not use
    }
    for (file, jobs), plan in zip(edits.items(), planned_after_edits(tree, [*edits]), strict=True):
        assert {rule: plan.get(rule) for rule in jobs} == jobs, file
        assert ("rl" in plan) == ("rl" in jobs) and bool(plan) == bool(jobs), file
        assert ("data" not in plan and "sft" not in plan) or "rules.py" in file


REPEATED = "cold_start ppo gspo trl_grpo trl_ppo second_rl"
REPEATED += " trl_rejection_sft expert_iteration student_distilled student_gkd trl_student_gkd"


@pytest.mark.parametrize("run", REPEATED.split())
def test_the_recorded_command_makes_the_same_weights_again(tree, tmp_path, run):
    folder = record(tree, run)
    command = json.loads((folder / "run.json").read_text())["command"]
    command[command.index("--out") + 1] = str(tmp_path / "again")
    if run in ("ppo", "trl_grpo"):  # the others without the start of a Python
        done = subprocess.run(
            [sys.executable, *command[1:]], cwd=tree, env=environment(tree), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
    else:
        with contextlib.chdir(tree):
            run_module(*command[2:])
    again, first = ((f / "checkpoint" / "model.safetensors").read_bytes() for f in (tmp_path / "again", folder))
    assert again == first
    accuracies = [
        [line.get("accuracy", line.get("loss")) for line in read_jsonl(f / "metrics.jsonl")]
        for f in (tmp_path / "again", folder)
    ]
    assert accuracies[0] == accuracies[1]


def page_blocks() -> list[str]:
    """The code blocks of the page on adding an algorithm: the file, the table line, the study entry."""
    return re.findall(r"```(?:python|yaml)\n(.*?)```", (PROJECT / "docs" / "add-an-algorithm.md").read_text(), re.S)


def test_the_pages_algorithm_is_trained_measured_and_reported_after_three_edits(own):
    file, line, entry = page_blocks()
    (own / "algos" / "grpo_v32.py").write_text(file)
    table = own / "algos" / "__init__.py"
    table.write_text(table.read_text().replace('    "gspo": "algos.gspo",\n', '    "gspo": "algos.gspo",\n' + line))
    study = own / STUDY
    study.write_text(study.read_text().replace("\nstages:\n", "\nstages:\n" + entry))
    run = snakemake(own)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert jobs_of(run.stdout + run.stderr) == {"rl": 1, "evaluate": 1, "report": 1, "mlflow": 1, "all": 1}
    report = results(own) / "report"
    for name in ("comparison.csv", "throughput.csv", "memory.csv", "report.html", "curves_tokens.svg"):
        assert "grpo_v32" in (report / name).read_text(), name
    metrics = steps_of(record(own, "grpo_v32"))
    assert all(0 <= line["masked_responses"] <= 1 for line in metrics)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{results(own) / 'mlflow.db'}")
    found = client.search_runs(
        [client.get_experiment_by_name("smoke").experiment_id], "tags.directory = 'stages/grpo_v32/seed0'"
    )
    assert len(found) == 1 and "eval/mean_at_8" in found[0].data.metrics


class OneListed(dict):  # a table that lists rloo alone, and knows all
    def __iter__(self):
        return iter(["rloo"])


def test_the_commands_of_the_command_lines_page_run(own, monkeypatch, capsys):
    """In the folder of a finished study. The conformance tests have their own test, and the estimators are one here."""
    monkeypatch.chdir(own)
    monkeypatch.setattr(algorithms, "check", lambda name: print(f"conformance of {name}") or 0)
    monkeypatch.setattr(exact, "ALGORITHMS", OneListed(ALGORITHMS))
    monkeypatch.setattr(exact, "GROUP_SIZE", 2)
    monkeypatch.setattr(predictions, "peaks", lambda *_: [{"study": "smoke"}])  # it has a test of its own
    monkeypatch.setattr(publish, "publish", partial(publish.publish, out=own / "published"))
    (results(own) / "report" / "report.html").unlink()
    page = (PROJECT / "docs" / "command-line.md").read_text(encoding="utf-8")
    printed = {}
    for line in re.findall(r"^rlcompare .*", page, re.M):
        words = shlex.split(line, comments=True)[1:]
        assert ask(monkeypatch, *words) == 0, line
        printed[words[0]] = capsys.readouterr().out
    assert printed["tree"].startswith("smoke: ") and printed["check"].endswith("No problem found.\n")
    assert "conformance of gspo" in printed["algorithm"] and "unbiased" in printed["exact"]
    assert printed["mlflow"].endswith("mlflow.db --host 127.0.0.1 --port 5000\n")
    assert printed["report"] == "results/smoke/report/report.html\n" and (own / "published/smoke/pairs.csv").is_file()
    assert {name for name in printed if not printed[name]} == set()


def test_snakemakes_own_report_works(tree, tmp_path):
    run = snakemake(tree, "--report", str(tmp_path / "report.zip"))
    assert run.returncode == 0 and (tmp_path / "report.zip").stat().st_size > 10_000, run.stderr[-2000:]


def test_a_study_may_start_from_a_model_and_data_on_disk(tree, tmp_path):
    """GSM8K's files and a model folder by path: read, checked and used, never copied into the project."""
    for split, count in (("train", 30), ("test", 10)):
        rows = [{"question": f"{split} {i}+1?", "answer": f"<<{i}+1={i + 1}>>\n#### {i + 1}"} for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = results(tree) / "models" / "base" / "checkpoint"
    config = {**small(cold_start=sft(steps=2, batch_size=4)), "models": {"base": str(model)}}
    config["task"] = {"name": "gsm8k", "settings": {"path": str(tmp_path)}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    run_here(tmp_path, "study.yaml", "results/smoke/stages/cold_start/evaluation")
    scores = results(tmp_path) / "stages" / "cold_start" / "evaluation" / "seed0" / "scores.json"
    assert json.loads(scores.read_text())["problems"] == 10
    weights = [f / "model.safetensors" for f in (model, results(tmp_path) / "models" / "base" / "checkpoint")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_after_an_interrupt_finished_stages_are_not_repeated(tmp_path):
    tree = copy_project(tmp_path / "project")
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--configfile", STUDY]
    process = subprocess.Popen(
        command,
        cwd=tree,
        env=environment(tree),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # as in a terminal: a shell that starts us in the background has SIGINT ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    finished = results(tree) / "models" / "base" / "checkpoint" / "model.safetensors"
    began = record(tree, "cold_start") / "metrics.jsonl"
    deadline = time.time() + 120
    while time.time() < deadline and not (finished.exists() and began.exists() and began.stat().st_size):
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) != 0
    jobs = planned(tree)
    assert "data" not in jobs and jobs["sft"] == len(SMOKE.of_kind("sft"))
    assert jobs.get("model", 0) <= 1  # the base is there, the student may be missing
    stamp = finished.stat().st_mtime
    run = snakemake(tree, "results/smoke/stages/cold_start/seed0/run.json")
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert (
        finished.stat().st_mtime == stamp
        and json.loads((began.parent / "run.json").read_text())["status"] == "finished"
    )
