"""To be imported before TRL's trainers: TRL then does not find vLLM.

TRL 1.12 imports the client of vLLM wherever vLLM is installed, whether a trainer uses it or not. It knows vLLM up to
0.27.1: beside vLLM 0.31.0 its GRPOTrainer cannot be imported at all. TRL baselines sample with transformers.
"""

from importlib import import_module

vars(import_module("trl.import_utils"))["is_vllm_available"] = lambda min_version=None: False
