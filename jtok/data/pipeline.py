"""From a data set's name to batches: the registry of sources, and the one loader.

>>> train = make_dataset("digit_scenes", "train")
>>> iterator = iter(batches(train, batch=128, seed=0, shuffle=True))
"""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import grain.python as grain
import jax
import numpy as np
from absl import flags

from jtok.data.arrayrecord import ArrayRecordSource
from jtok.data.faces import faces
from jtok.data.folder import FolderSource
from jtok.data.images import EncodedSource, Images, readable_only
from jtok.data.parquet import ParquetSource
from jtok.data.photographs import photos
from jtok.data.questions import digit_questions
from jtok.data.scenes import digit_scenes
from jtok.data.transforms import Evaluation, Training
from jtok.data.webdataset import WebDatasetSource
from jtok.errors import UserError
from jtok.sharding import AXES, local_parts, row_parts

EMBEDDED: dict[str, Callable[..., grain.MapDataset]] = {
    "digit_scenes": digit_scenes,
    "digit_questions": digit_questions,
    "photos": photos,
    "faces": faces,
}
FORMATS: dict[str, Callable[..., EncodedSource]] = {
    "folder": FolderSource,
    "arrayrecord": ArrayRecordSource,
    "parquet": ParquetSource,
    "webdataset": WebDatasetSource,
}
DATASETS = (*EMBEDDED, *FORMATS)
MAX_SEED = 2**32 - 1


def make_dataset(name: str, split: str, **options: Any) -> grain.MapDataset:
    """A data set by name, as a random-access Grain data set of {"image": uint8 [H, W, 3], "label": int32, ...}.

    name: digit_scenes, digit_questions (which has questions and answers instead of a label), photos or faces, all
    embedded, nothing to download, with the options of the functions of these names; or a format on disk: folder,
    arrayrecord, parquet, webdataset, which take the options of `image_files`, and `path`.
    Raises UserError for an unknown name or option, and for data that is missing, empty or of another format.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, 3, 0.4) or DATASETS
        raise UserError(f"There is no data set '{name}'; did you mean {' or '.join(near)}?")
    build = EMBEDDED[name] if name in EMBEDDED else image_files
    known = set(_options(build)) | (set(_options(FORMATS[name])) | {"path"} if name in FORMATS else set())
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, 3, 0.4) or sorted(known)
            raise UserError(f"The data set {name} has no option '{option}'; it takes {', '.join(near)}.")
    if name in EMBEDDED:
        return build(split, **options)
    if not options.get("path"):
        raise UserError(f"The data set {name} reads files; give the directory that holds them as path=...")
    format_options = {option: options.pop(option) for option in [*_options(FORMATS[name]), "path"] if option in options}
    return image_files(
        FORMATS[name](split=split, **format_options), augment=options.pop("augment", split == "train"), **options
    )


def _options(build: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(build).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def image_files(
    source: EncodedSource, *, size: int = 224, augment: bool = False, seed: int = 0, verify: bool = False
) -> grain.MapDataset:
    """The images of a source, decoded and brought to one size: {"image": uint8 [size, size, 3], "label": int32}.

    augment: random resized crop and mirroring, redrawn each epoch from `seed`, instead of the centre crop
    (`make_dataset` sets it for the train split). A corrupt image is replaced by its successor, counted and logged;
    with `verify`, all images are decoded once now and corrupt ones left out (see `jtok.data.images`).
    Raises UserError for a size under 1.
    """
    if size < 1:
        raise UserError(f"Images need a size of at least 1 pixel, not {size}.")
    _check_seed(seed)
    images = Images(source)
    dataset = grain.MapDataset.source(readable_only(images) if verify else images)
    return dataset.random_map(Training(size), seed=seed) if augment else dataset.map(Evaluation(size))


def batches(
    dataset: grain.MapDataset,
    *,
    batch: int,
    seed: int = 0,
    shuffle: bool = False,
    epochs: int | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
    drop_remainder: bool = True,
    workers: int = 0,
    prefetch: int = 2,
) -> grain.IterDataset:
    """Batches of a data set, stacked: every leaf gets a leading axis of this process's share of `batch` rows.

    The global batches depend on `seed` alone: process p of P holds the p-th of P equal parts of the rows of every
    one, or under the mesh of `jax.set_mesh` those parts that its devices hold (`jtok.sharding`). Epochs (endless when
    None) follow each other without a gap, each in an order of its own; a batch may span two, and only the very last may
    be short, which `drop_remainder` leaves out. Where a short one is shared by several processes it is filled up:
    examples get a key "valid", false in those that fill, and a `batch` that cannot be shared evenly is made larger.
    The iterator's `get_state()` is a small JSON-able state, from which `set_state(state)` resumes exactly; hand the
    iterator to Orbax as `grain.python.PyGrainCheckpointSave(iterator)`. `workers` processes, or without any one
    thread, keep `prefetch` batches ready; neither changes what comes. A state is good for the same arguments only,
    in any number of processes.
    Process numbers are those of jax when not given.
    Raises UserError for a batch that is not a positive multiple of the parts it is cut in, or larger than the data; or
    a number out of range.
    """
    mine, parts = _share(process_index, process_count)
    if not drop_remainder and len(mine) < parts:
        batch += -batch % parts
    _check_batch(len(dataset), batch, epochs, parts, drop_remainder)
    _check_seed(seed)
    if workers < 0 or prefetch < 0:
        raise UserError(f"workers and prefetch must not be negative, and are {workers} and {prefetch}.")
    dataset = dataset.shuffle(seed=seed) if shuffle else dataset
    dataset = dataset.repeat(epochs)
    if drop_remainder:
        dataset = dataset[: len(dataset) // batch * batch]
    elif len(mine) < parts:
        dataset = _filled(dataset, -len(dataset) % batch)
    dataset = _rows_of(dataset, batch, mine, parts)
    threads = min(1, prefetch) if workers == 0 else 0
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch if threads else 0)
    iterable = dataset.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read flags of its own, which a library user never parses
        iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(workers, max(1, prefetch)))
    return iterable


def _share(process_index: int | None, process_count: int | None) -> tuple[tuple[int, ...], int]:
    """(which parts of every batch this process reads, in how many the batch is cut)."""
    mesh = jax.sharding.get_mesh()
    if process_index is None and process_count is None and set(AXES) <= set(mesh.axis_names):
        mine, parts = local_parts(mesh), row_parts(mesh)
        return (mine, parts) if len(mine) < parts else ((0,), 1)
    process_index = jax.process_index() if process_index is None else process_index
    process_count = jax.process_count() if process_count is None else process_count
    if not 0 <= process_index < process_count:
        raise UserError(f"The process index {process_index} is not one of {process_count} processes.")
    return (process_index,), process_count


def _rows_of(dataset: grain.MapDataset, batch: int, mine: tuple[int, ...], parts: int) -> grain.MapDataset:
    """The rows of every global batch that lie in the parts `mine` of it, batched."""
    if len(mine) == parts:
        return dataset.batch(batch)
    # Cutting the stream into parts of a batch and taking every P-th gives the rows of one part of every global batch.
    first, length = mine[0], len(mine)
    if mine == tuple(range(first, first + length)) and parts % length == 0 and first % length == 0:
        return dataset.batch(batch * length // parts)[first // length :: parts // length]
    each = dataset.batch(batch // parts)
    chosen = grain.experimental.ZipMapDataset([each[part::parts] for part in mine])
    return chosen.map(lambda rows: jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows))


def _filled(dataset: grain.MapDataset, count: int) -> grain.MapDataset:
    """The data set with a mark of its own examples, and its last one `count` times more without."""
    last = len(dataset) - 1
    more = grain.MapDataset.range(len(dataset) + count)
    return more.map(lambda i: {**dataset[min(i, last)], "valid": i <= last})


def _check_batch(length: int, batch: int, epochs: int | None, parts: int, drop_remainder: bool) -> None:
    if batch < 1 or batch % parts:
        raise UserError(
            f"The batch is {batch}; it must be a positive multiple of the {parts} parts that the devices hold."
        )
    if epochs is not None and epochs < 1:
        raise UserError(f"The number of epochs is {epochs}; it must be at least 1, or None for no end.")
    if drop_remainder and epochs is not None and length * epochs < batch:
        raise UserError(f"The data hold {length * epochs} examples, fewer than one batch of {batch}.")


def _check_seed(seed: int) -> None:
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"The seed is {seed}; it must lie between 0 and {MAX_SEED}.")
