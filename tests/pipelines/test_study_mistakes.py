"""Mistakes in a study file: each is named in one sentence, with file, line, key, value and what is allowed."""

import pytest
import yaml
from studies import PIPELINES, REMOVED, SMOKE, changed, rl, sft, small

from algos.pieces.settings import SettingsError
from pipelines.study import Study, load

MISTAKES = [
    # the study
    ("seedz", [0], "the study, key: 'seedz' is unknown. Did you mean 'seed"),
    ("seeds", [], "seeds must be different whole numbers"),
    ("seeds", [0, 0], r"seeds must be different whole numbers from 0, at least one, got \[0, 0\]"),
    ("seeds", [-1], r"seeds must be different whole numbers from 0, at least one, got \[-1\]"),
    ("seeds", "0", "seeds must be .*'0'"),
    ("seeds", [0.0], r"seeds.* must be .*got .*0\.0"),
    ("task", REMOVED, "task is missing"),
    ("task/name", "word_problem", "Did you mean 'word_problems'"),
    ("task/settings/stepz", 1, "'stepz' is unknown. .*Allowed: double_share"),
    ("task/test", 0, "test must be above 0"),
    ("dtype", "float16", "dtype.*'float16'.*bfloat16"),
    *(
        ("results", folder, "results: Snakemake reads braces as wildcards, .* choose a folder without, got 'my")
        for folder in ("my {results}", "my <results>", "my}", "my\nresults")
    ),
    ("results", "results/published", "results: results/published holds what is published, got 'results/published'"),
    ("results", "results/x/../published/x", "results: results/published holds what is published"),
    ("study", "published", "study: results/published holds what is published, got 'results/published'"),
    *(("study", name, f"study: '{name}' is no name of a folder; choose another") for name in ("..", ".", "-n", "")),
    ("study", "a/b", "study: 'a/b' is no name of a folder; choose another, or write `results:`"),
    ("evaluation/samples", 0, "samples must be above 0"),
    ("evaluation/reach", {"samples": 513}, "reach.samples must be at most rows_at_once = 512, got 513"),
    ("evaluation/reach", {"samples": 8}, r"evaluation: reach.samples must be above samples = 8, got 8"),
    (
        "evaluation/other_task",
        {"name": "word_problem"},
        "other_task: name: 'word_problem' is unknown. Did you",
    ),
    ("evaluation/other_task", {"name": "word_problems", "test": 0}, "evaluation.other_task.test must be above 0"),
    (
        "evaluation/other_task",
        {"name": "gsm8k", "settings": {"pat": "x"}},
        "other_task.*'pat' is unknown. Did you",
    ),
    ("sampling/temperature", "hot", "sampling.temperature must be"),
    # models
    ("models/base/path", "/no/such/folder", "models.base.path: '/no/such/folder' is neither a folder nor a hub id"),
    ("models/base/path", "./nothing", "neither a folder nor a hub id"),
    ("models/base/hidden_size", 33, "models.base: hidden_size must be a multiple"),
    ("models/student/tokenizer", "bass", "models.student.tokenizer: 'bass' is unknown. Did you mean 'base'"),
    ("models/base/tokenizer", "student", "models.(base|student).tokenizer: .* takes its own from another model"),
    ("models", {}, "models must name at least one, got {}"),
    ("stages", {}, "stages must name at least one, got {}"),
    ("models/train", {}, "models.train: this is the name of a split"),
    ("models/Base", {}, "models.Base: a name is lower-case letters, digits and _"),
    # stages, kinds and defaults
    ("stages/grpo", None, "stages.grpo must be a mapping of settings, got None"),
    ("stages/grpo/kind", REMOVED, "stages.grpo: write `kind:`, one of sft, preferences"),
    ("stages/grpo/kind", "reinforcement", "stages.grpo.kind: 'reinforcement' is unknown. Allowed: distillation"),
    ("stages/trl_grpo/kind", "sft", "stages.trl_grpo.kind is sft, but grpo, which it is like, is of kind rl"),
    ("stages/base", {"kind": "sft"}, "stages.base: there is a model of this name"),
    ("stages/test", {"kind": "sft"}, "stages.test: this is the name of a split"),
    ("stages/cold-start", {"kind": "sft"}, "stages.cold-start: a name is lower-case letters"),
    ("defaults/ppo", {}, "defaults, key: 'ppo' is unknown"),
    ("defaults/rl/dev_every", 0, "dev_every must be above 0, or null, got 0"),
    ("defaults/rl/dev_problems", 11, r"dev_problems is 11, but task.dev is 10; at most that many"),
    ("defaults/rl/learning_rate", 1.0, "defaults.rl, key: 'learning_rate' is unknown"),
    ("defaults/sft/data", "train", "defaults.sft, key: 'data' is unknown. .*Allowed: batch_size, device, .*, threads"),
    ("defaults/rl/reference", "base", "defaults.rl, key: 'reference' is unknown. .*Allowed: algorithm, "),
    ("defaults/preferences", {"path": "x.jsonl"}, "defaults.preferences, key: 'path' is unknown"),
    ("stages/grpo/algorithm", REMOVED, "stages.grpo: write `algorithm: <name>`"),
    ("stages/grpo/algorithm", "grop", "stages.grpo: algorithm: 'grop' is unknown. Did you mean 'grpo'"),
    ("stages/grpo/stepz", 1, "stages.grpo, key: 'stepz' is unknown. Did you mean 'steps'"),
    ("stages/gspo/settings/clip_lo", 0.1, "Did you mean 'clip_low'"),
    ("stages/gspo/settings/clip_low", -1.0, "stages.gspo: settings.clip_low must be at least 0, got -1.0"),
    ("stages/grpo/evaluate", "no", "stages.grpo.evaluate must be true or false, got 'no'"),
    ("stages/accepted/evaluate", True, "stages.accepted.evaluate: a stage of kind rejection_sampling is never"),
    ("stages/grpo/threads", 0, "stages.grpo.threads must be at least 1, got 0"),
    (
        "defaults/rl/optimizer/learning_rate",
        "1e-4",
        "optimizer.learning_rate must be .*number, got '1e-4'. YAML reads 1e-4 as text; write 1.0e-04",
    ),
    ("defaults/rl/group_size", 1, "stages.grpo: group_size must be at least 2 for grpo, got 1"),
    ("defaults/rl/minibatches", 5, "must be a multiple of minibatches, got 5"),
    ("defaults/rl/rewards", {"helpful": 1.0}, "'helpful' is unknown. Allowed: correctness, edit_similarity, format"),
    ("defaults/rl/optimizer/adam_beta1", 2.0, "adam_beta1 must be below 1, got 2.0"),
    ("stages/preferences/responses", 1, "responses must be at least 2"),
    ("stages/expert_iteration/rounds", 0, "stages.expert_iteration.rounds must be above 0, got 0"),
    ("stages/expert_iteration/hint", "so", r"stages.expert_iteration: hint must contain \{answer\} once"),
    ("stages/student_gkd/betta", 1.0, "'betta' is unknown. Did you mean 'beta'"),
    ("stages/student_gkd/beta", 1.5, r"stages.student_gkd.beta must be at most 1, got 1.5"),
    # a value of another form
    ("stages/grpo/kind", ["rl"], r"stages.grpo.kind: \['rl'\] is unknown. .*Allowed: distillation"),
    ("stages/trl_grpo/like", ["grpo"], r"stages.trl_grpo.like: \['grpo'\] is unknown"),
    ("stages/grpo/algorithm", ["grpo"], r"stages.grpo: algorithm: \['grpo'\] is unknown"),
    ("stages/grpo/algorithm", {}, "stages.grpo: algorithm: {} is unknown. Allowed: "),
    ("stages/expert_iteration/sampling", 5, "stages.expert_iteration.sampling must be a mapping, got 5"),
    ("stages/expert_iteration/training", [], r"stages.expert_iteration.training must be a mapping, got \[\]"),
    ("stages/dapo", rl(algorithm="dapo", like="grpo", rewards=3), "stages.dapo.rewards must be a mapping, got 3"),
    ("stages/many", rl(rewards=3, vary={"rewards.format": [0.1]}), "stages.many: rewards must be a mapping, got 3"),
    # edges
    (
        "stages/grpo/from",
        REMOVED,
        "stages.grpo.from is missing: a model, or a stage of kind sft or rl .* There are: ",
    ),
    ("stages/grpo/from", "cold_strat", "stages.grpo.from: 'cold_strat' is unknown. Did you mean 'cold_start'"),
    ("stages/grpo/from", ["base"], r"stages.grpo.from must be the name of one stage or model, got \['base'\]"),
    ("stages/grpo/from", "accepted", "from: accepted is a stage of kind rejection_sampling, but this must be a model"),
    ("stages/grpo/from", "reward_model", "stages.grpo.from: reward_model is a stage of kind reward_model, but"),
    ("stages/grpo/from", "demonstrations", "stages.grpo.from: demonstrations is a split of the data, but this must"),
    ("stages/grpo/from", "grpo_kl", "grpo_kl varies; name one of grpo_kl-kl_coef=0.01, grpo_kl-kl_coef=0.1"),
    ("stages/cold_start/data", "test", "stages.cold_start.data: test is there to measure with; train on train or"),
    ("stages/cold_start/data", "grpo", "stages.cold_start.data: grpo is a stage of kind rl, but this must be a split"),
    ("stages/reward_model/data", "accepted", "stages.reward_model.data: accepted is .* must be a stage of kind pref"),
    ("stages/student_gkd/teacher", "reward_model", "stages.student_gkd.teacher: reward_model is a stage of kind rew"),
    ("stages/student_gkd/teacher", "gpro", "stages.student_gkd.teacher: 'gpro' is unknown. Did you mean"),
    ("stages/ppo_rm/reward_model", REMOVED, "stages.ppo_rm: it needs a reward model; write .* There are: reward_model"),
    ("stages/grpo/reward_model", "reward_model", "stages.grpo.reward_model: without effect, as rewards do not name"),
    ("stages/preferences/from", REMOVED, "stages.preferences: write `from:`, whose responses .*, or `path:`"),
    ("stages/preferences/path", "x.jsonl", "stages.preferences: write `from:`, .* one of them"),
    ("stages/cold_start/from", "grpo", "stages.\\w+.from: a circle, .*cold_start.*; a stage cannot come from itself"),
    ("stages/grpo/from", "grpo", "stages.grpo.from: a circle, grpo -> grpo; a stage cannot come from itself"),
    # like and vary
    ("stages/grpo/like", "grpo", "stages.grpo.like: a circle, grpo -> grpo; remove one `like`"),
    ("stages/trl_grpo/like", "gpro", "stages.trl_grpo.like: 'gpro' is unknown. Did you mean"),
    ("stages/trl_grpo/like", "grpo_kl", "stages.trl_grpo.like: grpo_kl varies; name one of grpo_kl-kl_coef=0.01"),
    ("stages/grpo_kl/vary", {"kl_coeff": [0.1]}, "stages.grpo_kl.vary: 'kl_coeff' is unknown. Did you mean 'kl_coef'"),
    ("stages/grpo_kl/vary", {"kl_coef": 0.1}, "stages.grpo_kl.vary.kl_coef must be a list of at least one value"),
    ("stages/grpo_kl/vary", {"kl_coef": []}, "stages.grpo_kl.vary.kl_coef must be a list of at least one value"),
    ("stages/grpo_kl/vary", {"algorithm": ["grop"]}, "stages.grpo_kl: algorithm: 'grop' is unknown. Did you mean"),
    ("stages/grpo_kl/vary", {"algorithm": ["grpo"], "gae_lambda": [1]}, "grpo_kl.vary: 'gae_lambda' is unknown"),
    ("stages/grpo_kl/vary", {}, "stages.grpo_kl.vary must be a mapping of settings to lists"),
    ("stages/grpo_kl/vary", {"kl_coef": [0.1, 0.1]}, "stages.grpo_kl.vary makes grpo_kl-kl_coef=0.1 twice; two stages"),
    ("stages/grpo_kl/vary", {"kl_coef": ["a b"]}, "a varied value is a number, .* or a plain word, got 'a b'"),
    ("stages/grpo_kl/vary", {"kl_coef": [-1.0]}, "stages.grpo_kl-kl_coef=-1.0: settings.kl_coef must be at least 0"),
    # seeds
    ("stages/grpo/seeds", [], "stages.grpo.seeds must be a list of different whole numbers"),
    ("stages/grpo/seeds", [0, "a"], "stages.grpo.seeds must be a list of different whole numbers"),
    # TRL baselines
    ("stages/trl_ppo/settings", {"clip_high": 0.3}, "stages.trl_ppo: .*TRL's PPO has one clip range"),
    ("stages/ppo/settings/gae_lambda", 0.95, "stages.trl_ppo: .*only with gae_lambda 1 and gamma 1, got 0.95"),
    ("stages/grpo/settings/std_epsilon", 1.0e-6, "stages.trl_grpo: .*TRL's std_epsilon is fixed"),
    ("stages/ppo/critic", "base", "stages.trl_ppo: trainer trl: the critic of the TRL .* write `critic: null`"),
    ("stages/trl_student_gkd/temperature", 0.9, "stages.trl_student_gkd: trainer trl: .*got 0.9"),
    # what a stage would refuse at its start, after all that it follows from
    (
        "stages/student_gkd/data",
        REMOVED,
        "stages.student_gkd: on_policy_share is 0.5, .* given responses; write `data:`",
    ),
    ("prompt", {"chat": True}, "models.base: prompt.chat needs a chat template, .* or set prompt.chat to false"),
    (
        "stages/ppo_rm/settings",
        {"critic_init": "reward_model", "critic_head": "mlp"},
        "stages.ppo_rm.settings: critic_head is mlp, but the critic begins as reward_model, whose head is linear; make",
    ),
    ("stages/grpo/lora", {"targets": ["query"]}, "stages.grpo.lora.targets: 'query' is unknown. .*down_proj, .*v_proj"),
    # more problems than there are
    ("stages/preferences/prompts", 5000, "stages.preferences: prompts is 5000, but task.train is 120"),
    ("stages/accepted/prompts", 121, "stages.accepted: prompts is 121, but task.train is 120"),
    ("defaults/rl/prompts_per_step", 200, "prompts_per_step is 200, but task.train is 120"),
    (
        "stages/expert_iteration/sampling/prompts",
        121,
        "sampling.prompts is 121, but task.train is 120",
    ),
    (
        "defaults/distillation/prompts_per_step",
        121,
        "student_gkd: prompts_per_step is 121, but task.train is 120",
    ),
]


@pytest.mark.parametrize("path, value, message", MISTAKES, ids=lambda x: x if isinstance(x, str) else None)
def test_mistakes_are_named_with_file_key_value_and_what_is_allowed(path, value, message):
    with pytest.raises(SettingsError, match=message) as raised:
        Study(changed(path, value), "studies/mine.yaml")
    assert str(raised.value).startswith("studies/mine.yaml: ") and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "extra, message",
    [
        ({"flip_share": 0.2}, r"stages\.mine: flip_share without effect, as the pairs of `path` are .*; remove it\."),
        ({"prompts": 4, "responses": 4}, r"stages\.mine: prompts, responses without effect, .*; remove them\."),
        ({"vary": {"flip_share": [0.1, 0.2]}}, r"stages\.mine-flip_share=0\.1: flip_share without effect, as the pai"),
    ],
)
def test_settings_of_sampling_beside_pairs_of_ones_own_are_refused(tmp_path, extra, message):
    (tmp_path / "pairs.jsonl").touch()
    own = {"path": str(tmp_path / "pairs.jsonl"), "held_out_share": 0.5}
    Study(small(first=sft(), mine={"kind": "preferences", **own}), "x")
    like = {"like": "sampled", "from": None, **own}
    sampled = {"kind": "preferences", "from": "first", "prompts": 60, "flip_share": 0.2}
    Study(small(first=sft(), sampled=sampled, mine=like), "x")
    with pytest.raises(SettingsError, match=message):
        Study(small(mine={"kind": "preferences", **own, **extra}), "x")


OTHER = {**SMOKE["models"]["base"], "vocab_size": 200}  # a tokenizer of its own


@pytest.mark.parametrize(
    "stage, edge, target",
    [
        ("ppo_rm", "reference", "other"),
        ("ppo_rm", "critic", "other_sft"),
        ("ppo_rm", "reward_model", "other_rm"),
        ("student_gkd", "teacher", "other_sft"),
    ],
)
def test_a_second_model_with_another_tokenizer_is_refused(stage, edge, target, tmp_path):
    config = changed("models/other", OTHER)
    config["stages"] |= {"other_sft": sft("other"), "other_rm": {"like": "reward_model", "from": "other"}}
    config["stages"][stage][edge] = target
    message = f"stages.{stage}.{edge}: {target} has the tokenizer of models.other, but {stage} has that of models.base;"
    with pytest.raises(SettingsError, match=message):
        Study(config, "x")
    for other in ({**OTHER, "vocab_size": 160}, {**OTHER, "tokenizer": "base"}, str(tmp_path)):
        config["models"]["other"] = other  # the same tokenizer; or a loaded one, which the stage compares
        Study(config, "x")


def test_chat_takes_models_with_a_tokenizer_from_elsewhere(tmp_path):
    Study(changed("models/base", str(tmp_path)) | {"prompt": {"chat": True}}, "x")  # the student has the base's


def test_a_study_that_evaluates_nothing_is_refused():
    with pytest.raises(SettingsError, match="stages: none is evaluated, so that the report would be empty; add one"):
        Study(small(only=sft(evaluate=False)), "x")


@pytest.mark.parametrize("section, value", [("models", {}), ("stages", {"like": "grpo"})])
def test_a_name_that_no_folder_can_have_is_refused(section, value):
    with pytest.raises(SettingsError, match=f"{section}.x*: a folder's name has at most 255 bytes; shorten it"):
        Study(changed(f"{section}/{'x' * 256}", value), "x")
    Study(changed(f"{section}/{'x' * 255}", value), "x")


def test_a_stage_with_other_seeds_than_the_stage_it_starts_from_is_refused():
    config = small(first=sft(seeds=[0, 1]), second=rl("first", seeds=[0, 2]))
    message = "stages.second.from: first has the seeds 0, 1, but second runs with seed 2; give first one seed, or the"
    with pytest.raises(SettingsError, match=message):
        Study(config, "x")


@pytest.mark.parametrize(
    "written, wrong, line",
    [
        ("clip_low: 0.03,", "clip_low: -1,", "clip_low: -1"),  # in the stage itself
        ("kind: reward_model,", "kind: reward_modle,", "kind: reward_modle"),
        ("epochs: 1\n    micro", "epochs: 0\n    micro", "epochs: 0"),  # in the defaults of its kind
        ("teacher: grpo", "teacher: grop", "teacher: grop"),
        ("clip_low: 0.2, clip_high: 0.28", "clip_low: 0.2, clip_hihg: 0.28", "clip_hihg"),
        ("seed: 0\n", "sede: 0\n", "sede: 0"),
        ("hidden_size: 32", "hidden_size: 33", "base: {"),
        ("vary: {kl_coef: [0.01, 0.1]}", "vary: {kl_coef: [0.01, -0.1]}", "grpo_kl: {"),  # of the stage that varies
        ("{kl_coef: [0.01, 0.1]}", "{kl_coef: [0.1],\n optimizer.adam_beta1: [2.0]}", "optimizer.adam_beta1"),
        ("{kl_coef: [0.01, 0.1]}", "{kl_coef: [0.1],\n optimizer.adam_beta1: 0.9}", "optimizer.adam_beta1"),
        ("{kl_coef: [0.01, 0.1]}", "{kl_coef: [0.01, 0.1]},\n steps: 0", "steps: 0"),  # beside vary
        ("seeds: [0]\n", "seeds: [-1]\n", "seeds: [-1]"),  # of the study, not of the first stage that has them
        ("clip_low: 0.03,", "\n on: true,", "on: true"),  # a key that is no text
        ("clip_low: 0.03,", "\n 12: true,", "12: true"),
    ],
)
def test_a_message_names_the_line_that_is_wrong(tmp_path, written, wrong, line):
    text = (PIPELINES / "studies" / "smoke.yaml").read_text()
    assert text.count(written) >= 1
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(written, wrong, 1))
    number = next(i for i, row in enumerate(path.read_text().splitlines(), 1) if line in row)
    with pytest.raises(SettingsError) as raised:
        load(path)
    assert str(raised.value).startswith(f"{path}, line {number}: "), raised.value


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    text = (PIPELINES / "studies" / "smoke.yaml").read_text()
    path.write_text(text + "\nstages:\n  other: {kind: sft, from: base, data: train}\n")
    first, second = (i for i, row in enumerate(path.read_text().splitlines(), 1) if row == "stages:")
    with pytest.raises(SettingsError, match=f"line {second}: the key 'stages' stands in line {first} already"):
        load(path)
    path.write_text(text.replace("  gspo:\n", "  grpo: {kind: sft}\n  gspo:\n"))
    with pytest.raises(SettingsError, match=r"the key 'stages\.grpo' stands in line \d+ already"):
        load(path)


def test_a_key_that_yaml_reads_as_a_truth_value_is_named():
    with pytest.raises(SettingsError, match="stages: the key True is no text"):
        Study(yaml.safe_load("study: x\nstages: {on: {kind: rl}}"), "x")
    with pytest.raises(SettingsError, match=r"stages\.one\.settings: the key 1 is no text"):
        Study(yaml.safe_load("study: x\nstages: {one: {settings: {1: 2}}}"), "x")


def test_gsm8k_without_its_files_is_refused():
    config = changed("task", {"name": "gsm8k", "settings": {"path": "/no/such/folder"}})
    with pytest.raises(SettingsError, match=r"/no/such/folder/train\.jsonl does not exist"):
        Study(config, "x")


def test_an_unreadable_study_file_is_refused(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "list.yaml").write_text("- a")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xff")
    cases = {"bad": "not YAML", "none": "No such file", "list": "expected a mapping", "bytes": "not text in UTF-8"}
    for name, message in cases.items():
        with pytest.raises(SettingsError, match=message) as raised:
            load(tmp_path / f"{name}.yaml")
        assert "\n" not in str(raised.value)
