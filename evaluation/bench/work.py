"""How much arithmetic and memory traffic a step needs at least, from the model's shape alone.

P prompt tokens, T response tokens, L = P + T, rows = responses. A matrix of n parameters takes 2 n FLOPs a token
forward and 4 n backward. Convention: the prompt is counted for every response that is trained on and once per group
where responses are sampled; the output head at response tokens only; no padding, no recomputation.
"""

from dataclasses import dataclass

from evaluation.bench.workload import Shape


def body_parameters(shape: Shape) -> int:
    """Weights of all layers' matrices."""
    width, head = shape.hidden_size, shape.hidden_size // shape.heads
    attention = 2 * width * width + 2 * width * head * shape.key_value_heads
    return shape.layers * (attention + 3 * width * shape.intermediate_size)


def head_parameters(shape: Shape) -> int:
    return shape.vocab_size * shape.hidden_size


def attention_flops(shape: Shape, tokens: float, start: float = 0) -> float:
    """Of one row's causal attention, forward, over positions start .. start + tokens: each sees all up to its own."""
    pairs = tokens * start + tokens * (tokens + 1) / 2
    return 4 * shape.layers * shape.hidden_size * pairs


def forward_flops(shape: Shape, prompt: float, response: float, rows: int, head: bool = True) -> float:
    """One pass over prompts and responses; without the head for a critic."""
    length = prompt + response
    per_row = 2 * body_parameters(shape) * length + attention_flops(shape, length)
    return rows * (per_row + (2 * head_parameters(shape) * response if head else 0))


def generate_flops(shape: Shape, prompt: float, response: float, rows: int, groups: int) -> float:
    """Prompts once per group, then one token a row and step."""
    per_token = 2 * body_parameters(shape) + 2 * head_parameters(shape)
    prompts = groups * (2 * body_parameters(shape) * prompt + attention_flops(shape, prompt))
    return prompts + rows * (per_token * response + attention_flops(shape, response, prompt))


def decode_bytes(shape: Shape, prompt: float, response: float, rows: int, element: int = 4) -> float:
    """Read by `response` decoding steps: all weights at each, and each row's keys and values so far."""
    weights = (body_parameters(shape) + head_parameters(shape)) * element
    per_position = 2 * shape.layers * shape.key_value_heads * (shape.hidden_size // shape.heads) * element
    positions = rows * (response * prompt + response * (response + 1) / 2)
    return response * weights + per_position * positions


@dataclass(frozen=True)
class StepWork:
    """FLOPs of the phases of one step; a critic of its own, if any, is of the policy's size. passes: old, reference."""

    shape: Shape
    prompt: float
    response: float
    rows: int
    groups: int
    separate_critic: bool = False
    passes: int = 1  # of the policy or reference over the rollouts without gradient

    @property
    def flops(self) -> dict[str, float]:
        forward = forward_flops(self.shape, self.prompt, self.response, self.rows)
        critic = forward_flops(self.shape, self.prompt, self.response, self.rows, head=False)
        critic = critic if self.separate_critic else 0.0
        return {
            "generate": generate_flops(self.shape, self.prompt, self.response, self.rows, self.groups),
            "logprobs": self.passes * forward + critic,
            "update": 3 * (forward + critic),
        }

    @property
    def tokens(self) -> dict[str, float]:
        """What a phase's tokens per second count: responses where they are sampled, else prompts too."""
        both = self.rows * (self.prompt + self.response)
        return {"generate": self.rows * self.response, "logprobs": both, "update": both}
