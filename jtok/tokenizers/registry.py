"""The catalogue of image tokenizers: facts declared on each class, and those derived from it."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, get_type_hints

import jtok.tokenizers
from jtok.errors import UserError
from jtok.registry import Claim

#: Where the tokens are: a sequence of learned latents, a grid or pyramid, or one code for understanding and generation.
Family = Literal["tokenizer-1d", "tokenizer-2d", "tokenizer-unified"]
#: What sets the number of tokens: the config; any prefix of the whole code; rounds, each of which re-encodes the
#: image; the image and the requested quality.
Counts = Literal["fixed", "prefix", "rounds", "adaptive"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tokenizer of the catalogue. `model`, `config` and `kind` are derived from what `tokenizer` decorates."""

    name: str
    title: str  # the paper's title
    paper: str  # arXiv id, venue
    family: Family
    training: str  # description of its stages
    counts: Counts
    generator: str  # what the paper samples new codes with; "none" if nothing
    idea: str  # five to twelve words
    toy: Mapping[str, Any]  # fields of the config of a model that runs in milliseconds, for tests
    model: type  # called with (config, rngs)
    config: Callable[..., Any]  # called with fields of the config
    kind: str  # stated in the files of `save_tokenizer`
    module: str  # where it is defined
    claims: tuple[Claim, ...] = ()

    @property
    def base(self) -> str:
        """The slot of the frozen tokenizer or VAE below it; "none" for a tokenizer of pixels."""
        return self.model.base_slot or "none"

    @property
    def variant(self) -> bool:
        """Whether it is a config of another tokenizer's class."""
        return self.kind != self.name

    @property
    def file(self) -> str:
        """Path of the module from the root of the repository."""
        return self.module.replace(".", "/") + ".py"


TOKENIZERS: dict[str, Entry] = {}


def tokenizer(**facts: Any) -> Callable[[Callable], Callable]:
    """Adds a tokenizer to the catalogue; see `Entry` for the facts.

    Decorates its class, whose `__init__(config, rngs)` says what its config is, or, for a variant of another
    tokenizer, a function that returns that one's config. Raises UserError for a name that is taken.
    """

    def enter(made: Callable) -> Callable:
        if isinstance(made, type):
            derived = {"model": made, "config": get_type_hints(made.__init__)["config"], "kind": facts["name"]}
        else:
            parent = _of_config(get_type_hints(made)["return"])
            derived = {"model": parent.model, "config": made, "kind": parent.kind}
        entry = Entry(**facts, **derived, module=made.__module__)
        if entry.name in TOKENIZERS and TOKENIZERS[entry.name].module != entry.module:
            raise UserError(f"two tokenizers are called '{entry.name}': rename one of them.")
        TOKENIZERS[entry.name] = entry
        return made

    return enter


def _of_config(config: type) -> Entry:
    return next(entry for entry in TOKENIZERS.values() if entry.config is config)


@cache
def _load() -> None:
    for module in pkgutil.iter_modules(jtok.tokenizers.__path__, "jtok.tokenizers."):
        importlib.import_module(module.name)


def tokenizers() -> dict[str, Entry]:
    """All tokenizers by name, in alphabetical order."""
    _load()
    return dict(sorted(TOKENIZERS.items()))


def entry_of(tokenizer: Any) -> Entry:
    """The entry of a tokenizer's class. Raises UserError for a class that is not in the catalogue."""
    _load()
    for entry in TOKENIZERS.values():
        if entry.model is type(tokenizer) and not entry.variant:
            return entry
    raise UserError(f"{type(tokenizer).__name__} is not in the catalogue: decorate it with @tokenizer(...).")


def with_config(config: Any) -> type:
    """The class of tokenizers that have this config. Raises UserError for the config of anything else."""
    _load()
    for entry in TOKENIZERS.values():
        if entry.config is type(config):
            return entry.model
    raise UserError(f"{type(config).__name__} is the config of no tokenizer of the catalogue.")
