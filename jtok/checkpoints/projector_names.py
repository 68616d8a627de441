"""Files of projectors as their authors released them.

A projector that has `names`, a list of rules, can be read from a whole checkpoint, where its tensors are called
`model.mm_projector.*` or `multi_modal_projector.*`, or from a file with nothing else, with or without such a lead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from jtok.checkpoints.match import Format
from jtok.checkpoints.rules import Rule
from jtok.checkpoints.safetensor_files import Weights

_LEAD = re.compile(r"^(?:(?:module|base_model|model)\.)*(?:mm_projector|multi_modal_projector)\.")


def projector_format(weights: Weights, fixed: Sequence[str] = ()) -> Format:
    """How the names of a checkpoint that holds a projector are read; other parts of it are left alone.

    fixed: tensors of the projector that are no parameters.
    """
    alone = not any(map(_LEAD.match, weights.shapes))

    def left(name: str) -> bool:
        return _LEAD.sub("", name) in fixed or not (alone or _LEAD.match(name))

    def split(name: str) -> tuple[str, None, str]:
        return ("" if alone or _LEAD.match(name) else "elsewhere"), None, _LEAD.sub("", name)

    return Format(split, left)


def spell(rule: Rule, layer: int | None) -> str:
    """The name that a tensor has in a whole checkpoint of the authors."""
    return f"model.mm_projector.{rule.spell(layer)}"
