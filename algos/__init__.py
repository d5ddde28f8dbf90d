"""The algorithms under comparison, one file each, and the table of all of them.

To add one: its file here, its line in FILES, a run in the study file. README.md shows an example.
"""

from importlib import import_module

from algos.algorithm import Algorithm

FILES = {  # name in the study file -> its module, which defines ALGORITHM
    "ppo": "algos.ppo",
    "grpo": "algos.grpo",
    "gspo": "algos.gspo",
}
ALGORITHMS: dict[str, Algorithm] = {name: import_module(module).ALGORITHM for name, module in FILES.items()}
