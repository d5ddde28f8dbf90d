"""The algorithms under comparison, one file each, and the table of all of them.

To add an algorithm: its file here, its line in FILES, a stage in the study file. A study may name a file that lies
elsewhere instead, `algorithm: my/variant.py`, and `python -m algos check my/variant.py` runs the conformance tests on
it. The project's README.md shows an example. `python -m algos list` prints the table, `python -m algos describe NAME`
an algorithm's equation and hyperparameters.
"""

import re
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing this package alone imports no torch
    from algos.pieces.algorithm import Algorithm

    ALGORITHMS: dict[str, Algorithm]

FILES = {  # name in the study file -> module that defines ALGORITHM, or module:NAME of another entry
    "reinforce": "algos.reinforce",
    "reinforce_batch": "algos.reinforce:BATCH_BASELINE",
    "reinforce_group": "algos.reinforce:GROUP_BASELINE",
    "opo": "algos.reinforce:LENGTH_WEIGHTED",
    "rloo": "algos.rloo",
    "remax": "algos.remax",
    "gpg": "algos.gpg",
    "pass_at_k": "algos.pass_at_k",
    "reinforce_pp": "algos.reinforce_pp",
    "reinforce_pp_baseline": "algos.reinforce_pp:BASELINE",
    "decoupled_ppo": "algos.decoupled_ppo",
    "ppo": "algos.ppo",
    "ppo_mc": "algos.ppo_variants:MONTE_CARLO",
    "ppo_shared": "algos.ppo_variants:SHARED",
    "ppo_shared_mlp": "algos.ppo_variants:SHARED_MLP",
    "ppo_adaptive_kl": "algos.ppo_variants:ADAPTIVE_KL",
    "ppo_penalty": "algos.ppo_penalty",
    "trpo": "algos.trpo",
    "grpo": "algos.grpo",
    "dr_grpo": "algos.dr_grpo",
    "grpo_off_policy_mask": "algos.grpo_off_policy_mask",
    "grpo_geometric_mask": "algos.grpo_geometric_mask",
    "dapo": "algos.dapo",
    "top_entropy": "algos.top_entropy",
    "lite_ppo": "algos.lite_ppo",
    "maxrl": "algos.maxrl",
    "gspo": "algos.gspo",
    "gspo_token": "algos.gspo:TOKEN",
    "luspo": "algos.luspo",
    "cispo": "algos.cispo",
    "m2po": "algos.m2po",
    "clip_cov": "algos.clip_cov",
    "kl_cov": "algos.clip_cov:KL",
    "dppo": "algos.dppo",
    "dppo_kl": "algos.dppo:KL",
    "vespo": "algos.vespo",
    "topr": "algos.topr",
    "dro": "algos.dro",
    "gmpo": "algos.gmpo",
    "sapo": "algos.sapo",
    "raft": "algos.raft",
    "grpo_as_trl": "algos.presets:GRPO_AS_TRL",
    "grpo_as_verl": "algos.presets:GRPO_AS_VERL",
    "grpo_as_openrlhf": "algos.presets:GRPO_AS_OPENRLHF",
    "grpo_as_open_instruct": "algos.presets:GRPO_AS_OPEN_INSTRUCT",
    "grpo_as_nemo": "algos.presets:GRPO_AS_NEMO",
    "grpo_as_skyrl": "algos.presets:GRPO_AS_SKYRL",
    "grpo_as_slime": "algos.presets:GRPO_AS_SLIME",
    "grpo_as_areal": "algos.presets:GRPO_AS_AREAL",
    "grpo_as_torchtitan": "algos.presets:GRPO_AS_TORCHTITAN",
    "dppo_as_prime_rl": "algos.presets:DPPO_AS_PRIME_RL",
    "reinforce_as_tinker": "algos.presets:REINFORCE_AS_TINKER",
    "scalerl": "algos.presets:SCALERL",
    "ppo_as_trl": "algos.presets:PPO_AS_TRL",
    "ppo_as_verl": "algos.presets:PPO_AS_VERL",
    "ppo_as_openrlhf": "algos.presets:PPO_AS_OPENRLHF",
    "gspo_as_paper": "algos.presets:GSPO_AS_PAPER",
    "gspo_unclipped": "algos.presets:GSPO_UNCLIPPED",
}


OWN = re.compile(r"(.+\.py)(?::(\w+))?")  # a file of the user's own in place of a name, as FILE.py or FILE.py:NAME


class Table(dict):
    """The algorithms by name. A path in place of a name gives the algorithm that the file defines."""

    def __missing__(self, name):
        if not isinstance(name, str) or not OWN.fullmatch(name):
            raise KeyError(name)
        return own(name)

    def __contains__(self, name) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and OWN.fullmatch(name) is not None)


def own(place: str, where: str = "algorithm") -> "Algorithm":
    """The entry that a user's own file defines. Raises SettingsError if there is no such file or entry."""
    from algos.own_code import from_file
    from algos.pieces.algorithm import Algorithm

    return from_file(place, "ALGORITHM", Algorithm, where)


def load(place: str) -> "Algorithm":
    module, _, name = place.partition(":")
    return getattr(import_module(module), name or "ALGORITHM")


def check_name(name: object, where: str) -> None:
    """Raise SettingsError unless name is an algorithm of the table, or the path of a file that defines one."""
    from algos import ALGORITHMS
    from algos.pieces.settings import one_of

    if isinstance(name, str) and OWN.fullmatch(name):
        own(name, where)
    else:
        one_of(name, list(ALGORITHMS), where)


def __getattr__(name: str):
    """ALGORITHMS is made at its first use, so that importing a piece or a task imports no algorithm."""
    if name != "ALGORITHMS":
        raise AttributeError(name)
    globals()[name] = Table({algorithm: load(place) for algorithm, place in FILES.items()})
    return globals()[name]
