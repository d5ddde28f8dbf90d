"""What jobs ask of a cluster: enough memory and time, and GPUs only where there are some."""

import pytest
import torch
from studies import FILES, rl, sft, small
from tiny import tiny_model, tiny_tokenizer

from algos.training.models.checkpoints import save_policy
from algos.training.models.config import ModelConfig
from evaluation.memory.closed_form import built_config, built_shape, named_shape, shape_of
from pipelines.study import Study, load
from pipelines.workflow.resources import (
    CUDA,
    MB,
    START,
    UNKNOWN,
    gpus,
    memory,
    minutes,
    model_memory,
    policy_shape,
    saved_shape,
)
from pipelines.workflow.work import Work, of_evaluation, of_stage

SHAPE = built_shape(ModelConfig())


def test_reach_and_another_task_count_in_the_work_of_an_evaluation_on_the_test_problems():
    smoke = load(next(file for file in FILES if file.stem == "smoke"))
    assert of_evaluation(smoke, 2).sampled == 2 * 24 * (20 * 9 + 10 * 9 + 5 * 16)
    assert of_evaluation(smoke, 2, "dev").sampled == 2 * 24 * 10 * 9


def study(**stages: dict) -> Study:
    return Study(small(**stages), "test")


@pytest.mark.parametrize(
    "device, granted, asked",
    [("cpu", 4, None), ("auto", 0, None), ("auto", 4, 1), ("cuda", 0, 1), ("cuda:1", 4, 1)],
)
def test_a_gpu_is_asked_for_where_the_study_wants_one_or_may_have_one(device, granted, asked):
    assert gpus(device, granted) == asked


def test_the_shape_of_a_model_built_here_is_counted_without_building_it():
    model = ModelConfig(vocab_size=96, hidden_size=24, layers=2, heads=3, intermediate_size=40)
    assert built_shape(model) == shape_of(built_config(model))


def test_the_shape_of_a_saved_model_is_read_from_its_folder(tmp_path):
    tokenizer = tiny_tokenizer()
    save_policy(tiny_model(tokenizer, 0, torch.float32), tokenizer, tmp_path / "model")
    shape, exact = saved_shape(str(tmp_path / "model")), shape_of(tiny_model(tokenizer, 0, torch.float32).config)
    assert (shape.layers, shape.hidden, shape.vocabulary) == (exact.layers, exact.hidden, exact.vocabulary)
    assert shape.kv_bytes(7) == exact.kv_bytes(7)
    assert shape.parameters == pytest.approx(exact.parameters, rel=0.1)  # the file has a header


def test_a_model_that_is_not_loaded_yet_has_a_shape_once_its_checkpoint_is_there(tmp_path):
    """Snakemake asks again later where a function misses one of the job's input files, by the name that the job has."""
    loaded = study(a=sft())
    loaded.settings.models["base"] = {"path": "someone/model"}
    missing = str(tmp_path / "checkpoint")
    with pytest.raises(FileNotFoundError) as error:
        policy_shape(loaded, "a", missing)
    assert error.value.filename == missing


def test_ppo_asks_for_more_than_grpo_and_a_bigger_batch_for_more_than_a_small_one():
    ppo, grpo = study(a=rl(algorithm="ppo")), study(a=rl())
    asked = {s: memory(of_stage(s, "a"), named_shape("qwen2.5-0.5b"), gpu=None) for s in (ppo, grpo)}
    assert asked[ppo] > asked[grpo]
    few, many = (of_stage(study(a=sft(batch_size=size)), "a") for size in (4, 64))
    assert memory(few, SHAPE, None) < memory(many, SHAPE, None) and minutes(few, SHAPE, None, 1) < minutes(
        many, SHAPE, None, 1
    )


def test_the_predicted_peak_of_a_run_with_half_a_billion_parameters_fits():
    """Predicted by the dry run for GRPO's defaults, in float32 and micro-batches of 4,096 tokens: 21.4 GB."""
    work = of_stage(study(a=rl(prompts_per_step=32, group_size=8, micro_batch_tokens=4096)), "a")
    assert 21_400 < memory(work, named_shape("qwen2.5-0.5b"), gpu=None) < 2 * 21_400


def test_on_a_gpu_the_host_holds_the_weights_and_what_is_offloaded():
    work = of_stage(study(a=rl()), "a")
    on_gpu, offloaded = (memory(w, named_shape("qwen2.5-7b"), gpu=1) for w in (work, Work("cuda", 1, 0, offload=True)))
    assert CUDA / MB + 2 * 4 * 7_600 < on_gpu < offloaded - 15 * 7_600  # 16 bytes a trained parameter


def test_more_threads_and_a_gpu_take_less_time():
    work = of_stage(study(a=rl(steps=10_000, max_response_tokens=1000)), "a")
    one, eight, gpu = (minutes(work, SHAPE, *where) for where in ((None, 1), (None, 8), (1, 1)))
    assert START < gpu < eight < one


def test_a_job_without_a_model_asks_for_the_process_alone():
    assert memory(Work("auto"), None, None) > 0 and minutes(Work("auto"), None, None, 1) == START


def test_a_model_asks_for_its_files_and_one_of_the_hub_for_a_fixed_amount(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(10**6))
    built, folder = model_memory(ModelConfig()), model_memory(ModelConfig(path=str(tmp_path)))
    assert built and folder == built + 3 and model_memory(ModelConfig(path="someone/model")) == UNKNOWN
    (tmp_path / "model.gguf").write_bytes(bytes(10**6))
    assert model_memory(ModelConfig(gguf=str(tmp_path / "model.gguf"))) == built + 12


def test_fewer_responses_side_by_side_take_an_evaluation_longer():
    works = {}
    for rows in (512, 32):
        config = small(one=sft()) | {"evaluation": {"samples": 8, "rows_at_once": rows}}
        works[rows] = of_evaluation(Study(config, "test"), 1)
    assert works[32].rows == 32 and works[32].positions > 2 * works[512].positions


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_kind_of_stage_in_every_study_has_a_request(path):
    made = load(path)
    for name in {stage.kind: name for name, stage in made.stages.items()}.values():
        works = [
            of_stage(made, name),
            *([of_evaluation(made, len(made.seeds_of(name)))] if name in made.evaluated else []),
        ]
        assert all(memory(work, SHAPE, gpu) > 0 for work in works for gpu in (None, 1))
        assert all(minutes(work, SHAPE, gpu, 1) >= START for work in works for gpu in (None, 1))
