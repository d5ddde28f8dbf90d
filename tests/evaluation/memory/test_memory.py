"""Memory: the closed forms against the worked numbers, the counter by hand, the prediction against the measurement."""

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from algos.pieces.settings import SettingsError
from algos.training.config import LoraSettings
from algos.training.stage.config import OptimizerConfig
from algos.training.update.optimize import make_optimizer, optimizer_step
from evaluation.memory import check, dry_run
from evaluation.memory import closed_form as model
from evaluation.memory.live_tensors import LiveTensors, Peak
from evaluation.memory.plan import Plan, plan_phases, plan_states
from evaluation.memory.weightless import Weightless

PUBLISHED = Path(__file__).parents[3] / "results" / "published"

# closed forms


def test_bytes_per_parameter():
    """Mixed AdamW: 2 + 2 + 4 + 8 = 16, 18 with float32 gradients; plain float32 4 + 4 + 8; 8-bit 2 + 2 + 4 + 2."""
    rows = {
        ("mixed", "adamw"): (16, 2),
        ("mixed_float32_gradients", "adamw"): (18, 2),
        ("float32", "adamw"): (16, 4),
        ("bfloat16", "adamw"): (8, 2),
        ("mixed", "adamw_8bit"): (10, 2),
        ("bfloat16", "adamw_8bit"): (6, 2),
        ("mixed", "adafactor"): (8, 2),
    }
    assert {key: model.bytes_per_parameter(*key) for key in rows} == rows


TABLE = {  # GB at 7e9 parameters, and the percentages against PPO with four models
    (4, 2): ([84, 70, 56, 42, 28], [-16.7, -33.3, -50, -66.7]),
    (2, 2): ([56, 42, 42, 28, 14], [-25, -25, -50, -75]),
    (4, 4): ([112, 84, 84, 56, 28], [-25, -25, -50, -75]),
    (16, 2): ([252, 238, 140, 126, 112], [-5.6, -44.4, -50, -55.6]),
    (18, 2): ([280, 266, 154, 140, 126], [-5, -45, -50, -55]),
    (10, 2): ([168, 154, 98, 84, 70], [-8.3, -41.7, -50, -58.3]),
    (8, 2): ([140, 126, 84, 70, 56], [-10, -40, -50, -60]),
}


def test_the_worked_table():
    assert list(model.ASSUMPTIONS.values()) == list(TABLE)
    for (t, f), (sizes, percentages) in TABLE.items():
        assert [model.states(setup, t, f) / model.GB for setup in model.SETUPS] == sizes
        savings = [-100 * model.saving(setup, t, f) for setup in list(model.SETUPS)[1:]]
        assert [round(s, 1) for s in savings] == percentages


def test_identities_of_the_savings():
    """t / (2t + 2f) without the critic, a third iff t = 2f; half without critic and reward model, whatever t and f."""
    for t, f in [(4, 2), (2, 2), (16, 2), (18, 2), (7, 3), (1000, 1)]:
        assert model.saving("GRPO + RM", t, f) == pytest.approx(t / (2 * t + 2 * f))
        assert 0.25 <= model.saving("GRPO + RM", t, f) < 0.5
        assert (abs(model.saving("GRPO + RM", t, f) - 1 / 3) < 1e-12) == (t == 2 * f)
        assert model.saving("GRPO + rules", t, f) == pytest.approx(0.5)
        assert model.saving("GRPO + rules", t, f, "PPO + rules") == pytest.approx(t / (2 * t + f))
    assert round(100 * model.saving("GRPO + rules", 16, 2, "PPO + rules"), 1) == 47.1


@pytest.mark.parametrize(
    "name, parameters, adafactor, kv_kib",
    [
        ("qwen2.5-0.5b", 494_032_768, 774_272, 12),
        ("qwen2.5-1.5b", 1_543_714_304, None, 28),
        ("qwen2.5-7b", 7_615_616_512, 3_167_744, 56),
        ("llama-2-7b", 6_738_415_616, 2_836_992, 512),
    ],
)
def test_known_shapes(name, parameters, adafactor, kv_kib):
    shape = model.named_shape(name)
    assert shape.parameters == parameters
    assert adafactor is None or shape.adafactor_floats == adafactor
    assert shape.kv_bytes_per_token() == kv_kib * 1024


def test_activations_logits_and_cache_of_known_shapes():
    """8,192 tokens; the cache of 64 sequences of 1,024."""
    rows = {"llama-2-7b": (36.5, 2.1, 1.05, 34.4), "qwen2.5-0.5b": (6.0, 0.35, 4.98, 0.8)}
    for name, (full, recomputed, logits, cache) in rows.items():
        shape = model.named_shape(name)
        assert shape.activation_bytes(8192) / model.GB == pytest.approx(full, rel=0.01)
        kept = shape.activation_bytes(8192, checkpointing=True) - 34 * 8192 * shape.hidden  # what layers leave behind
        assert kept / model.GB == pytest.approx(recomputed, rel=0.03)
        assert shape.logits_bytes(8192) / model.GB == pytest.approx(logits, rel=0.005)
        assert 65536 * shape.kv_bytes_per_token() / model.GB == pytest.approx(cache, rel=0.01)
    moments = model.model_states(model.Copies(model.named_shape("llama-2-7b").parameters), "mixed", "adamw")
    assert moments["policy", "optimizer"] / model.GB == pytest.approx(53.9, rel=0.001)
    assert 4 * model.named_shape("llama-2-7b").adafactor_floats / 1e6 == pytest.approx(11.3, abs=0.05)
    assert 8 * model.named_shape("qwen2.5-0.5b").parameters / model.GB == pytest.approx(3.95, abs=0.005)


def test_model_states_add_up_to_the_table():
    """PPO with four models at 16/2: 252 GB."""
    states = model.model_states(model.Copies(7e9, 7e9, 7e9, 7e9), "mixed", "adamw")
    assert states.total() == 252e9
    assert states["policy", "weights"] == 14e9 and states["critic", "optimizer"] == 56e9
    lora = model.model_states(model.Copies(7e9, 0, 7e9), "mixed", "adamw", lora_share=0.01)
    assert lora.total() == pytest.approx(7e9 * (2 + 16 * 0.01))  # the base is the reference


def test_flops_per_generated_token():
    """10 + 12 K, 8 + 12 K, 8 + 6 K, 6 + 6 K, 2 + 6 K."""
    rows = [(True, True, True), (True, True, False), (False, True, True), (False, True, False)]
    assert [model.flops_per_token(*row) for row in rows] == [22, 20, 14, 12]
    assert model.flops_per_token(False, False, False, old_logprobs=False) == 8
    for epochs, against_reward_model, against_rules in [(1, 45.5, 40.0), (2, 47.1, 43.8), (4, 48.3, 46.4)]:
        ours = model.flops_per_token(False, True, False, epochs)
        for others, expected in [((True, True, True), against_reward_model), ((True, True, False), against_rules)]:
            assert round(100 * (1 - ours / model.flops_per_token(*others, epochs)), 1) == expected


def test_sizes_and_models_that_are_none():
    assert model.model_size("7B") == 7e9 and model.model_size("350m") == 350e6
    assert model.model_size("qwen2.5-0.5b") is None
    with pytest.raises(SettingsError, match=r"size must be above 0, got '0B'"):
        model.model_size("0B")
    with pytest.raises(
        SettingsError, match=r"'/no/such' cannot be read .* write a size such as 7B, one of qwen2.5-0.5b"
    ):
        model.model_config("/no/such")
    with pytest.raises(SettingsError, match=r"'mixd' is unknown. Did you mean 'mixed'"):
        model.bytes_per_parameter("mixd", "adamw")


# the counter, by hand


def test_views_and_in_place_operations_add_nothing_and_what_is_freed_is_gone():
    with LiveTensors() as live:
        x = torch.zeros(10, 10)  # 400 bytes
        assert live.bytes == 400
        y, z = x.view(100), x.t()
        y += 1
        assert live.bytes == 400
        del x, y
        assert live.bytes == 400  # z still holds it
        w = torch.zeros(5, dtype=torch.float64)
        assert live.bytes == 440
        del z, w
        assert live.bytes == 0


@pytest.mark.parametrize("weightless", [False, True])
def test_a_training_step_by_hand(weightless):
    """3 x 5 weights, 4 rows: states 4 x 5, outputs 4 x 3, their exponentials, one sum.

    Forward: 60 + 80 + 48 + 48 + 4 = 240; the outputs themselves are not needed for the gradient, the exponentials are.
    """
    with Weightless() if weightless else nullcontext(), LiveTensors() as live:
        linear = torch.nn.Linear(5, 3, bias=False)
        optimizer = torch.optim.AdamW(linear.parameters(), lr=0.1, fused=True)
        live.add_model("policy", linear, optimizer)
        assert live.bytes == 60
        with live.phase("update"):
            outputs = linear(torch.ones(4, 5))
            powers = outputs.exp()
            loss = powers.sum()
            assert live.bytes == 240
            del outputs, powers
            assert live.bytes == 192
            loss.backward()
            del loss
            assert +live.places == {("policy", "weights"): 60, ("policy", "gradients"): 60}
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        assert +live.places == {("policy", "weights"): 60, ("policy", "optimizer"): 124}  # two moments and the step
        assert live.peaks["update"].start_bytes == 60
        # the optimizer's step: weights, gradients, moments and step; the backward pass takes less than the sum of all
        assert live.peaks["update"].moments["step"][0] == 60 + 60 + 124
        assert live.peaks["update"].bytes <= 60 + 80 + 48 + 4 + 4 + 48 + 48 + 60


def test_a_storage_that_grows_is_counted_anew():
    with LiveTensors() as live:
        out = torch.empty(0)
        torch.add(torch.ones(3), 1, out=out)
        assert live.bytes == 12


def test_categories_and_components_follow_the_tensors():
    """Vocabulary 7: what ends in it is logits, but for the weights' own gradient; a model's tensors make its own."""
    with LiveTensors(vocabulary=7) as live:
        policy, critic = torch.nn.Linear(5, 7, bias=False), torch.nn.Linear(5, 1, bias=False)
        live.add_model("policy", policy)
        live.add_model("critic", critic)
        states = torch.ones(2, 5)
        with live.phase("update") as peak:
            logits, values = policy(states), critic(states)
            mask = values > 0
            with live.making("kv_cache"):
                cache = torch.zeros(3)
            assert +live.places == {
                ("policy", "weights"): 140,
                ("critic", "weights"): 20,
                ("", "activations"): 40,
                ("policy", "logits"): 56,
                ("critic", "activations"): 8,
                ("critic", "other"): 2,
                ("", "kv_cache"): 12,
            }
            (logits.sum() + values.sum()).backward()
        assert live.places["policy", "gradients"] == 140 and live.places["critic", "gradients"] == 20
        assert peak.by("component")["critic"] >= 48 and cache is not mask


def test_master_copies_and_their_gradients_have_places_of_their_own():
    linear = torch.nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    optimizer, scheduler = make_optimizer(linear, OptimizerConfig(), 10)
    with LiveTensors() as live:
        live.add_model("policy", linear, optimizer)
        with live.phase("update") as peak:
            linear(torch.ones(2, 4, dtype=torch.bfloat16)).sum().backward()
            optimizer_step(linear, optimizer, scheduler, 1.0)
    assert +live.places == {("policy", "weights"): 32, ("policy", "master"): 64, ("policy", "optimizer"): 132}
    assert max(places["policy", "gradients"] for _, places in peak.moments.values()) == 64


def test_the_fullest_of_a_phases_repetitions_is_kept_and_phases_do_not_nest():
    with LiveTensors() as live:
        for size in (10, 30, 20):
            with live.phase("generate"):
                x = torch.zeros(size)
                del x
        assert live.peaks["generate"].bytes == 120
        nested = live.phase("generate"), live.phase("update")
        with pytest.raises(ValueError, match="phase 'update' begins inside another"), nested[0], nested[1]:
            pass


def test_a_memory_history_needs_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"snapshot 'x.pickle' needs CUDA"):
        LiveTensors(snapshot="x.pickle")


def test_weightless_tensors_have_sizes_and_steer_nothing():
    with Weightless():
        x = torch.zeros(1000, 1000, 1000, 1000)  # 4 TB
        assert x.exp().sum().item() == 1.0
        picked = x[0, 0][torch.arange(1000) % 2 == 0]
        assert picked.shape == (500, 1000)
        assert bool(torch.isfinite(picked).all()) and int(picked.argmax()) == 0
        assert (torch.arange(5) + 1).tolist() == [1, 2, 3, 4, 5]


# prediction and measurement


@pytest.mark.parametrize("name", check.FAST)
def test_predicted_peaks_are_the_measured_ones(name):
    for row in check.compare(check.CASES[name]):
        assert row["ratio"] == pytest.approx(1, abs=check.TOLERANCE), row


def test_a_deep_models_peak_is_extrapolated_from_a_shallow_ones():
    workload = check.Case("ppo", {"kl_coef": 0.05}, layers=7, prompts=2).workload()
    few, all_of_them = dry_run.predict(workload), dry_run.predict(workload, exact=True)
    assert {n: p.bytes for n, p in few.items()} == pytest.approx({n: p.bytes for n, p in all_of_them.items()}, rel=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"minibatches": 16},  # fewer responses than a micro-batch takes
        {"micro_batch_tokens": None, "micro_batch_size": 6},
        {"minibatches": 12, "minibatch_of": "prompts"},
        {"micro_batch_tokens": 1500, "epochs": 2},
        {"algorithm": "trpo", "minibatches": 1, "prompts_per_step": 8},  # keeps the distributions of all micro-batches
        {"algorithm": "ppo", "settings": {"value_warmup": 3}},
    ],
    ids=str,
)
def test_a_step_of_many_micro_batches_is_measured_as_predicted(change):
    case = check.Case("grpo", prompts=24, prompt_tokens=64, response_tokens=16).workload()
    workload = replace(case, run=replace(case.run, **change))
    predicted, measured = dry_run.predict(workload), dry_run.measure(workload)
    for phase, peak in measured.items():
        assert predicted[phase].bytes == pytest.approx(peak.bytes, rel=0.01), phase


def test_each_micro_batch_is_extrapolated_by_itself():
    """In few layers a small micro-batch on top of the gradients needs more than a large one before there are any."""
    case = check.Case("grpo", layers=24, vocabulary=8192, prompt_tokens=120, response_tokens=4).workload()
    run = replace(case.run, minibatches=4, minibatch_of="prompts", micro_batch_tokens=262)
    few, all_of_them = (dry_run.predict(replace(case, run=run), exact=exact)["update"] for exact in (False, True))
    assert few.bytes == pytest.approx(all_of_them.bytes, rel=1e-3)
    shallow = dry_run.predict(replace(case, run=run, model=dry_run.with_layers(case.model, 3)))["update"]
    fullest = [max(peak.moments, key=lambda name: peak.moments[name][0]) for peak in (shallow, all_of_them)]
    assert [name.partition(",")[0] for name in fullest] == ["other", "first"]


def test_a_moment_of_which_something_would_be_less_than_nothing_is_not_extrapolated():
    """The same name, but before it the logits were alive, and after it the activations."""

    def peak(forward: int, activations: int, logits: int) -> Peak:
        moments = {"forward": {("policy", "activations"): forward}}
        moments["backward 4"] = {("policy", "activations"): activations, ("policy", "logits"): logits}
        return Peak(moments={name: (sum(places.values()), Counter(places)) for name, places in moments.items()})

    before, after = peak(10, 1, 20), peak(13, 12, 14)
    deep = dry_run._extrapolated(after, [(before, after, 5)])
    assert (deep.bytes, list(deep.moments)) == (13 + 5 * 3, ["forward"])


ON_AN_H100 = {  # file under results/published/bench: the plan of the same run
    "gpu_qwen2.5-0.5b": Plan(
        "qwen2.5-0.5b", precision="mixed_float32_gradients", prompts=8, response_tokens=256, micro_batch_tokens=16384
    ),
    "gpu_smollm2_grpo": Plan(
        "smollm2-135m", prompts=16, prompt_tokens=128, response_tokens=160, micro_batch_tokens=16384
    ),
    "gpu_smollm2_ppo": Plan(
        "smollm2-135m", "ppo", prompts=16, prompt_tokens=128, response_tokens=160, micro_batch_tokens=16384
    ),
}


@pytest.mark.parametrize("name", ON_AN_H100)
def test_peaks_on_a_gpu_are_the_predicted_ones(name):
    """torch's allocator on an H100. It also holds the kernels' scratch memory, and gives out whole blocks."""
    rows = pd.read_csv(PUBLISHED / "bench" / f"{name}.csv")
    measured = rows[rows.case.str.endswith(", ours")].set_index("quantity").value
    for phase, places in plan_phases(ON_AN_H100[name]).items():
        least, most = (1.0, 1.02) if phase == "update" else (1.0, 1.06)
        assert least <= measured[f"peak_bytes_{phase}"] / places.total() <= most, phase


def test_logits_in_pieces_take_less_than_a_third():
    """512 tokens in pieces of 110, for a test's sake; `python -m evaluation.memory --check` measures 4,096."""
    full = check.logits_bytes(None, 512)
    assert full >= 2 * 300 * 4 * check.VOCABULARY
    assert check.logits_bytes(2**24, 512) <= full / 3


def test_a_head_on_the_reference_is_measured_as_predicted():
    case = check.CASES["ppo, reference and reward model"].workload()
    workload = replace(case, head_on_reference=True)
    predicted, measured = dry_run.predict(workload), dry_run.measure(workload)
    for phase, peak in measured.items():
        assert predicted[phase].bytes == pytest.approx(peak.bytes, rel=check.TOLERANCE), phase
        assert peak.places["reward_model", "weights"] == 4 * 129  # the head
    with pytest.raises(ValueError, match="head_on_reference needs a reward model"):
        replace(check.CASES["gspo"].workload(), head_on_reference=True)


@pytest.mark.parametrize("algorithm", ["dapo", "remax"])
def test_dynamic_sampling_and_greedy_responses_are_predicted_by_the_same_step(algorithm):
    workload = check.Case(algorithm).workload()
    predicted, measured = dry_run.predict(workload), dry_run.measure(workload)
    for phase, peak in measured.items():
        assert predicted[phase].bytes == pytest.approx(peak.bytes, rel=check.TOLERANCE), phase


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)], ids=["whole", "adapters"])
def test_the_copy_that_samples_is_predicted_and_measured(lora):
    """All weights, or the adapters alone: the rest is shared, and stays the policy's."""
    case = check.Case("grpo").workload()
    workload = replace(case, run=replace(case.run, sync_every=4, lora=lora))
    predicted, measured = dry_run.predict(workload), dry_run.measure(workload)
    for phase, peak in measured.items():
        assert predicted[phase].bytes == pytest.approx(peak.bytes, rel=check.TOLERANCE), phase
    optimizer = predicted["update"].places["policy", "optimizer"]  # two moments of what is trained
    held = predicted["generate"].places["behavior", "weights"]
    assert held == measured["generate"].places["behavior", "weights"] == pytest.approx(optimizer / 2, rel=1e-2)
    assert predicted["generate"].places["policy", "weights"] >= held


def test_the_copy_that_samples_in_closed_form():
    """7e9 parameters of 2 bytes; with adapters on one weight in a hundred, 2 bytes of those."""
    states = model.model_states(model.Copies(7e9, behavior=7e9), "mixed", "adamw")
    assert states["behavior", "weights"] == 14e9 and states.total() == 7e9 * 16 + 14e9
    adapters = model.model_states(model.Copies(7e9, behavior=7e9), "mixed", "adamw", lora_share=0.01)
    assert adapters["behavior", "weights"] == pytest.approx(0.14e9)
    assert plan_states(Plan("7B", precision="mixed", sync_every=2))["behavior", "weights"] == 14e9
    assert ("behavior", "weights") not in plan_states(Plan("7B", precision="mixed"))
