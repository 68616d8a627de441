"""Tiny tokenizers in training, for the tests of their tasks."""

from __future__ import annotations

import jax

from jtok.training import optimizer
from jtok.training.losses.adversary import switch_on
from jtok.training.state import create, trainable_names
from jtok.training.step import make_step
from jtok.training.tasks.tokenize_images import default_config

TINY_VQGAN = {"channels": 8, "width": 8, "widths": (8, 16), "blocks": 1, "groups": 4, "style": "maskgit"}


def tiny_titok(config=None, **fields):
    """16 x 16 pixels, four latents."""
    config = default_config() if config is None else config
    small = {"image": 16, "patch": 8, "tokens": 4, "encoder": (32, 1, 2), "decoder": (32, 1, 2)}
    config.tokenizer.fields.update({**small, "codebook": 16, "code_width": 4, **fields})
    config.data.options.update({"size": 16})
    config.train.update({"batch": 8, "steps": 40, "warmup": 0, "lr": 3e-3})
    return config


def with_adversary(config, start=0, **options):
    switch_on(config, lr=1e-3, start=start, weight=0.1, width=8, layers=2, **options)
    return config


def trained(task, steps, batches=None):
    """(states after 0 to `steps` updates, metrics of each): on one batch, or the first of the task's data."""
    config = task.config.train
    params = task.init(jax.random.key(1))
    names = trainable_names(params, task.trainable(params))
    transform = optimizer.build(config)
    state = create(params, names, transform, ema=config.ema > 0, key=jax.random.key(2))
    step = jax.jit(make_step(task, config, names, transform))
    data = iter(task.train_data())
    one, states, metrics = next(data), [state], []
    for i in range(steps):
        state, found = step(state, one if batches is None or i == 0 else next(data))
        states.append(state)
        metrics.append(found)
    return states, metrics
