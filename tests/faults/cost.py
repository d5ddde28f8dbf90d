"""What saving costs: the seconds of a save, and their share of a run of 30 minutes that saves every ten.

    python -m tests.faults.cost --folder DIR_ON_THE_DISK_IN_QUESTION

The states are those of policies with AdamW, made without training. All bytes are brought to the disk, as in a stage.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from algos.training.models.checkpoints import build_model
from algos.training.models.config import ModelConfig
from algos.training.stage.config import OptimizerConfig, Saving
from algos.training.stage.record import Phases, Record
from algos.training.stage.saves import Saves
from algos.training.supervised.sft import State
from algos.training.update.optimize import make_optimizer
from tests.tiny import tiny_tokenizer

RUN_SECONDS, SAVES = 1800, 2  # after 10 and 20 minutes; the run ends when the third is due
SHAPES = {  # hidden size, layers, heads, intermediate size
    "default study": ModelConfig(hidden_size=128, layers=3, heads=4, intermediate_size=352),
    "10 million": ModelConfig(hidden_size=384, layers=6, heads=6, intermediate_size=1024),
    "135 million": ModelConfig(hidden_size=768, layers=18, heads=12, intermediate_size=2048),
}


def measure(shape: ModelConfig, out: Path) -> tuple[int, int, float]:
    """Parameters, bytes and seconds of a save, the mean of three."""
    policy = build_model(shape, tiny_tokenizer(), 0)
    state = State(policy, *make_optimizer(policy, OptimizerConfig(), 10))
    for parameter in policy.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    state.optimizer.step()
    saves = Saves(out, Saving(), [])
    Record(out, "sft", {}, 1, saves)
    saves.hold(state, Phases())
    for _ in range(3):
        saves.save()
    newest = max((out / "resume").iterdir())
    size = sum(path.stat().st_size for path in newest.iterdir())
    saves.clear()
    return sum(p.numel() for p in policy.parameters()), size, saves.seconds / saves.count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--folder", type=Path, help="where the states are written (default: the folder of temporaries)")
    args = parser.parse_args()
    print(f"{'model':<16}{'parameters':>14}{'bytes':>16}{'seconds':>10}{'of 30 minutes':>16}")
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
            parameters, size, seconds = measure(shape, Path(scratch))
        share = f"{SAVES * seconds / RUN_SECONDS:.3%}"
        print(f"{name:<16}{parameters:>14,}{size:>16,}{seconds:>10.2f}{share:>16}", flush=True)


if __name__ == "__main__":
    main()
