"""A vision-language model on a mesh: read to its places, and the same answers."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import importlib.resources
import jax, numpy as np
import jtok
from jtok.models.vlm.shipped import shipped
from jtok.data.question_text import decode_question
from jtok.data.questions import digit_questions
from jtok.training.state import named_leaves

one = shipped()
example = digit_questions("test", size=one.config.tower.image, length=1)[0]
question, picture = decode_question(example["question"]), example["image"]
path = str(importlib.resources.files("jtok") / "assets/digit_questions")
for sizes in ({"tensor": 4}, {"fsdp": 2, "tensor": 2}):
    mesh = jtok.make_mesh(**sizes)
    many = jtok.load(path, mesh=mesh)
    placed = named_leaves(jtok.place(one.params, mesh))
    for name, leaf in named_leaves(many.params).items():
        assert leaf.sharding == placed[name].sharding, name
        np.testing.assert_array_equal(leaf, named_leaves(one.params)[name], name)
    held = sum(leaf.addressable_data(0).size for leaf in placed.values())
    assert held < 0.35 * sum(leaf.size for leaf in placed.values())
    for method in ("none", "fastv"):
        models = [jtok.reduce(model, method, keep=0.5) for model in (one, many)]
        inputs = models[0].inputs(question, picture)
        logits = [np.asarray(model.read(inputs, max_new_tokens=8).logits) for model in models]
        np.testing.assert_allclose(*logits, rtol=1e-3, atol=1e-3)
        assert models[0].generate(picture, question, tokens=8) == models[1].generate(picture, question, tokens=8)
    assert jax.sharding.get_mesh().empty
"""


@pytest.mark.slow
def test_a_model_spread_over_four_devices_answers_as_on_one():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, env=environment)
