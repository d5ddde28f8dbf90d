"""Settings of a language model that a study starts from."""

from pydantic import PositiveFloat, PositiveInt

from algos.pieces.settings import settings

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # of a model built here


@settings
class ModelConfig:
    """A language model: a path or hub id, a GGUF file, or the shape of a new Qwen2-style transformer."""

    path: str | None = None  # folder with a causal LM and its tokenizer, or a hub id; null: build one
    gguf: str | None = None  # a GGUF file with a causal LM and its tokenizer; its quantized weights are expanded
    package: str | None = None  # an installed Python package that holds one GGUF file
    revision: str | None = None  # of a hub id: a commit, so that the same model is loaded next year
    vocab_size: PositiveInt = 320  # of the BPE tokenizer trained on the task's text
    hidden_size: PositiveInt = 128
    layers: PositiveInt = 3
    heads: PositiveInt = 4
    intermediate_size: PositiveInt = 352
    max_positions: PositiveInt = 512
    initializer_range: PositiveFloat | None = None  # std of the initial weights; null: 1 / sqrt(hidden_size)
    # transformers' 0.02 suits widths above 1,000: at 128 it halves what the cold start learns in the same time

    @property
    def source(self) -> str | None:
        """Where the model is loaded from; None if it is built."""
        return self.path or self.gguf or self.package

    @property
    def built(self) -> bool:
        return self.source is None

    def __post_init__(self):
        given = [name for name in ("path", "gguf", "package") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} name two models; keep one")
        if self.built and self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden_size must be a multiple of 2 x heads (rotary embeddings need an even size per "
                f"head), got {self.hidden_size} for {self.heads} heads"
            )
