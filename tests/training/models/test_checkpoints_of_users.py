"""Checkpoints as people have them: what is refused at the first stage, and what is put right."""

import pytest
import torch
from folders import edit, imported
from tiny import tiny_model, tiny_tokenizer

from algos.pieces.settings import SettingsError
from algos.training.models.checkpoints import load_policy, positions_of, save_policy
from evaluation.matrix.architectures import tiny_config


@pytest.fixture
def folder(tmp_path):
    made = tiny_tokenizer()
    save_policy(tiny_model(made, dtype=torch.float32), made, tmp_path)
    return tmp_path


@pytest.mark.parametrize("method", ["fp8", "mxfp4", "bitsandbytes", "gptq", "awq", "new"])
def test_quantized_weights_are_refused_by_name(folder, method):
    edit(folder / "config.json", quantization_config={"quant_method": method, "bits": 4, "load_in_8bit": True})
    with pytest.raises(SettingsError, match=rf"is quantized \({method}\).*take the model in bfloat16 or float32"):
        imported(folder)


def test_code_of_a_checkpoints_own_is_not_replaced_in_silence(folder):
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "own.Own"}, architectures=["OwnForCausalLM"])
    with pytest.raises(SettingsError, match=r"needs code of its own for OwnForCausalLM \(auto_map\)"):
        imported(folder)
    for own in ("Qwen2ForCausalLM", "QWen2ForCausalLM"):  # transformers has it by now
        edit(folder / "config.json", architectures=[own])
        imported(folder)


def test_a_checkpoint_that_names_no_architecture_is_tried(folder):
    edit(folder / "config.json", architectures=None)
    imported(folder)


def test_settings_of_output_do_not_reach_the_stages(folder):
    edit(folder / "config.json", return_dict=False, output_attentions=True, output_hidden_states=True)
    model, _ = imported(folder)
    assert model.config.return_dict and not model.config.output_attentions and not model.config.output_hidden_states


@pytest.mark.parametrize("stop, known", [("</s>", False), ([1, "2"], False), ([1, 2], True)])
def test_an_end_token_is_an_id(folder, stop, known):
    edit(folder / "generation_config.json", eos_token_id=stop)
    if known:
        imported(folder)
    else:
        with pytest.raises(SettingsError, match=r"eos_token_id holds '.*', which is not the id of a token"):
            imported(folder)


@pytest.mark.parametrize("names, found", [(["default", "tool_use"], True), (["rag", "tool_use"], False)])
def test_of_several_chat_templates_the_default_one_is_taken(folder, names, found):
    text = "{% for m in messages %}{{ m.content }}{% endfor %}<|end|>"
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    edit(folder / "tokenizer_config.json", chat_template=[{"name": name, "template": text} for name in names])
    assert imported(folder)[1].chat_template == (text if found else None)
    if found:
        imported(folder, chat=True)
    else:
        with pytest.raises(SettingsError, match="its chat templates are called rag, tool_use; one must be"):
            imported(folder, chat=True)


def test_longrope_counts_the_positions_of_its_original_context():
    """Beyond it a text's keys would depend on the longest text of its batch: log-probabilities were 4 nats off."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4}
    made = tiny_config("phi3", rope_parameters=rope, original_max_position_embeddings=16, max_position_embeddings=64)
    model = torch.nn.Module()
    model.config = made
    assert positions_of(model) == 16
    model.config = tiny_config("phi3")
    assert positions_of(model) == 64


def test_block_sparse_attention_and_failing_code_are_refused_in_one_sentence(folder, monkeypatch):
    model = load_policy(folder, torch.device("cpu"))
    monkeypatch.setattr("algos.training.models.imports.load_policy", lambda *_, **__: model)
    for kind in ("new_sparse", "heavily_compressed_attention"):
        model.config.layer_types = [kind]
        with pytest.raises(SettingsError, match="its attention counts blocks from the first token, padding or not"):
            imported(folder)
    model.config.layer_types = ["full_attention"]
    monkeypatch.setattr(type(model), "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(SettingsError, match=r"it cannot be sampled from \(ZeroDivisionError: division by zero\)"):
        imported(folder)


def test_weights_of_other_shapes_than_the_config_says_are_named(folder):
    edit(folder / "config.json", intermediate_size=7)
    with pytest.raises(
        SettingsError, match=r"cannot be read: its weights have other shapes than its config\.json says"
    ):
        imported(folder)


def test_the_reason_is_given_where_the_first_line_only_announces_it(folder):
    edit(folder / "config.json", layer_types=["no_such_attention"] * 2)
    with pytest.raises(SettingsError, match="layer_types"):
        imported(folder)
