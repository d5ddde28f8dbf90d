"""A mistake in a study or in its data stops Snakemake before any training."""

import re

from project import PROJECT, STUDY, copy_project, results, snakemake, snakemake_here


def test_a_bad_study_stops_before_anything_with_one_clear_message(tmp_path):
    (tmp_path / "study.yaml").write_text((PROJECT / STUDY).read_text().replace("algorithm: gspo", "algorithm: gsop"))
    status, said = snakemake_here(tmp_path, study="study.yaml")
    assert status != 0 and not (tmp_path / "results").exists()
    message = r": stages.gspo: algorithm: 'gsop' is unknown. Did you mean 'gspo'\? Allowed: "
    assert re.search(f"study.yaml, line \\d+{message}", said) and "Traceback" not in said


def test_a_data_row_without_an_answer_stops_before_any_training(tmp_path):
    tree = copy_project(tmp_path / "project")
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        (data / f"{split}.jsonl").write_text('{"question": "1+1?", "answer": "2\\n#### 2"}\n{"question": "2+2?"}\n')
    study = tree / STUDY
    task = f"task: {{name: gsm8k, settings: {{path: {data}}}}}\n\nsampling:"
    study.write_text(re.sub(r"task:\n.*?\n\nsampling:", task, study.read_text(), flags=re.S))
    run = snakemake(tree)
    assert run.returncode != 0
    assert f"error: {data / 'train.jsonl'}, row 2: 'answer' is missing or empty" in run.stdout + run.stderr
    assert not (results(tree) / "models").exists()
