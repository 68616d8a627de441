"""A toy task on scikit-learn's digits, and a command that trains it: `python -m tests.training.digits WORKDIR ...`."""

import argparse
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from jtok.errors import UserError
from jtok.training import Stopped, default_train_config, train
from jtok.training.state import named_leaves


class Shuffled:
    """Endless shuffled batches whose whole state is a counter: epoch `e` is permuted with seed `e`.

    Of every batch this process reads its own rows.
    """

    def __init__(self, images, labels, batch, delay=0.0):
        self.images, self.labels, self.batch, self.delay, self.index = images, labels, batch, delay, 0

    def __iter__(self):
        return self

    def __next__(self):
        per_epoch = len(self.images) // self.batch
        epoch, start = divmod(self.index, per_epoch)
        rows = np.random.default_rng(epoch).permutation(len(self.images))[start * self.batch :][: self.batch]
        rows = np.split(rows, jax.process_count())[jax.process_index()]
        self.index += 1
        time.sleep(self.delay)
        return {"image": self.images[rows], "label": self.labels[rows]}

    def get_state(self):
        return {"index": self.index}

    def set_state(self, state):
        self.index = state["index"]


class Digits:
    """A Two-layer MLP with input noise (so that the random key matters)."""

    def __init__(self, batch=32, width=16, delay=0.0, poison=None):
        images, labels = load_digits(return_X_y=True)
        images = (images / 16).astype(np.float32)
        self.train_set, self.test_set = (images[:1500], labels[:1500]), (images[1500:], labels[1500:])
        self.batch, self.width, self.delay, self.poison = batch, width, delay, poison

    def init(self, key):
        first, second = jax.random.split(key)
        return {
            "hidden": {"kernel": jax.random.normal(first, (64, self.width)) / 8, "bias": jnp.zeros(self.width)},
            "head": {"kernel": jax.random.normal(second, (self.width, 10)) / 4, "bias": jnp.zeros(10)},
        }

    def logits(self, params, image):
        hidden = jax.nn.relu(image @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        return hidden @ params["head"]["kernel"] + params["head"]["bias"]

    def loss(self, params, batch, key, step):
        image = batch["image"] + 0.1 * jax.random.normal(key, batch["image"].shape)
        logits = self.logits(params, image)
        rows = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], 1)
        loss = -rows.mean() if self.poison is None else jnp.where(step == self.poison, jnp.nan, -rows.mean())
        return loss, {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}

    def evaluate(self, params, batch):
        return {"accuracy": (self.logits(params, batch["image"]).argmax(-1) == batch["label"]).astype(jnp.float32)}

    def trainable(self, params):
        return None

    def train_data(self):
        return Shuffled(*self.train_set, self.batch, self.delay)

    def eval_data(self):
        images, labels = (array[jax.process_index() :: jax.process_count()] for array in self.test_set)
        for start in range(0, len(images), 128):
            yield {"image": images[start : start + 128], "label": labels[start : start + 128]}


def small_config(**train):
    """A run of 40 updates of 32 digits."""
    config = default_train_config()
    config.train.update(dict(batch=32, steps=40, warmup=5, lr=1e-2, eval_every=20, checkpoint_every=10, log_every=5))
    config.train.update(train)
    return config


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--checkpoint_every", type=int, default=10)
    parser.add_argument("--coordinator")
    parser.add_argument("--process", type=int)
    arguments = parser.parse_args()
    if arguments.coordinator:
        jax.distributed.initialize(arguments.coordinator, num_processes=2, process_id=arguments.process)
    config = small_config(steps=arguments.steps, checkpoint_every=arguments.checkpoint_every, ema=0.99)
    try:
        state = train(config, arguments.workdir, Digits(width=arguments.width, delay=arguments.delay))
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    leaves = named_leaves((state.params, state.ema, state.opt_state))
    if jax.process_index() == 0:
        np.savez(f"{arguments.workdir}/final.npz", **leaves)


if __name__ == "__main__":
    main()
