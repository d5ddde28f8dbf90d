"""python -m algos and python -m pipelines: the list of all algorithms, the page of one, of a stage, and its memory."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from studies import SMOKE, changed, rl, small

from algos import ALGORITHMS
from algos.__main__ import main
from pipelines.__main__ import main as main_of_studies

ROOT = Path(__file__).parents[2]
DEFAULT = str(ROOT / "pipelines" / "config.yaml")


def called(monkeypatch, command, *words: str) -> int:
    """Exit status of a command line's `main` with these words, in this process."""
    monkeypatch.setattr(sys, "argv", ["command", *words])
    try:
        command()
    except SystemExit as stop:
        return stop.code
    return 0


def run(monkeypatch, *words: str) -> int:
    """Exit status of `python -m algos words`."""
    return called(monkeypatch, main, *words)


def ask(monkeypatch, *words: str) -> int:
    """Exit status of `python -m pipelines words`."""
    return called(monkeypatch, main_of_studies, *words)


def test_the_module_runs_as_a_command():
    done = subprocess.run([sys.executable, "-m", "algos", "list"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("reinforce ") and done.stderr == ""


def test_the_list_names_every_algorithm_with_its_idea_and_source(monkeypatch, capsys):
    assert run(monkeypatch, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(ALGORITHMS)
    for (name, entry), first, second in zip(ALGORITHMS.items(), lines[::2], lines[1::2], strict=True):
        assert first.split(maxsplit=1) == [name, entry.idea] and second.strip() == entry.source


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_page_of_every_algorithm(name, monkeypatch, capsys):
    assert run(monkeypatch, "describe", name) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"{name}: {ALGORITHMS[name].idea}\nsource: {ALGORITHMS[name].source}\n\nJ = ")
    for line in ("advantage baseline:", "ratio level:", "loss aggregation:", "epochs x minibatches:", "changed from "):
        assert f"\n{line}" in page


def test_the_page_of_grpo_in_full(monkeypatch, capsys):
    run(monkeypatch, "describe", "grpo")
    page = capsys.readouterr().out
    for line in (
        "J = 1/B sum_i 1/T_i sum_t [min(rho A, clip(rho, 0.8, 1.2) A)]",
        "    A_i = (r_i - mean_j in group r_j) / (sample standard deviation of the group + 1e-06)",
        "loss aggregation:         mean over responses of the mean over tokens",
        "changed from the defaults: nothing",
        "differs from its nearest relative, ppo:",
        "  aggregation: token-mean -> seq-mean-token-mean",
    ):
        assert f"\n{line}\n" in page


def test_the_page_of_a_preset_says_what_is_changed_and_what_it_leaves_out(monkeypatch, capsys):
    run(monkeypatch, "describe", "grpo_as_verl")
    page = capsys.readouterr().out
    assert "changed from grpo:\n  aggregation: seq-mean-token-mean -> token-mean\n  dual_clip: None -> 3.0\n" in page
    assert "note: KL is off by default" in page


def test_the_page_of_a_stage_has_the_studys_settings(monkeypatch, capsys):
    assert ask(monkeypatch, "describe", DEFAULT, "gspo") == 0
    page = capsys.readouterr().out
    assert page.startswith("gspo (gspo)\n") and "clip(rho, 0.97, 1.04)" in page
    assert "epochs x minibatches:     1 x 4\n" in page and "learning rate:            0.0001\n" in page
    assert "changed from the defaults:\n  clip_high: 0.0004 -> 0.04\n  clip_low: 0.0003 -> 0.03\n" in page
    assert ask(monkeypatch, "describe", DEFAULT, "trl_gspo") == 0
    assert capsys.readouterr().out.startswith("trl_gspo (gspo, by TRL)\n")


def test_the_memory_of_a_stage_is_predicted_from_the_study(monkeypatch, capsys):
    study = "pipelines/studies/smoke.yaml"
    assert ask(monkeypatch, "memory", study, "ppo_rm", "--prompt-tokens", "60") == 0
    page = capsys.readouterr().out
    assert page.startswith(f"ppo_rm of {study}, prompts of 60 tokens\n") and "reward_model" in page.replace(" ", "_")


def test_the_peaks_of_all_stages_of_a_study_are_a_table_that_marks_the_largest(monkeypatch, capsys, tmp_path):
    config = small(
        stage=rl(), with_critic=rl(algorithm="ppo"), baseline=rl(trainer="trl", settings={"std_epsilon": 1e-4})
    )
    assert ask(monkeypatch, "peaks", f"{written(config, tmp_path)}=24", "--out", str(tmp_path / "out")) == 0
    table = pd.read_csv(tmp_path / "out" / "studies.csv").set_index("stage")
    assert list(table.index) == ["stage", "with_critic"] and "with_critic" in capsys.readouterr().out
    assert list(table.largest) == [False, True] and (table.gpu_gigabytes == 24).all()
    assert ask(monkeypatch, "memory", written(config, tmp_path), "stage") == 0
    page = capsys.readouterr().out
    assert f" {1000 * table.peak_gigabytes['stage']:.2f} MB" in page.partition("The peak is")[2]


def written(config: dict, folder: Path) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


@pytest.mark.parametrize("edge", ["critic", "reference", "reward_model"])
def test_the_memory_of_models_of_two_shapes_is_refused(edge, monkeypatch, capsys, tmp_path):
    config = changed(f"stages/ppo_rm/{edge}", "other")
    config["stages"]["other"] = {"like": "reward_model" if edge == "reward_model" else "cold_start", "from": "student"}
    path = written(config, tmp_path)
    assert ask(monkeypatch, "memory", path, "ppo_rm") == 2
    message = f"the {edge} of ppo_rm descends from models.student, and its policy from models.base; choose another"
    assert message in capsys.readouterr().err
    if edge == "critic":
        assert ask(monkeypatch, "memory", path, "ppo") == 0


def test_the_memory_of_a_model_with_the_tokenizer_of_another_one_has_its_vocabulary(monkeypatch, capsys, tmp_path):
    config = small(stage=rl("other"))  # the vocabulary of base is 160, the default 320
    shape = {key: value for key, value in SMOKE["models"]["base"].items() if key != "vocab_size"}
    pages = []
    for own in ({"tokenizer": "base"}, {"vocab_size": 160}):
        config["models"]["other"] = shape | own
        assert ask(monkeypatch, "memory", written(config, tmp_path), "stage") == 0
        pages.append(capsys.readouterr().out)
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    "words, message",
    [
        (("describe", DEFAULT, "grp"), "error: STAGE: 'grp' is unknown. Did you mean 'grpo'? Allowed: "),
        (("describe", DEFAULT, "dapo"), "error: STAGE: 'dapo' is unknown."),  # an algorithm, but no stage
        (("describe", DEFAULT, "cold_start"), "error: STAGE: 'cold_start' is unknown."),  # a stage without RL
        (("memory", "/no/study.yaml", "grpo"), "error: /no/study.yaml: No such file"),
        (("memory", DEFAULT), "error: STAGE is missing. RL stages of "),
        (("describe", DEFAULT, "grpo", "more"), "error: Got unexpected extra argument"),
        (("memory", DEFAULT, "grpo", "--prompt", "60"), "usage: "),  # no abbreviation
        (("memory", DEFAULT, "grpo", "--prompt-tokens", "0"), "error: prompt_tokens must be at least 1, got 0."),
        (("peaks", DEFAULT), f"error: write STUDY=GIGABYTES, such as pipelines/config.yaml=24, got {DEFAULT}."),
        (("bench", DEFAULT, "grpo", "grpo", "--model={}"), "error: --model={} would have no effect: settings, task"),
    ],
)
def test_a_wrong_stage_ends_with_2_and_the_nearest_one(words, message, monkeypatch, capsys):
    assert ask(monkeypatch, *words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(message) and printed.out == ""


@pytest.mark.parametrize(
    "words, message",
    [
        (("describe", "gprpo"), "error: NAME: 'gprpo' is unknown. Did you mean 'grpo'? Allowed: cispo, "),
        (("describe",), "usage: "),
        (("describe", "grpo", "--study", DEFAULT), "usage: "),  # python -m pipelines describe does that
        (("lst",), "usage: "),
        ((), "usage: "),
    ],
)
def test_a_wrong_name_ends_with_2_and_the_nearest_one(words, message, monkeypatch, capsys):
    assert run(monkeypatch, *words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(message) and printed.out == ""
