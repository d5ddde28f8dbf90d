"""python -m evaluation.bench: its statistics by hand, its work counts against torch's, every part once at toy size."""

import csv
import json
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from algos.pieces.settings import SettingsError
from algos.training.models.checkpoints import load_policy
from algos.training.models.tokens import encode_prompts, load_tokenizer
from algos.training.sampling.sampler import sample
from algos.training.stage.record import Record
from evaluation.bench import command, gpu, output, parts, steps, switches
from evaluation.bench.measure import exponent, ratio_of_medians
from evaluation.bench.work import StepWork, body_parameters, decode_bytes, forward_flops, head_parameters
from evaluation.bench.workload import SHAPES, Shape, random_model, synthetic_workload, task_workload, word_tokenizer
from evaluation.tasks.files import read_jsonl
from pipelines import stage
from pipelines.study import load

DEFAULT = Path(__file__).parents[3] / "pipelines" / "config.yaml"
TASK = {"name": "word_problems"}


def figures(rows) -> dict:
    return {row["quantity"]: row["value"] for row in rows}


@pytest.fixture
def bench(tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    return parts.Bench(folder, steps=1, device_name="cpu", toy=True)


# Statistics


def test_the_ratio_of_medians_by_hand():  # medians 6 and 2
    found = ratio_of_medians([5.0, 6.0, 100.0], [2.0, 1.0, 3.0])
    assert found.mean == 3.0 and found.low <= 3.0 <= found.high


def test_pairs_that_are_slow_together_leave_no_doubt():
    slowness = np.array([1.0, 5.0, 2.0, 9.0, 1.5])
    found = ratio_of_medians(list(3 * slowness), list(slowness))
    assert (found.low, found.mean, found.high) == pytest.approx((3.0, 3.0, 3.0))


def test_the_interval_covers_as_often_as_it_says():
    generator, covered = np.random.default_rng(0), 0
    for _ in range(200):
        slow, fast = np.exp(generator.normal(math.log(2), 0.2, 12)), np.exp(generator.normal(0, 0.2, 12))
        found = ratio_of_medians(list(slow), list(fast))
        covered += found.low <= 2.0 <= found.high
    assert 180 <= covered <= 200


def test_one_pair_has_no_interval_and_bad_times_are_refused():
    assert math.isnan(ratio_of_medians([2.0], [1.0]).low)
    with pytest.raises(ValueError, match="pairs of times, got 2 and 1"):
        ratio_of_medians([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="must be above 0"):
        ratio_of_medians([1.0], [0.0])


def test_the_exponent_by_hand():
    assert exponent([1, 2, 4], [3.0, 6.0, 12.0]) == pytest.approx((1.0, 0.0), abs=1e-12)
    # log2: x = 0, 1, 2; y = 0, 2, 1: slope 1/2, residuals -1/2, 1, -1/2, so s^2 = 1.5 and SE = sqrt(1.5 / 2)
    assert exponent([1, 2, 4], [1.0, 4.0, 2.0]) == pytest.approx((0.5, math.sqrt(0.75)))
    slope, error = exponent([1, 2], [1.0, 8.0])
    assert slope == pytest.approx(3.0) and math.isnan(error)
    with pytest.raises(ValueError, match="at least two sizes"):
        exponent([2, 2], [1.0, 1.0])


# Work


def test_parameters_and_flops_are_those_that_torch_counts(tmp_path):
    shape = Shape(vocab_size=100, hidden_size=32, layers=2, heads=4, key_value_heads=2, intermediate_size=48)
    workload = synthetic_workload(tmp_path, shape, 2, 5)
    model = random_model(workload.policy)
    matrices = sum(p.numel() for n, p in model.model.layers.named_parameters() if p.dim() == 2)
    assert body_parameters(shape) == matrices and head_parameters(shape) == 100 * 32
    model.set_attn_implementation("eager")  # the counter does not see the CPU's fused one
    with FlopCounterMode(display=False) as counter:
        model.base_model(input_ids=torch.zeros(3, 12, dtype=torch.long), use_cache=False)
    counted = counter.get_total_flops()
    ours = forward_flops(shape, 5, 7, rows=3, head=False)
    whole_square = 4 * shape.layers * shape.hidden_size * (12 * 12 - 12 * 13 / 2) * 3  # torch counts what is masked
    assert counted == pytest.approx(ours + whole_square, rel=1e-3)  # and the rotary angles


def test_a_known_shape_has_the_published_size():
    for name, billions in (
        ("smollm2-135m", 0.1345),
        ("qwen2.5-0.5b", 0.494),
        ("qwen2.5-1.5b", 1.54),
        ("qwen2.5-7b", 7.62),
    ):
        shape = SHAPES[name]
        total = body_parameters(shape) + head_parameters(shape) * (1 if shape.tied else 2)
        assert total / 1e9 == pytest.approx(billions, rel=0.01)


def test_an_update_takes_three_forward_passes_and_a_critic_its_own():
    shape, fixed = SHAPES["toy"], {"prompt": 4, "response": 3, "rows": 2, "groups": 1}
    alone, both = StepWork(shape, **fixed), StepWork(shape, **fixed, separate_critic=True, passes=2)
    assert alone.flops["update"] == 3 * alone.flops["logprobs"]
    assert both.flops["logprobs"] - 2 * alone.flops["logprobs"] == forward_flops(shape, 4, 3, 2, head=False)
    assert alone.tokens == {"generate": 6, "logprobs": 14, "update": 14}


def test_bytes_of_decoding_by_hand():
    shape = Shape(vocab_size=10, hidden_size=4, layers=1, heads=2, key_value_heads=1, intermediate_size=3)
    # weights: attention 16 + 16 + 8 + 8, feed-forward 36, head 40; a position's key and value: 4 numbers
    # two steps read 2 x 124 weights, and of each of 3 rows 5 + 1 and 5 + 2 positions
    assert decode_bytes(shape, 5, 2, rows=3, element=1) == 2 * 124 + 4 * 3 * (6 + 7)


# Workloads


def test_lengths_are_forced(tmp_path):
    workload = task_workload(tmp_path, TASK, 8, SHAPES["toy"])
    tokenizer, policy = load_tokenizer(workload.policy), load_policy(workload.policy, torch.device("cpu"))
    prompts = encode_prompts(tokenizer, [row["prompt"] for row in read_jsonl(workload.prompts)])
    rollouts = sample(policy, tokenizer, prompts, 8, 12, 1.0, torch.Generator().manual_seed(0))
    assert rollouts.truncated.all() and rollouts.response_tokens == 64 * 12
    assert policy.config.vocab_size == tokenizer.eos_token_id == len(tokenizer) - 1


def test_lengths_are_natural(tmp_path):
    workload = task_workload(tmp_path, TASK, 16, SHAPES["study"], length=5)
    tokenizer, policy = load_tokenizer(workload.policy), load_policy(workload.policy, torch.device("cpu"))
    prompts = encode_prompts(tokenizer, [row["prompt"] for row in read_jsonl(workload.prompts)])
    lengths = sample(policy, tokenizer, prompts, 16, 40, 1.0, torch.Generator().manual_seed(0)).response_mask.sum(1)
    assert 3.0 < lengths.float().mean() < 8.0 and len(lengths.unique()) > 5


def test_synthetic_prompts_have_their_length_and_one_word_a_token(tmp_path):
    workload = synthetic_workload(tmp_path, SHAPES["toy"], 4, 9)
    tokenizer = word_tokenizer(workload.policy)
    texts = [row["prompt"] for row in read_jsonl(workload.prompts)]
    assert [len(ids) for ids in encode_prompts(tokenizer, texts)] == [9] * 4
    assert len(tokenizer) == SHAPES["toy"].vocab_size + 1 and len(set(texts)) == 4


# Loops


def test_loops_take_turns_and_their_clocks_stop_meanwhile(bench):
    workload, settings = bench.workload(), bench.settings("grpo", steps=6)
    loops = {name: bench.loop(settings, workload) for name in ("a", "b")}
    seen = []
    slow = lambda number: seen.append(number) or time.sleep(2.0)  # noqa: E731
    found = steps.in_turns(loops, 2, after_each=slow)
    assert seen == [0, 1, 2] and [len(rows) for rows in found.values()] == [2, 2]
    for mine, other in zip(found["a"], found["b"], strict=True):
        same = [name for name in mine if not name.endswith(("seconds", "per_second"))]
        assert [float(mine[name]) for name in same] == pytest.approx([float(other[name]) for name in same], nan_ok=True)
        assert mine["wall_seconds"] < 2.0
        assert 0.8 * mine["wall_seconds"] < mine["step_seconds"] <= mine["wall_seconds"]
    assert not any(loop.run or loop.models for loop in loops.values()) and not Record.unfinished


def test_trls_clock_stops_too_and_its_run_does_the_same_work(bench):
    workload, settings = bench.workload(), bench.settings("grpo")
    loops = {"ours": bench.loop(settings, workload), "trl": bench.loop({**settings, "trainer": "trl"}, workload)}
    found = steps.in_turns(loops, 1, after_each=lambda _: time.sleep(2.0))
    assert found["trl"][0]["step_seconds"] < 2.0
    assert float(found["trl"][0]["response_tokens"]) == float(found["ours"][0]["response_tokens"]) == 4


def test_the_turns_of_a_loop_that_does_not_return_lie_between_its_steps():
    """Order a b, b a, a b, b a: TRL's loop takes its turns where its steps end, the others in between."""
    taken = []

    class Written:
        def __init__(self, name, drives):
            self.name, self.drives = name, drives

        def step(self):
            taken.append(self.name)
            return {}

    turns = steps.Turns({"trl": Written("trl", True), "ours": Written("ours", False)}, 4, 1)
    with pytest.raises(steps.Enough):
        while True:
            turns.others()
            taken.append("trl")
            turns.took({})
    assert taken == ["trl", "ours", "ours", "trl"] * 2
    assert {name: len(rows) for name, rows in turns.found.items()} == {"trl": 3, "ours": 3}


def test_the_settings_of_an_algorithm_stand_over_those_of_all(bench):
    bench.run = {"algorithm": "ppo", "settings": {"gae_lambda": 1.0}, "micro_batch_tokens": 99}
    bench.runs = {"gspo": {"settings": {"clip_low": 0.1}}}
    assert bench.settings("ppo")["settings"] == {"gae_lambda": 1.0}
    assert "settings" not in bench.settings("grpo") and bench.settings("grpo")["micro_batch_tokens"] == 99
    assert bench.settings("gspo")["settings"] == {"clip_low": 0.1}


def test_what_a_loop_raises_is_raised_to_whoever_asked_for_the_step(bench):
    loop = bench.loop(bench.settings("grpo", prompts_per_step=8), bench.workload(problems=4))
    with pytest.raises(SettingsError, match="prompts_per_step is 8, but"):
        steps.in_turns({"a": loop}, 1)
    assert loop.run is None


# Switches


def test_a_switchs_settings_are_merged_into_the_runs():
    run = {"optimizer": {"name": "adamw", "learning_rate": 1.0}, "steps": 3, "lora": None}
    changed = {"optimizer": {"name": "adafactor"}, "lora": {"rank": 2}}
    assert switches.merged(run, changed) == {
        "optimizer": {"name": "adafactor", "learning_rate": 1.0},
        "steps": 3,
        "lora": {"rank": 2},
    }


def test_the_settings_table_measures_time_and_memory_and_names_what_is_unknown(bench):
    table = (
        switches.Switch("small micro-batches", {"micro_batch_tokens": 1}, {"micro_batch_tokens": 9999}),
        switches.Switch("nonsense", {"no_such_setting": 1}),
    )
    rows = list(switches.table(bench, table))
    quantities = [row["quantity"] for row in rows]
    assert quantities == [
        "step_gain",
        "generate_gain",
        "update_gain",
        "peak_ratio",
        "update_peak_ratio",
        "not measured",
    ]
    assert rows[4]["value"] < 1 and "no_such_setting" in rows[5]["note"]


def test_every_switch_names_another_thing():
    names = [switch.name for switch in switches.SWITCHES]
    assert len(set(names)) == len(names)


# The command


def run(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    try:
        command.main()
    except SystemExit as stop:
        return stop.code
    return 0


def test_parts_run_end_to_end_at_toy_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="evaluation.bench.__main__"))
    words = ("generation", "grpo", "logits", "--toy", "--steps", "1", "--device", "cpu", "--out", str(tmp_path))
    assert run(monkeypatch, *words) == 0
    printed = capsys.readouterr().out
    for part in ("generation", "grpo", "logits"):
        content = json.loads((tmp_path / f"{part}.json").read_text())
        assert content["status"] == "finished" and content["command"][:3] == ["python", "-m", "evaluation.bench"]
        assert content["packages"]["torch"] and content["hardware"]["cores"] and "commit" in content
        table = list(csv.DictReader((tmp_path / f"{part}.csv").open()))
        assert len(table) == len(content["rows"]) > 0 and tuple(table[0]) == output.COLUMNS
        assert all(row["target"] == "" for row in table)  # toy sizes decide nothing
    assert "GRPO step: TRL's seconds / ours" in printed and "not measured" in printed


def test_ppo_and_scaling_at_toy_size(bench, monkeypatch):
    assert "ratio" in figures(parts.against_trl(bench, "ppo"))
    monkeypatch.setattr(
        parts, "TOY_SCALING", {"prompts_per_step": ("settings", (2, 4)), "threads": ("threads", (1, 2))}
    )
    assert {"generate_exponent", "update_exponent"} <= set(figures(parts.scaling(bench)))


def test_the_gpu_script_on_the_cpu(tmp_path, monkeypatch, capsys):
    sizes = ("--prompts", "2", "--group", "2", "--prompt-tokens", "6", "--response-tokens", "4", "--steps", "1")
    words = ("gpu", "--shape", "toy", "--device", "cpu", "--algorithms", "grpo", "ppo_shared", *sizes)
    assert run(monkeypatch, *words, "--out", str(tmp_path)) == 0
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    by_case: dict[str, dict] = {}
    for row in rows:
        by_case.setdefault(row["case"], {})[row["quantity"]] = row["value"]
    ours = by_case["toy grpo adamw, ours"]
    assert {"step_seconds", "update_mfu", "peak_bytes_update", "policy_weights", "policy_optimizer"} <= set(ours)
    assert "step_seconds" in by_case["toy grpo adamw, trl"] and by_case["toy grpo adamw"]["ratio"] > 0
    assert by_case["toy ppo_shared adamw, ours"]["critic_parameters"] == SHAPES["toy"].hidden_size + 1
    assert "not measured" in by_case["toy ppo_shared adamw, trl"]  # which has no shared critic


def gpu_rows(bench, *words: str) -> list[dict]:
    sizes = ("--prompts", "2", "--group", "2", "--prompt-tokens", "6", "--response-tokens", "4", "--steps", "1")
    args = command.arguments(["gpu", "--shape", "toy", "--algorithms", "grpo", "--no-trl", *sizes, *words])
    return list(gpu.rows(bench, args))


def test_running_out_of_memory_is_a_figure(bench, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(gpu, "in_turns", full)
    row = gpu_rows(bench)[-1]
    assert (row["quantity"], row["value"], row["note"]) == ("out_of_memory", 1, "CUDA out of memory")


def test_the_time_budget_ends_cleanly(bench):
    row = gpu_rows(bench, "--minutes", "0.0001")[-1]
    assert row["quantity"] == "not measured" and "--minutes" in row["note"]


@pytest.mark.parametrize(
    "words, message",
    [
        (("grp",), "error: PART: 'grp' is unknown. Did you mean 'grpo'?"),
        (("grpo", "--steps", "0"), "error: --steps must be at least 1, got 0."),
        (("gpu", "--shape", "qwen"), "error: --shape: 'qwen' is unknown."),
        (("gpu", "--set", "[1]"), "error: --set must be a mapping of settings"),
        (("gpu", "--set", "{"), "error: --set is not JSON"),
        (("gpu", "--set", "/no/such.json"), "error: --set is neither JSON nor a file that can be read"),
        (("grpo", "--settings", "{"), "error: --settings is not JSON"),
        (("grpo", "--task", "/no/such.json"), "error: --task is neither JSON nor a file that can be read: '/no/such"),
        (("overhead", "--results", "/no/where"), "error: --results /no/where holds no finished stage"),
        (("grpo", "--shape", "toy", "--no-trl"), "error: --shape, --no-trl would have no effect without the part gpu."),
        (("grpo", "--whole"), "error: --whole would have no effect without the part overhead."),
        (("gpu", "--respons", "4"), "usage: "),  # no abbreviation
    ],
)
def test_bad_options_end_with_2_and_one_line(words, message, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, *words, "--out", str(tmp_path)) == 2
    assert capsys.readouterr().err.startswith(message)


def test_targets_are_met_missed_or_not_measured(tmp_path):
    decisive = [output.row("grpo, 4 minibatches", "ratio", 2.6, "x", low=2.5, high=2.7, target="grpo_step")]
    output.write(tmp_path, "grpo", decisive, {}, finished=True)
    output.write(tmp_path, "logits", [output.row("v", "share", 0.5, target="logits")], {}, finished=True)
    verdicts = {
        line["target"]: (line["measured"], line["verdict"]) for line in output.targets(output.read_all(tmp_path))
    }
    assert verdicts[output.TARGETS["grpo_step"].what] == ("2.6 [2.5, 2.7]", "met")
    assert verdicts[output.TARGETS["logits"].what] == ("0.5", "not met")
    assert verdicts[output.TARGETS["gpu_mfu"].what] == ("", "not measured")


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(SettingsError, match="no file of the benchmark"):
        output.read_all(tmp_path)


def test_a_stage_that_answers_dev_problems_between_its_steps_is_measured(tmp_path):
    study = yaml.safe_load(DEFAULT.read_text(encoding="utf-8"))
    study["defaults"].setdefault("rl", {})["dev_every"] = 1
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study))
    words = ["grpo", "--toy", "--steps", "1", "--device", "cpu", "--out", str(tmp_path)]
    stage.bench(load(tmp_path / "mine.yaml"), "grpo", words)
    assert json.loads((tmp_path / "grpo.json").read_text())["status"] == "finished"
