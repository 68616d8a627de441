"""SiT: slimming weights, and the layers its distillation compares."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jtok.errors import UserError
from tests.methods import catalogue as c


def test_rows_sum_to_one_over_the_patches_and_skip_padding():
    reducer = c.first_reducer("sit", 0.5)
    t = c.tokens(valid=c.tokens().mask().at[:, 30:].set(False))
    weights = reducer.weights(t.split()[1])
    np.testing.assert_allclose(weights.sum(2), 1, atol=1e-6)
    assert not weights[:, :, 29:].any()


def test_only_layers_since_the_first_slimming_differ_from_an_equal_teacher():
    """Student and teacher share the tower, so the layers before the slimming give no loss and those after it do."""
    tower = c.tower()

    def recalibration(block):
        plan = c.plan("sit", 0.5, blocks=(block,), patches_weight=1.0)

        def run(x):
            output, teacher = tower(x, plan, train=True, hidden=True), tower(x, hidden=True)
            layers = [plan.at(f"tower.block.{block}.input").recover[i] for i in range(c.CONFIG.depth - block + 1)]
            inputs = [output.memory["sit"][0], *(h[:, 1:] for h in output.hidden[block + 1 :])]
            last = teacher.hidden[block:]
            gaps = [((f(y) - h[:, 1:]) ** 2).mean() for f, y, h in zip(layers, inputs, last, strict=True)]
            return plan.training.objective(plan, output, teacher, {})["recalibration"], sum(gaps) / c.CONFIG.depth

        return jax.jit(run)(c.images())

    got, want = recalibration(2)
    assert want > 0
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("blocks", [(0, 2), (2, 2), (3, 1), (4,)])
def test_blocks_must_lie_inside_the_tower(blocks):
    with pytest.raises(UserError, match="rising numbers from 1 to 3"):
        c.plan("sit", 0.5, blocks=blocks)
