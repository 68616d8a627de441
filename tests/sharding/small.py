"""A small ViT on digit scenes, trained for ten updates: `python -m tests.sharding.small WORKDIR [--fsdp N] ...`.

Environment variables say how many processes and devices there are.
"""

import argparse
import sys

import jax
import numpy as np

from jtok import distributed
from jtok.errors import UserError
from jtok.sharding import gather
from jtok.training import train
from jtok.training.state import named_leaves
from jtok.training.tasks.classify import Classify, default_config


def small_config(steps: int = 10, method: str = "none"):
    """8 x 8 patches, 2 blocks of 4 heads; averaged parameters, so that every part of a state is there."""
    config = default_config()
    # without biases of queries and keys: that of keys changes nothing, and Adam makes noise of its gradient of nothing
    config.model.fields.update({"width": 32, "depth": 2, "heads": 4, "mlp": 64, "qkv_bias": False})
    config.plan.method, config.plan.keep = method, 0.5 if method != "none" else 1.0
    config.data.options.length = 64
    config.data.eval_batch = 30  # of 50 images: a short last batch, and one that four devices do not divide
    config.train.update({"batch": 16, "steps": steps, "warmup": 2, "lr": 1e-2, "ema": 0.9})
    config.train.update({"eval_every": 5, "checkpoint_every": 5, "log_every": 1})
    return config


class Short(Classify):
    """Evaluates on the first 50 images."""

    def dataset(self, split):
        return super().dataset(split)[:50] if split != "train" else super().dataset(split)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--method", default="none")
    given = parser.parse_args()
    try:
        distributed.initialize()
        config = small_config(given.steps, given.method)
        config.train.batch = given.batch
        config.mesh.update({"fsdp": given.fsdp, "tensor": given.tensor})
        state = train(config, given.workdir, Short(config), progress=False)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    leaves = gather(named_leaves((state.params, state.ema, state.opt_state)))
    if jax.process_index() == 0:
        np.savez(f"{given.workdir}/final.npz", **leaves)
    return 0


if __name__ == "__main__":
    sys.exit(main())
