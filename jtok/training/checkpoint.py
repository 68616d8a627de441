"""Checkpoints: the training state, where the data stood, and the config, written by Orbax.

A checkpoint appears under its step number by a rename once it is complete, so a process killed while writing leaves
none or a whole one. Leaves are stored by dotted name (`params.encoder.kernel`).
"""

import gc
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree

from jtok.errors import UserError
from jtok.training.state import TrainState, named_leaves, with_leaves


class DataPosition:
    """Where a data iterator stood, in the form Grain's checkpoint handler stores (one file a process)."""

    def __init__(self, state: Any = None):
        # Encoded at once: an iterator may go on changing the object it handed out.
        self._text = json.dumps(state).encode()

    @property
    def state(self) -> Any:
        return json.loads(self._text)

    def get_state(self) -> bytes:
        return self._text

    def set_state(self, text: bytes) -> None:
        self._text = text

    def start_prefetch(self) -> None:
        """Asked for by the handler after a restore; there is nothing to start here."""


class Checkpoints:
    """The checkpoints of one run, the newest `keep` of them. Use as a context manager: leaving it waits for writes.

    Raises UserError, naming the path, where a checkpoint cannot be read, is not of this model, or cannot be written.
    """

    def __init__(self, directory: Path, keep: int):
        self.directory = Path(directory).absolute()
        if self.directory.exists() and not self.directory.is_dir():
            raise UserError(f"{self.directory} is a file: it must be a directory of checkpoints or not exist")
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        handlers = {"state": ocp.StandardCheckpointHandler(), "data": grain.checkpoint.CheckpointHandler(),
                    "config": ocp.JsonCheckpointHandler()}
        with self._explained("cannot open the checkpoints in", self.directory):
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self._manager.close()

    def path(self, step: int) -> Path:
        return self.directory / str(step)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None; one still being written counts once `wait` returns."""
        return self._manager.latest_step()

    def wait(self) -> None:
        with self._explained("cannot write a checkpoint in", self.directory):
            self._manager.wait_until_finished()

    def preempted(self, step: int) -> bool:
        """Whether all processes of a distributed run have agreed to stop after this step."""
        return self._manager.reached_preemption(step)

    def save(self, step: int, state: TrainState, data: DataPosition, config: dict) -> None:
        """Copies the state to the host and writes it in the background. A step already stored is left as it is."""
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_storable(state)),
            data=grain.checkpoint.CheckpointSave(data),
            config=ocp.args.JsonSave(config),
        )
        with self._explained("cannot write the checkpoint", self.path(step)), jax.transfer_guard("allow"):
            self._manager.save(step, args=items, force=True)

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, DataPosition]:
        """The state stored at `step`, placed like `like`, and where the data stood. Everything must match by name,
        shape and type; all that does not is listed in one error."""
        wanted = _storable(like)
        data = DataPosition()
        self._check(step, wanted)
        with self._explained("cannot read the checkpoint", self.path(step), self._older(step)):
            stored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(jax.tree.map(_abstract, wanted)),
                    data=grain.checkpoint.CheckpointRestore(data),
                ),
            )
        return _from_storable(like, stored["state"]), data

    def restore_params(self, step: int, like: PyTree[Array]) -> PyTree[Array]:
        """The parameters stored at `step`, the averaged ones where the run kept an average. `like`: a tree of arrays
        shaped like them (`task.init`'s)."""
        stored = self._metadata(step)
        field = "ema" if any(name.startswith("ema.") for name in stored) else "params"
        wanted = {f"{field}.{name}": leaf for name, leaf in named_leaves(like).items()}
        here = {name: leaf for name, leaf in stored.items() if name.startswith(f"{field}.")}
        self._compare(step, wanted, here)
        template = {name: wanted.get(name, leaf) for name, leaf in stored.items()}
        with self._explained("cannot read the checkpoint", self.path(step), self._older(step)):
            found = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(jax.tree.map(_abstract, template)))
            )["state"]
        return with_leaves(like, {name: found[f"{field}.{name}"] for name in named_leaves(like)})

    def _check(self, step: int, wanted: dict[str, Array]) -> None:
        self._compare(step, wanted, self._metadata(step))

    def _metadata(self, step: int) -> dict[str, Any]:
        with self._explained("cannot read the checkpoint", self.path(step), self._older(step)):
            stored = self._manager.item_metadata(step)["state"]
        if stored is None:
            raise UserError(f"{self.path(step)} is not a checkpoint of jtok: {self._older(step)}")
        return dict(stored)

    def _compare(self, step: int, wanted: dict[str, Array], stored: dict[str, Any]) -> None:
        problems = [f"{name} is missing" for name in wanted if name not in stored]
        problems += [f"{name} is unknown" for name in stored if name not in wanted]
        for name in wanted.keys() & stored.keys():
            want, have = (f"{x.dtype}{list(x.shape)}" for x in (wanted[name], stored[name]))
            problems += [f"{name} is {have} and should be {want}"] if want != have else []
        if problems:
            raise UserError(
                f"the checkpoint {self.path(step)} is of another model or optimizer: {'; '.join(sorted(problems))}"
            )

    def _older(self, step: int) -> str:
        older = [s for s in self._manager.all_steps() if s < step]
        return f"delete that directory to go on from step {max(older)}" if older else "choose another directory"

    @contextmanager
    def _explained(self, what: str, path: Path, remedy: str = "") -> Iterator[None]:
        """Turns what Orbax, TensorStore and the file system raise into one sentence about `path`."""
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split(" [")[0].split())[:200] or type(error).__name__
            raised = UserError(f"{what} {path}: {remedy + ' ' if remedy else ''}({reason})")
        else:
            return
        # Reads that failed beside the first one would each log a traceback when collected: let them go quietly.
        logger = logging.getLogger("asyncio")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        gc.collect()
        logger.setLevel(level)
        raise raised


def _storable(state: TrainState) -> dict[str, Array]:
    """Leaves by name; the random key as its words, since a key's type is lost if its side file is."""
    leaves = named_leaves(state)
    return leaves | {"key": jax.random.key_data(state.key)}


def _from_storable(like: TrainState, leaves: dict[str, Array]) -> TrainState:
    return with_leaves(like, leaves | {"key": jax.random.wrap_key_data(leaves["key"])})


def _abstract(leaf) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))
