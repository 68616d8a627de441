"""Checkpoints: the training state, where the data stood, and the config, written by Orbax.

A checkpoint appears under its step number by a rename once it is complete, so a process killed while writing leaves
none or a whole one. The digests of its files are noted in it, so that a file cut short or changed later is named
(TensorStore has no checksums for array values). Leaves are stored by dotted name (`params.encoder.kernel`).
"""

import collections
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree

from jtok.errors import UserError
from jtok.training import record
from jtok.training.state import TrainState, named_leaves, with_leaves

DIGESTS = "sha256.json"


class DataPosition:
    """Where a data iterator stood, in the form Grain's checkpoint handler stores (one file a process).

    Iterators count global batches, so that all processes' files say the same and the first will do for any number.
    """

    def __init__(self, state: Any = None):
        # Encoded at once, because an iterator may go on changing the object it handed out; in an object, because half
        # of a number would still be a number.
        self._text = json.dumps({"state": state})

    @property
    def state(self) -> Any:
        return json.loads(self._text)["state"]

    def get_state(self) -> bytes:
        return self._text.encode()

    @classmethod
    def read(cls, directory: Path) -> "DataPosition":
        """What the handler stored in `directory`."""
        (path,) = directory.glob("process_0-of-*.json")
        return cls(json.loads(path.read_text())["state"])


class Checkpoints:
    """The checkpoints of one run, the newest `keep` of them. Use as a context manager: leaving it waits for writes.

    keep: None opens them for reading only; else this is the one process that writes here, and what an earlier one left
    unfinished is removed.

    Raises UserError, naming the path, where a checkpoint cannot be read, is not of this model, or cannot be written.
    """

    def __init__(self, directory: Path, keep: int | None):
        self.directory = Path(directory).absolute()
        if self.directory.exists() and not self.directory.is_dir():
            raise UserError(f"{self.directory} is a file: it must be a directory of checkpoints or not exist")
        if keep and jax.process_index() == 0:
            for unfinished in self.directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*/"):
                shutil.rmtree(unfinished, ignore_errors=True)
        self._in_flight: collections.deque[int] = collections.deque()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            read_only=keep is None,
            create=keep is not None,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._note_digests),
        )
        handlers = {
            "state": ocp.PyTreeCheckpointHandler(),
            "data": grain.checkpoint.CheckpointHandler(),
            "config": ocp.JsonCheckpointHandler(),
        }
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
            state=ocp.args.PyTreeSave(_storable(state)),
            data=grain.checkpoint.CheckpointSave(data),
            config=ocp.args.JsonSave(config),
        )
        with self._explained("cannot write the checkpoint", self.path(step)), jax.transfer_guard("allow"):
            self._in_flight.append(step)
            self._manager.save(step, args=items, force=True)

    def _note_digests(self) -> None:
        """Called by Orbax, in its thread, when all items of the oldest save are written but not yet renamed."""
        step = self._in_flight.popleft()
        if jax.process_index() == 0:
            for path in self.directory.glob(f"{step}.*/"):  # the name under which Orbax writes
                record.write_json(path / DIGESTS, _digests(path))

    def _check_digests(self, step: int) -> None:
        path = self.path(step) / DIGESTS
        if not path.exists():
            raise ValueError(f"{DIGESTS} is missing")
        noted, found = json.loads(path.read_text()), _digests(self.path(step))
        for name, digest in noted.items():
            if found.get(name) != digest:
                raise ValueError(f"{name} is {'cut short or changed' if name in found else 'missing'}")

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, DataPosition]:
        """The state stored at `step`, placed like `like`, and where the data stood. Everything must match by name,
        shape and type; all that does not is listed in one error."""
        wanted = _storable(like)
        self._compare(step, wanted, self._metadata(step))
        leaves = self._read(step, wanted)
        with self._explained("cannot read the checkpoint", self.path(step), self._older(step)):
            return _from_storable(like, leaves), DataPosition.read(self.path(step) / "data")

    def restore_params(self, step: int, like: PyTree[Array]) -> PyTree[Array]:
        """The parameters stored at `step`, the averaged ones where the run kept an average. `like`: a tree of arrays
        shaped like them (`task.init`'s)."""
        stored = self._metadata(step)
        field = "ema" if any(name.startswith("ema.") for name in stored) else "params"
        wanted = {f"{field}.{name}": leaf for name, leaf in named_leaves(like).items()}
        self._compare(step, wanted, {name: leaf for name, leaf in stored.items() if name.startswith(f"{field}.")})
        found = self._read(step, wanted)
        return with_leaves(like, {name: found[f"{field}.{name}"] for name in named_leaves(like)})

    def _read(self, step: int, wanted: dict[str, Array]) -> dict[str, Array]:
        """The leaves named in `wanted`, placed like those given, and no others."""
        template = jax.tree.map(_abstract, wanted)
        leaves = ocp.args.PyTreeRestore(
            template,
            restore_args=ocp.checkpoint_utils.construct_restore_args(template),
            partial_restore=True,
        )
        with self._explained("cannot read the checkpoint", self.path(step), self._older(step)):
            return self._manager.restore(step, args=ocp.args.Composite(state=leaves))["state"]

    def _metadata(self, step: int) -> dict[str, Any]:
        with self._explained("cannot read the checkpoint", self.path(step), self._older(step)):
            self._check_digests(step)
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
        return f"delete that directory to resume from step {max(older)}" if older else "choose another directory"

    @contextmanager
    def _explained(self, what: str, path: Path, remedy: str = "") -> Iterator[None]:
        """Turns whatever Orbax, TensorStore or the file system raise (bare `Exception` included) into one sentence."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            cause = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            reason = " ".join(str(cause).split(" [")[0].split())[:200] or type(cause).__name__
            raise UserError(f"{what} {path}: {remedy + ' ' if remedy else ''}({reason})") from None


def load_params(workdir: str | Path, like: PyTree[Array]) -> tuple[PyTree[Array], int]:
    """The newest parameters of the run in `workdir` (averaged ones where it kept an average), and their step.

    like: a tree of arrays with their names, shapes and types, such as `task.init` makes. A run may continue meanwhile.
    Raises UserError if there is no checkpoint, or none that fits.
    """
    directory = Path(workdir).absolute() / "checkpoints"
    if not directory.is_dir():
        raise UserError(f"{directory} does not exist: give the directory of a training run")
    with Checkpoints(directory, keep=None) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise UserError(f"{directory} holds no finished checkpoint: train first")
        return checkpoints.restore_params(step, like), step


def _digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint's items, by relative path; not of the marks Orbax leaves on committing."""
    digests = {}
    for path in sorted(directory.glob("*/**/*")):
        if path.is_file() and path.name != "commit_success.txt":
            with path.open("rb") as file:
                digests[path.relative_to(directory).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _storable(state: TrainState) -> dict[str, Array]:
    """Leaves by name; the random key as its words, since a key's type is lost if its side file is."""
    leaves = named_leaves(state)
    return leaves | {"key": jax.random.key_data(state.key)}


def _from_storable(like: TrainState, leaves: dict[str, Array]) -> TrainState:
    return with_leaves(like, leaves | {"key": jax.random.wrap_key_data(leaves["key"])})


def _abstract(leaf) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))
