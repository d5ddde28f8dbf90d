"""Rewards that know nothing of the answer: what a policy learns from them is owed to training alone."""

from hashlib import blake2b


def coin(prompts, responses, answers, rows):
    """0 or 1 with equal chances. A hash: the same batch gets the same, and places tell equal responses apart."""
    pairs = enumerate(zip(prompts, responses, strict=True))
    return [float(_bit(f"{place} {prompt} {response}")) for place, (prompt, response) in pairs]


def _bit(text: str) -> int:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=1).digest()[0] & 1
