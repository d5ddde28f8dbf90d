"""python -m evaluation.memory: plans and settings to bytes by phase, text, figure, and bad options."""

import json
from dataclasses import replace

import pytest

from algos.pieces.settings import from_dict
from algos.training.config import RunConfig
from algos.training.models.config import ModelConfig
from evaluation.memory import __main__ as command
from evaluation.memory import check, figure, text
from evaluation.memory import closed_form as model
from evaluation.memory import plan as memory


def run_command(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["memory", *arguments])
    command.main()
    return capsys.readouterr().out


def test_without_a_model_the_command_prints_the_worked_table(monkeypatch, capsys):
    out = run_command(monkeypatch, capsys)
    for cells in ("252   238 (-5.6%)  140 (-44.4%)  126 (-50.0%)", "84   70 (-16.7%)   56 (-33.3%)   42 (-50.0%)"):
        assert cells in out


def test_a_bare_size_gives_model_states(monkeypatch, capsys):
    out = run_command(
        monkeypatch, capsys, "--model", "7B", "--algorithm", "ppo", "--precision", "mixed", "--reward-model",
        "--reference", "yes",
    )  # fmt: skip
    assert "together        56.00      28.00     112.00   56.00    252.00" in out
    assert "22 N FLOPs" in out
    out = run_command(
        monkeypatch, capsys, "--model", "7B", "--algorithm", "ppo", "--reward-model", "--reference", "yes"
    )
    assert "20 N FLOPs" in out  # in float32 the sampler's log-probabilities serve as the old ones


def small_model(tmp_path, layers: int = 3):
    config = check.Case(layers=layers).workload().model
    config.save_pretrained(tmp_path)
    return str(tmp_path)


def test_the_peaks_of_a_model_in_a_folder(monkeypatch, tmp_path):
    plan = memory.Plan(small_model(tmp_path), prompts=1, group_size=4, minibatches=1, response_tokens=16)
    plan = replace(plan, prompt_tokens=8, micro_batch_tokens=64)
    phases = memory.plan_phases(plan)
    assert set(phases) == {"generate", "logprobs", "update"}
    shown = text.phases_text(phases)
    assert "policy: gradients" in shown and "The peak is that of update" in shown
    shape = memory.plan_shape(plan.model)
    assert phases["update"]["policy", "optimizer"] == pytest.approx(8 * shape.parameters, rel=1e-3)
    monkeypatch.setattr(model, "SHAPES", {})  # without the known shapes: they take seconds
    assert "does not fit" not in text.fits_text(plan)


def test_settings_change_the_peak_as_they_should(tmp_path):
    plan = memory.Plan(small_model(tmp_path), "ppo", reference="yes", reward_model=True, prompts=4, response_tokens=16)
    plan = replace(plan, prompt_tokens=8, micro_batch_tokens=64, prompts=1, group_size=4, minibatches=1)
    update = memory.plan_phases(plan)["update"]
    parameters = memory.plan_shape(plan.model).parameters
    for change, saved in [
        ({"reference": "no"}, 4 * parameters),
        ({"reward_model": False}, 4 * parameters),
        ({"offload": ("reference", "reward_model")}, 8 * parameters),
        ({"precision": "mixed"}, 4 * parameters),  # two frozen models of 2 bytes instead of 4
    ]:
        less = memory.plan_phases(replace(plan, **change))["update"]
        states = sum(s for (_, c), s in update.items() if c in model.STATES)
        states -= sum(s for (_, c), s in less.items() if c in model.STATES)
        assert states == pytest.approx(saved, rel=0.01), change
    adapters = memory.plan_phases(replace(plan, precision="mixed", lora_rank=4, reference="yes"))["update"]
    assert ("reference", "weights") not in adapters
    shared = memory.plan_phases(replace(plan, critic="shared"))["update"]
    assert shared["critic", "weights"] == 4 * 129  # the head


SETTINGS = {
    "algorithm": "ppo",
    "seed": 0,
    "settings": {"kl_coef": 0.05},
    "prompts_per_step": 2,
    "group_size": 2,
    "minibatches": 1,
    "max_prompt_tokens": 8,
    "max_response_tokens": 8,
    "rewards": {"reward_model": 1.0},
    "device": "cpu",
    "offload": ["reference"],
}
SHAPE = {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64, "vocab_size": 64}


def weights_by_phase(head_on_reference: bool, **hparams) -> dict[str, float]:
    """Bytes of the reference in each phase, while it is offloaded, in units of its own."""
    run = from_dict(RunConfig, {**SETTINGS, "settings": {"kl_coef": 0.05, **hparams}}, "settings")
    config = model.built_config(from_dict(ModelConfig, SHAPE, "model"))
    phases = memory.settings_phases(run, config, head_on_reference=head_on_reference)
    whole = 4 * model.shape_of(config).parameters
    return {phase: places["reference", "weights"] / whole for phase, places in phases.items()}


def test_an_offloaded_reference_is_there_in_the_phases_in_which_a_run_has_it():
    """As needed_parts says, which offloading asks too: with a full KL, and with a reward model that is a head on it."""
    away, there = pytest.approx(0), pytest.approx(1, rel=0.01)  # and a few bytes of buffers
    assert weights_by_phase(False) == {"generate": away, "reward": away, "logprobs": there, "update": away}
    assert weights_by_phase(True) == {"generate": away, "reward": there, "logprobs": away, "update": away}
    full = {"kl_estimator": "full", "kl_in": "loss"}
    assert weights_by_phase(False, **full) == {"generate": away, "reward": away, "logprobs": there, "update": there}


def test_vllm_takes_a_share_of_the_gpu_in_place_of_the_trainers_cache(monkeypatch, capsys):
    config = model.built_config(from_dict(ModelConfig, SHAPE, "model"))
    settings = {**SETTINGS, "engine": "vllm", "vllm": {"gpu_memory_utilization": 0.5}}
    peaks = {}
    for sleep in (True, False):
        run = from_dict(RunConfig, {**settings, "vllm": {**settings["vllm"], "sleep": sleep}}, "settings")
        phases = memory.settings_phases(run, config)
        peaks[sleep] = memory.peak_with_vllm(run, phases, 1.0e9)
        assert {state for _, state in phases["generate"]} <= set(model.STATES)
    assert peaks[True] == phases["generate"].total() + 0.5e9
    assert peaks[False] == phases["update"].total() + 0.5e9
    plain = memory.settings_phases(from_dict(RunConfig, SETTINGS, "settings"), config)
    assert phases["generate"].total() < plain["generate"].total()
    out = run_command(monkeypatch, capsys, "--settings", json.dumps(settings), "--model", json.dumps(SHAPE))
    assert "vLLM takes 0.5 of the GPU beside that. The peak is then 12.00 GB of a GPU of 24 GB, 40.00 GB of" in out


def test_the_hub_id_of_a_known_shape_needs_no_hub():
    assert model.model_config("Qwen/Qwen2.5-0.5B-Instruct").hidden_size == 896
    assert model.model_config("Qwen/Qwen2.5-1.5B").num_hidden_layers == 28


def test_the_peaks_of_a_runs_own_settings(monkeypatch, capsys, tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(SETTINGS))
    out = run_command(monkeypatch, capsys, "--settings", str(path), "--model", json.dumps(SHAPE))
    assert out.startswith("ppo, prompts of 8 tokens") and "reference: weights" in out and "N FLOPs" in out
    given = run_command(monkeypatch, capsys, "--settings", json.dumps(SETTINGS), "--model", small_model(tmp_path / "m"))
    assert "The peak is that of update" in given


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "7B", "--algorithm", "gppo"], "algorithm: 'gppo' is unknown. Did you mean"),
        (["--model", "7B", "--precision", "fp8"], "precision: 'fp8' is unknown"),
        (["--model", "7B", "--optimizer", "adam"], "optimizer: 'adam' is unknown. Did you mean"),
        (["--model", "7B", "--prompts", "0"], "--prompts must be at least 1, got 0"),
        (["--model", "7B", "--offload", "policy"], "offload: 'policy' is unknown"),
        (["--model", "-1B"], "a size must be above 0, got '-1B'"),
        (["--model", "7B", "--lora-rank", "8"], "--lora-rank needs a model's shape"),
        (["--model", "qwen2.5-0.5b", "--algorithm", "ppo", "--critic-layers", "99"], "has 24 layers"),
        (["--model", "7B", "--freeze-backbone"], "--freeze-backbone needs --reward-model and --reference yes"),
        (["--settings", "{"], "--settings needs --model"),
        (["--settings", "{", "--model", "7B"], "--settings is not JSON"),
        (["--settings", "/no/such.json", "--model", "7B"], "neither JSON nor a file that can be read: '/no/such.json'"),
        (["--settings", '{"algorithm": "gppo", "seed": 0}', "--model", "7B"], "algorithm: 'gppo' is unknown"),
        (["--settings", "{}", "--model", "7B", "--prompts", "4"], "--prompts would have no effect beside --settings"),
        (["--settings", "{}", "--model", "7B", "--figure"], "--figure would have no effect beside --settings, which"),
        (["--check", "--model", "7B"], "--model would have no effect beside --check, which takes --out."),
        (["--algorithm", "ppo"], "--algorithm would have no effect without --model."),
        (["--settings", json.dumps(SETTINGS), "--model", json.dumps(SHAPE), "--prompt-tokens", "0"], "1, got 0"),
    ],
)
def test_bad_options_get_one_clear_line(monkeypatch, capsys, arguments, message):
    arguments = [f"--model={arguments[1]}"] if arguments[:2] == ["--model", "-1B"] else arguments
    monkeypatch.setattr("sys.argv", ["memory", *arguments])
    with pytest.raises(SystemExit):
        command.main()
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_figure_and_its_table(tmp_path, monkeypatch, capsys):
    plan = memory.Plan(small_model(tmp_path / "model"), prompts=2, group_size=2, minibatches=1, response_tokens=8)
    plan = replace(plan, prompt_tokens=8, micro_batch_tokens=64)
    figure.draw(plan, tmp_path / "out")
    rows = (tmp_path / "out" / "peak-model.csv").read_text().splitlines()
    assert rows[0] == "setup,phase,part,bytes" and len({row.split(",update,")[0] for row in rows[1:]}) == 6
    assert (tmp_path / "out" / "peak-model.svg").stat().st_size > 1000
