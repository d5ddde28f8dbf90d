"""What the memory predictor needs to know of a stage."""

from algos.pieces.settings import SettingsError, from_dict
from algos.training.models.config import ModelConfig
from pipelines.study import Study


def memory_arguments(study: Study, name: str) -> tuple[ModelConfig | str, bool]:
    """The model of an RL stage, and whether its reward model is a head on the backbone of its reference."""
    model = from_dict(ModelConfig, only_shape(study, name), "model")
    on_reference = False
    if "reward_model" in study.edges(name):
        reward_model = study.edges(name)["reward_model"]
        same = study.stages[reward_model].edges["from"] == study.edges(name).get("reference", study.edges(name)["from"])
        on_reference = same and study.parsed(reward_model, study.seeds_of(reward_model)[0]).freeze_backbone
    return model.path or model, on_reference


def only_shape(study: Study, name: str) -> dict:
    """The shape of the models of a stage. Raises SettingsError if they are not all of the policy's."""
    origin = study.origin(name)
    for key, target in study.edges(name).items():
        other = study.origin(target)
        if _shape(study, other) != _shape(study, origin):
            raise SettingsError(
                f"STAGE: all models of a stage are taken to be of one shape, but the {key} of {name} descends from "
                f"models.{other}, and its policy from models.{origin}; choose another stage."
            )
    return _shape(study, origin)


def _shape(study: Study, model: str) -> dict:
    """The settings of a model, with the vocabulary of the model whose tokenizer it takes."""
    values, owner = study.model_settings(model), study.tokenizer_of(model)
    if owner is None:
        return values
    from evaluation.memory.closed_form import config_of

    config = config_of(study.model(owner))
    return {**values, "vocab_size": config.get_text_config().vocab_size}
