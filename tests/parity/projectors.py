"""Projectors with recorded weights, read as a checkpoint of their authors is read."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from jtok.checkpoints.reducer_files import load_reducer
from jtok.plan import Plan


def loaded(plan: Plan, weights: Mapping[str, np.ndarray]):
    """The plan's projector holding the authors' tensors, which travel through a file."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "projector.safetensors"
        safetensors.numpy.save_file({name: np.ascontiguousarray(a) for name, a in weights.items()}, path)
        return plan.with_params(load_reducer(path, plan)).projector
