"""The fields a training run reads, with defaults, and the check that they make sense."""

from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from jtok.errors import UserError


def default_plan_config() -> ml_collections.ConfigDict:
    """`config.plan`: a method (or several joined by +), the share that it keeps (None: its own) and its options.

    Options of one of several methods are nested: `config.plan.options.fastv.layer`.
    """
    options = ml_collections.ConfigDict()
    return ml_collections.ConfigDict({"method": "none", "keep": config_dict.placeholder(float), "options": options})


def plan_options(plan: ml_collections.ConfigDict) -> dict[str, Any]:
    """The options that `make_plan` takes for `config.plan`."""
    return flat_options(plan.method, plan.options.to_dict())


def flat_options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with those of one of several methods as `fastv.layer`, since a config's keys cannot contain dots."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        is_nested = name in method.split("+") and isinstance(value, Mapping)
        flat |= {f"{name}.{option}": v for option, v in value.items()} if is_nested else {name: value}
    return flat


def default_train_config() -> ml_collections.ConfigDict:
    """A config with `seed`, `mesh` and `train`; experiments add their own sections."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    # all devices form a mesh data x fsdp x tensor, data taking what is left (see jtok.sharding)
    config.mesh = ml_collections.ConfigDict({"fsdp": 1, "tensor": 1})
    config.train = train = ml_collections.ConfigDict()
    train.batch = 128  # rows per update, over all devices and processes
    train.steps = 1000  # updates
    train.optimizer = "adamw"  # or muon: hidden kernels by Muon, the rest by AdamW
    train.lr = 1e-3  # peak learning rate
    train.min_lr = 0.0  # learning rate of the last update
    train.warmup = 100  # updates over which the rate rises linearly to its peak
    train.weight_decay = 0.05  # AdamW, on kernels and embedding tables only
    train.clip = 1.0  # global gradient norm; 0 = no clipping
    train.b1 = 0.9
    train.b2 = 0.999
    train.parts = ml_collections.ConfigDict()  # parts of the parameters with an optimizer of their own: {lr, start}
    train.ema = 0.0  # decay of the averaged parameters used for evaluation; 0 = off
    train.accumulate = 1  # micro-batches per update; must divide `batch`
    train.dtype = "float32"  # compute type, read by the task; parameters stay float32
    train.remat = False  # recompute layers in the backward pass, read by the task
    train.eval_every = 500  # updates; 0 = only at the end
    train.checkpoint_every = 500  # updates; 0 = only at the end
    train.keep = 2  # checkpoints kept
    train.log_every = 50  # updates
    return config


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises UserError, naming the field, if `config.train` cannot be run."""
    train = config.train
    missing = sorted(set(default_train_config().train) - set(train))
    if missing:
        raise UserError(f"config.train lacks {', '.join(missing)}: start from jtok.training.default_train_config()")
    rules = [
        ("batch", train.batch >= 1, "at least 1"),
        ("steps", train.steps >= 1, "at least 1"),
        ("optimizer", train.optimizer in ("adamw", "muon"), "adamw or muon"),
        ("lr", train.lr > 0, "above 0"),
        ("min_lr", 0 <= train.min_lr <= train.lr, f"between 0 and lr = {train.lr}"),
        ("warmup", 0 <= train.warmup < train.steps, f"at least 0 and below steps = {train.steps}"),
        ("weight_decay", train.weight_decay >= 0, "at least 0"),
        ("clip", train.clip >= 0, "at least 0 (0 turns clipping off)"),
        ("b1", 0 <= train.b1 < 1, "in [0, 1)"),
        ("b2", 0 <= train.b2 < 1, "in [0, 1)"),
        ("ema", 0 <= train.ema < 1, "in [0, 1) (0 turns averaging off)"),
        ("accumulate", train.accumulate >= 1, "at least 1"),
        ("dtype", train.dtype in ("float32", "bfloat16"), "float32 or bfloat16"),
        ("eval_every", train.eval_every >= 0, "at least 0 (0 evaluates at the end only)"),
        ("checkpoint_every", train.checkpoint_every >= 0, "at least 0 (0 saves at the end only)"),
        ("keep", train.keep >= 1, "at least 1"),
        ("log_every", train.log_every >= 1, "at least 1"),
    ]
    for field, holds, allowed in rules:
        if not holds:
            raise UserError(f"config.train.{field} = {train[field]!r} must be {allowed}")
    for name, part in train.parts.items():
        if unknown := sorted(set(part) - {"lr", "start", "assign"}):
            raise UserError(f"config.train.parts.{name} has no field {', '.join(unknown)}: it takes lr and start")
        if part.get("lr", train.lr) <= 0 or not 0 <= part.get("start", 0) < train.steps - train.warmup:
            raise UserError(
                f"config.train.parts.{name} must have lr above 0 and start between 0 and steps - warmup = "
                f"{train.steps - train.warmup}"
            )
    if train.batch % train.accumulate:
        raise UserError(f"config.train.accumulate = {train.accumulate} must divide config.train.batch = {train.batch}")
