"""Settings that make a run smaller or faster, and what they must not change: gradients, weights, scores, the start."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from test_training import loop  # noqa: F401
from tiny import gradients, random_rollouts, tiny_model, tiny_tokenizer

from algos.pieces.settings import SettingsError, from_dict
from algos.pieces.types import Rollouts, make_batch
from algos.training.config import LoraSettings, RunConfig
from algos.training.models.checkpoints import ScalarModel, load_policy, save_policy, train_tokenizer
from algos.training.models.critics import SeparateCritic, make_critic
from algos.training.models.logprobs import token_logprobs
from algos.training.models.lora import WithoutAdapters, add_adapters
from algos.training.models.packing import shares_prompts
from algos.training.models.passes import compile_passes, recompute_activations
from algos.training.models.shared_pass import drop_equal_backbone
from algos.training.rewards import reward_model
from algos.training.rewards.config import RewardModelConfig
from algos.training.rewards.rewards import Rewards
from algos.training.sampling.sampler import sample
from algos.training.stage.config import OptimizerConfig
from algos.training.stage.record import component_memory
from algos.training.train import make_learner, train
from algos.training.update import offload
from algos.training.update.optimize import make_optimizer, optimizer_step
from algos.training.update.update import Learner, accumulate_gradients, prepare, with_advantages
from evaluation.tasks.files import write_jsonl

CPU = torch.device("cpu")
TOKENIZER = tiny_tokenizer()
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12]]
ROLLOUTS = random_rollouts(TOKENIZER, PROMPTS, 4, [4, 7, 1, 5, 6, 3, 7, 2])
REWARDS = torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 1])
LORA = LoraSettings(rank=2, alpha=4.0)


def batch_of():
    return make_batch(ROLLOUTS, REWARDS, TOKENIZER.pad_token_id)


def run_config(algorithm: str = "ppo", settings: dict | None = None, **changes) -> RunConfig:
    changes = {"prompts_per_step": 2, "group_size": 4, "minibatches": 1, "micro_batch_size": 3, **changes}
    return RunConfig(algorithm, 0, settings or {}, device="cpu", **changes)


def folder_of(tmp_path):
    """A policy, and a reward model on its backbone, on disk."""
    policy = tiny_model(TOKENIZER, 7, torch.float32)
    save_policy(policy, TOKENIZER, tmp_path / "policy")
    head = ScalarModel(copy.deepcopy(policy.base_model), "linear", 0.5, torch.Generator().manual_seed(0))
    head.save(tmp_path / "reward_model")
    return tmp_path


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path)


# activations computed again, and compiled passes


def step_gradients(change) -> dict[str, torch.Tensor]:
    """Policy and critic gradients of one step of PPO in float32; change(backbone) comes before."""
    policy = tiny_model(TOKENIZER, 0, torch.float32)
    critic = ScalarModel(
        tiny_model(TOKENIZER, 2, torch.float32).base_model, "linear", 0.3, torch.Generator().manual_seed(0)
    )
    for backbone in (policy.base_model, critic.backbone):
        change(backbone)
    config = run_config(settings={"entropy_coef": 0.1})
    learner = Learner(policy, None, None, SeparateCritic(critic))
    batch, _ = prepare(batch_of(), learner, config, config.hparams)
    batch = with_advantages(batch, config.algorithm_entry, config.hparams)
    metrics = accumulate_gradients(batch, learner, config, config.hparams)
    assert float(metrics["ratio_max"]) == pytest.approx(1.0, abs=1e-5)
    return gradients(policy) | {f"critic.{k}": v for k, v in gradients(critic).items()}


@pytest.fixture(scope="module")
def plain_gradients():
    found = step_gradients(lambda backbone: None)
    assert max(float(g.abs().max()) for g in found.values()) > 1e-3
    return found


def test_gradient_checkpointing_leaves_the_gradients_and_runs_each_layer_again(plain_gradients):
    calls = []

    def count(backbone):
        recompute_activations(backbone)
        backbone.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))

    found = step_gradients(count)
    assert found.keys() == plain_gradients.keys()
    for name, expected in plain_gradients.items():
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-6)
    # 3 micro-batches, 2 models: a pass without gradients each, then one that keeps nothing, and one more backward
    assert len(calls) == 18 and calls.count(False) == 6


def test_gradient_checkpointing_leaves_sampling_and_evaluation_mode(plain_gradients):
    policy, other = (tiny_model(TOKENIZER, 0, torch.float32) for _ in range(2))
    recompute_activations(other.base_model)
    token_logprobs(other, batch_of(), 1.0)[0].sum().backward()
    drawn = [sample(p, TOKENIZER, PROMPTS, 4, 10, 1.0, torch.Generator().manual_seed(0)) for p in (policy, other)]
    assert torch.equal(drawn[0].response_ids, drawn[1].response_ids)
    assert torch.equal(drawn[0].sampler_logprobs, drawn[1].sampler_logprobs)  # with its cache
    assert not any(m.training for m in other.base_model.layers[0].children())


def test_gradient_checkpointing_needs_layers_that_can_run_again():
    with pytest.raises(SettingsError, match="gradient_checkpointing: Linear has no layers"):
        recompute_activations(torch.nn.Linear(2, 2))


def test_compiled_passes_leave_the_gradients(plain_gradients):
    found = step_gradients(lambda backbone: compile_passes(backbone, CPU))
    for name, expected in plain_gradients.items():
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-4)


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SettingsError, match=r"compile: .* there is no no-such-compiler; set it to false"):
        compile_passes(tiny_model(TOKENIZER).base_model, CPU)


# adapters


def adapted(seed: int = 0, settings: LoraSettings = LORA):
    torch.manual_seed(seed)
    return add_adapters(tiny_model(TOKENIZER, 0, torch.float32), settings)


def test_adapters_start_without_effect_and_their_reference_is_the_start():
    policy, start, batch = adapted(), tiny_model(TOKENIZER, 0, torch.float32), batch_of()
    before = token_logprobs(start, batch, 1.0)[0]
    assert torch.equal(token_logprobs(policy, batch, 1.0)[0], before)
    reference = WithoutAdapters(policy)
    config = run_config("grpo", {"kl_coef": 0.1}, optimizer=OptimizerConfig(learning_rate=0.05))
    learner = Learner(policy, *make_optimizer(policy, config.optimizer, 1), reference=reference)
    ready, _ = prepare(batch, learner, config, config.hparams)
    assert torch.equal(ready.old_logprobs, ready.ref_logprobs)  # a KL of exactly 0
    ready = with_advantages(ready, config.algorithm_entry, config.hparams)
    accumulate_gradients(ready, learner, config, config.hparams)
    optimizer_step(policy, learner.optimizer, learner.scheduler, None)
    assert not torch.equal(token_logprobs(policy, batch, 1.0)[0], before)
    assert torch.equal(token_logprobs(reference, batch, 1.0)[0], before)
    frozen = dict(start.named_parameters())
    for name, parameter in policy.named_parameters():
        assert parameter.requires_grad is (".lora_" in name)
        if ".lora_" not in name:
            assert torch.equal(parameter, frozen[name.replace(".base_layer.", ".")])


def test_only_adapters_are_trained_and_counted():
    """Rank 2 in 7 layers of each of 2 blocks: 2 (16 + 16) in q, k, v, o, 2 (16 + 32) in the three of the MLP."""
    policy = adapted()
    trained = 2 * (4 * 2 * 32 + 3 * 2 * 48)
    memory = component_memory(policy=(policy, make_optimizer(policy, OptimizerConfig(), 1)[0]))["policy"]
    assert memory["gradients"] == 4 * trained
    assert memory["parameters"] == trained + sum(p.numel() for p in tiny_model(TOKENIZER).parameters())
    some = adapted(settings=LoraSettings(rank=2, targets=("q_proj", "v_proj")))
    assert sum(p.numel() for p in some.parameters() if p.requires_grad) == 2 * 2 * 2 * 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpoints_have_the_adapters_merged(tmp_path, dtype):
    torch.manual_seed(0)
    policy = add_adapters(tiny_model(TOKENIZER, 0, dtype), LORA)
    for name, parameter in policy.named_parameters():
        if ".lora_B" in name:
            assert parameter.dtype == torch.float32
            torch.nn.init.normal_(parameter, std=0.3)
    save_policy(policy, TOKENIZER, tmp_path)
    loaded = load_policy(tmp_path, CPU)
    assert {n for n, _ in loaded.named_parameters()} == {n for n, _ in tiny_model(TOKENIZER).named_parameters()}
    exact = policy.float()
    torch.testing.assert_close(
        token_logprobs(loaded, batch_of(), 1.0)[0], token_logprobs(exact, batch_of(), 1.0)[0], atol=1e-4, rtol=1e-4
    )


def test_unknown_targets_are_refused_with_the_models_layers():
    for target in ("query", "lm_head", "embed_tokens"):
        with pytest.raises(
            SettingsError, match=rf"lora.targets: '{target}' is no linear layer .* down_proj, .* v_proj"
        ):
            adapted(settings=LoraSettings(targets=("q_proj", target)))


def test_without_peft_lora_is_refused_with_advice(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"runs.x.lora: lora needs peft; pip install"):
        from_dict(RunConfig, {"algorithm": "grpo", "seed": 0, "lora": {}}, "runs.x")


def test_no_second_model_is_loaded_for_the_reference(folder):
    config = run_config("ppo", {"kl_coef": 0.1}, lora=LORA, rewards={"reward_model": 1.0})
    learner, models = make_learner(config, str(folder / "policy"), str(folder / "reward_model"), CPU)
    assert set(models) == {"policy", "critic", "reward_model"} and learner.reference.policy is learner.policy
    assert models["reward_model"][0].backbone is None  # that of the policy without its adapters


# smaller critics


def critic_of(folder, **settings):
    policy = load_policy(folder / "policy", CPU)
    config = run_config("ppo", settings).hparams
    return make_critic(config, policy, str(folder / "policy"), None, 0, "float32"), policy


@pytest.mark.parametrize("init", ["policy", "fresh"])
def test_a_critic_may_be_the_first_layers(folder, init):
    critic, policy = critic_of(folder, critic_layers=1, critic_init=init)
    backbone = critic.model.backbone
    assert len(backbone.layers) == backbone.config.num_hidden_layers == 1 and len(policy.base_model.layers) == 2
    values = critic.values(batch_of())
    assert (values == 0).all() and values.shape == ROLLOUTS.response_ids.shape
    if init == "policy":  # its states are the norm of what leaves the policy's first layer
        seen = []
        policy.base_model.layers[0].register_forward_hook(lambda *call: seen.append(call[-1]))
        ids = torch.tensor([PROMPTS[0]])
        policy.base_model(input_ids=ids, use_cache=False)
        states = backbone(input_ids=ids, use_cache=False).last_hidden_state
        torch.testing.assert_close(states, policy.base_model.norm(seen[0]))


def test_a_critic_may_start_from_another_checkpoint(folder):
    other = tiny_model(TOKENIZER, 9, torch.float32)
    save_policy(other, TOKENIZER, folder / "other")
    critic, _ = critic_of(folder, critic_path=str(folder / "other"), critic_layers=2)
    for name, parameter in critic.model.backbone.named_parameters():
        assert torch.equal(parameter, dict(other.base_model.named_parameters())[name])


def test_a_critic_that_cannot_be_is_refused(folder):
    with pytest.raises(SettingsError, match="critic_layers is 3, but the critic's checkpoint has 2 layers"):
        critic_of(folder, critic_layers=3)
    with pytest.raises(SettingsError, match=r"model '.*nothing' cannot be read"):
        critic_of(folder, critic_path=str(folder / "nothing"))
    tokenizer = train_tokenizer(["something else"] * 3, 60)
    save_policy(tiny_model(tokenizer, 0, torch.float32), tokenizer, folder / "other")
    with pytest.raises(SettingsError, match=r"critic_path: .*other must have the policy's tokenizer, but .* differ"):
        critic_of(folder, critic_path=str(folder / "other"))


# one pass for reward model and reference


def judged(folder, config, joint: bool, rollouts):
    """Rewards, reference log-probabilities, and the passes through backbones that they took."""
    learner, models = make_learner(config, str(folder / "policy"), str(folder / "reward_model"), CPU)
    head = models["reward_model"][0]
    assert head.backbone is None and models["reference"][0] is learner.reference
    passes = []
    learner.reference.base_model.register_forward_hook(lambda *_: passes.append(1))
    if not joint:
        head = ScalarModel.load(folder / "reward_model", CPU)
        head.backbone.register_forward_hook(lambda *_: passes.append(1))
        assert shares_prompts(head.backbone)
        passes.clear()
    judge = Rewards(config, TOKENIZER, head, learner.layout(config), learner.reference if joint else None)
    scores = judge.learned(rollouts)
    batch = make_batch(replace(rollouts, ref_logprobs=judge.ref_logprobs), REWARDS, TOKENIZER.pad_token_id)
    batch, _ = prepare(batch, learner, config, config.hparams)
    return scores, batch.ref_logprobs, len(passes), component_memory(**models)


def test_one_pass_gives_scores_and_reference_log_probabilities(folder):
    config = run_config("grpo", {"kl_coef": 0.1}, rewards={"reward_model": 1.0}, temperature=0.8)
    scores, logprobs, passes, memory = judged(folder, config, True, ROLLOUTS)
    two_scores, two_logprobs, two_passes, _ = judged(folder, config, False, ROLLOUTS)
    torch.testing.assert_close(scores, two_scores, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logprobs, two_logprobs, atol=1e-5, rtol=1e-5)
    assert scores.std() > 0.01 and logprobs.abs().max() > 0.1
    assert (passes, two_passes) == (3, 6)
    assert memory["reward_model"]["parameters"] == 17  # the head alone: the weights are the reference's


def test_a_reward_model_with_a_frozen_backbone_is_a_head_on_the_start(folder):
    rows = [
        {"id": f"train/{i}", "prompt": f"{i}+5=", "responses": ["1", "22"], "correct": [True, False]} for i in range(4)
    ]
    for split in ("train", "held_out"):
        write_jsonl(folder / f"{split}.jsonl", [{**row, "pairs": [[0, 1]], "gold_pairs": [[0, 1]]} for row in rows])
    memory = {}
    for frozen in (True, False):
        config = RewardModelConfig(0, freeze_backbone=frozen, device="cpu", dtype="bfloat16")
        reward_model.train(config, str(folder / "policy"), str(folder), str(folder / "rm"), "", 1)
        memory[frozen] = json.loads((folder / "rm" / "run.json").read_text())["memory"]["reward_model"]
        saved = ScalarModel.load(folder / "rm" / "checkpoint", CPU, "bfloat16")
        assert drop_equal_backbone(saved, load_policy(folder / "policy", CPU, "bfloat16")) is frozen
        assert saved.score.weight.abs().max() > 0
    assert memory[True]["gradients"] == 4 * 17 and memory[True]["parameters"] == memory[False]["parameters"]
    assert memory[False]["gradients"] == 4 * memory[False]["parameters"]


def test_another_backbone_stays_the_reward_models_own(folder):
    policy = load_policy(folder / "policy", CPU)
    other = ScalarModel.load(folder / "reward_model", CPU)
    with torch.no_grad():
        other.backbone.norm.weight[0] += 1e-6
    assert not drop_equal_backbone(other, policy) and other.backbone is not None
    config = run_config("grpo", rewards={"reward_model": 1.0})  # no KL, no reference to share with
    _, models = make_learner(config, str(folder / "policy"), str(folder / "reward_model"), CPU)
    assert models["reward_model"][0].backbone is not None


def test_known_reference_log_probabilities_follow_the_groups():
    known = torch.arange(8.0)[:, None].expand(8, 7)
    rollouts = replace(ROLLOUTS, ref_logprobs=known)
    assert rollouts.select_groups([1]).ref_logprobs[:, 0].tolist() == [4, 5, 6, 7]
    joined = Rollouts.join([rollouts.select_groups([1]), rollouts.select_groups([0])], TOKENIZER.pad_token_id)
    assert joined.ref_logprobs[:, 0].tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    assert Rollouts.join([rollouts, ROLLOUTS], TOKENIZER.pad_token_id).ref_logprobs is None


# what is not needed, on the CPU


class Absent(offload.OffloadingPhases):
    """Tensors that are away are NaN where they were: whoever uses one gets NaN."""

    sent: list[int]

    def left_behind(self, tensor, copy):
        self.sent.append(tensor.numel())
        return torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else torch.zeros_like(tensor)


def states(folder, *args):
    """The final weights of a run."""
    return load_policy(folder / "out" / "checkpoint", CPU).state_dict()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_offloading_changes_nothing_and_every_phase_has_what_it_needs(folder, monkeypatch, dtype):
    rows = [{"id": f"train/{i}", "question": "q", "prompt": f"{i}+1=", "answer": f"#### {i + 1}"} for i in range(4)]
    write_jsonl(folder / "train.jsonl", rows)
    save_policy(tiny_model(TOKENIZER, 3, torch.float32), TOKENIZER, folder / "policy")  # not the reward model's
    found = []
    for names in ((), ("optimizer", "critic", "reference", "reward_model")):
        config = run_config(
            "ppo",
            {"kl_coef": 0.1},
            rewards={"reward_model": 1.0},
            steps=3,
            max_response_tokens=8,
            dtype=dtype,
            offload=names,
            optimizer=OptimizerConfig(learning_rate=1e-2),
        )
        if names:
            Absent.sent = []
            monkeypatch.setattr(offload, "worthwhile", lambda device: True)
            monkeypatch.setattr(offload, "OffloadingPhases", Absent)
        train(
            config,
            str(folder / "policy"),
            str(folder / "train.jsonl"),
            str(folder / "out"),
            "",
            1,
            str(folder / "reward_model"),
        )
        found.append(states(folder))
        record = json.loads((folder / "out" / "run.json").read_text())
    assert offload.NO_EFFECT not in record["warnings"] and record["phase_seconds"]["offload"] > 0
    assert len(Absent.sent) > 100
    for name, expected in found[0].items():
        assert torch.equal(found[1][name], expected), name


def test_where_each_phase_wants_what(folder):
    config = run_config("ppo", {"kl_coef": 0.1}, offload=("optimizer", "critic", "reference", "reward_model"))
    learner, _ = make_learner(config, str(folder / "policy"), None, CPU)
    monkey = pytest.MonkeyPatch()
    monkey.setattr(offload, "worthwhile", lambda device: True)
    monkey.setattr(offload, "OffloadingPhases", Absent)
    Absent.sent = []
    phases = offload.make_phases(config, CPU, learner, None)
    monkey.undo()

    def present() -> set[str]:
        found = set()
        for name, model in (("critic", learner.critic), ("reference", learner.reference)):
            if not next(model.parameters()).isnan().any():
                found.add(name)
        return found

    wanted = {
        "generate": set(),
        "synchronize": set(),
        "reward": set(),
        "logprobs": {"critic", "reference"},
        "update": {"critic"},
    }
    for phase, names in wanted.items():
        with phases(phase):
            assert present() == names
    with phases("anything else"):
        assert present() == {"critic", "reference"}


@pytest.mark.parametrize(
    "kl_in, wanted", [("loss", {"optimizer", "critic", "reference"}), ("reward", {"optimizer", "critic"})]
)
def test_a_full_kl_in_the_loss_needs_the_reference_while_updating(folder, monkeypatch, kl_in, wanted):
    config = run_config("ppo", {"kl_coef": 0.1, "kl_estimator": "full", "kl_in": kl_in}, offload=("reference",))
    learner, _ = make_learner(config, str(folder / "policy"), None, CPU)
    monkeypatch.setattr(offload, "worthwhile", lambda device: True)
    assert offload.make_phases(config, CPU, learner, None).needed["update"] == wanted


def test_on_the_cpu_offloading_has_no_effect_and_says_so(loop, capsys):  # noqa: F811
    record, _ = loop("grpo", steps=1, offload=("optimizer",))
    assert "warning: offload has no effect on the CPU" in capsys.readouterr().out
    assert record["warnings"][-1] == "offload has no effect on the CPU, where everything is already."
    assert "offload" not in record["phase_seconds"]


# the loop


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "ppo_shared"])
def test_the_loop_runs_with_all_of_them(loop, algorithm):  # noqa: F811
    record, lines = loop(
        algorithm,
        {"kl_coef": 0.1, "kl_estimator": "k3" if algorithm == "grpo" else "k1"},
        steps=2,
        dtype="bfloat16",
        gradient_checkpointing=True,
        lora=LoraSettings(rank=4),
        optimizer=OptimizerConfig("adamw", learning_rate=1e-2),
    )
    assert record["status"] == "finished" and all(line["grad_norm"] > 0 for line in lines)
    assert lines[0]["kl_to_ref_sequence"] == 0 and lines[1]["kl_to_ref_sequence"] != 0
    assert "reference" not in record["memory"]


def test_trpo_steps_with_adapters(loop):  # noqa: F811
    _, lines = loop("trpo", steps=2, minibatches=1, lora=LoraSettings(rank=4))
    assert all(line["grad_norm"] > 0 for line in lines)


REFUSED = [
    (
        {"algorithm": "trpo", "minibatches": 1, "gradient_checkpointing": True},
        "gradient_checkpointing must be false, got",
    ),
    ({"algorithm": "trpo", "minibatches": 1, "compile": True}, "trpo needs second .* compile must be false, got true"),
    ({"algorithm": "grpo", "offload": ["policy"]}, r"offload\[0\]: 'policy' is unknown.* Allowed: critic, optim"),
    ({"algorithm": "grpo", "lora": {"rank": 0}}, "lora.rank must be above 0, got 0"),
    ({"algorithm": "grpo", "lora": {"ranks": 2}}, "lora, key: 'ranks' is unknown. Did you mean 'rank'"),
    (
        {"algorithm": "ppo", "settings": {"critic_layers": 0}},
        "critic_layers must be above 0, or null, got 0",
    ),
    (
        {"algorithm": "ppo_shared", "settings": {"critic_layers": 1}},
        "critic shared stands on the policy's backbone, whole: critic_layers must be null, got 1",
    ),
    (
        {"algorithm": "ppo", "settings": {"critic_init": "reward_model", "critic_layers": 1}},
        "critic_init reward_model says what the critic starts from: critic_layers must be null, got 1",
    ),
    (
        {"algorithm": "ppo", "settings": {"critic_init": "fresh", "critic_path": "x"}},
        "critic_init fresh says what the critic starts from: critic_path must be null, got x",
    ),
]


@pytest.mark.parametrize("values, message", REFUSED, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_what_cannot_be_is_refused_by_name(values, message):
    with pytest.raises(SettingsError, match=message):
        from_dict(RunConfig, {"seed": 0, **values}, "runs.x")
