"""What every tokenizer of the catalogue promises, on a toy model of each; one program serves most properties."""

from __future__ import annotations

import ast
import dataclasses
import math
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jtok.errors import UserError
from jtok.tokenizers import registry
from jtok.tokenizers.files import fingerprint, load_tokenizer, save_tokenizer
from jtok.tokenizers.protocol import ImageTokenizer

ROOT = Path(__file__).resolve().parents[2]
SIDE = 16  # pixels of all toys
ENTRIES = registry.tokenizers()
every = pytest.mark.parametrize("name", ENTRIES)


@dataclasses.dataclass(frozen=True)
class Means:
    """A base tokenizer: the mean colour of every patch, and back."""

    stride: int
    channels: int = 3
    codes: int = 0

    def encode(self, images):
        b, h, w, _ = images.shape
        s = self.stride
        return images.reshape(b, h // s, s, w // s, s, 3).mean((2, 4))

    def decode(self, grid):
        return jnp.repeat(jnp.repeat(grid, self.stride, 1), self.stride, 2)


@cache
def toy(name: str) -> ImageTokenizer:
    """A toy model on its base, with random parameters: what begins as zero does something, and nothing is compiled."""
    entry, dice = ENTRIES[name], np.random.default_rng(0)
    made = nnx.eval_shape(lambda: entry.model(entry.config(**entry.toy), nnx.Rngs(0)))
    graph, state, rest = nnx.split(made, nnx.Param, ...)
    values = nnx.to_pure_dict(state)

    def drawn(path, leaf):
        x = dice.standard_normal(leaf.shape, np.float32)
        last = path[-1].key
        scales = {"scale": 0.1, "kernel": 2 / leaf.shape[-2 if leaf.ndim > 1 else 0] ** 0.5}
        return jnp.asarray((last == "scale") + scales.get(last, 0.2) * x)

    nnx.replace_by_pure_dict(state, jax.tree_util.tree_map_with_path(drawn, values))
    net = nnx.merge(graph, state, rest)
    if net.base_needs is not None and net.base_needs.stride is not None:
        net.put_base(Means(net.base_needs.stride))
    return net


def images(*rows: int) -> jax.Array:
    """Noise on colours of their own, by their numbers."""
    dice = [np.random.default_rng(row) for row in rows]
    return jnp.stack([(d.random(3, np.float32) + d.random((SIDE, SIDE, 3), np.float32)) / 2 for d in dice])


def forward(net: ImageTokenizer, x: jax.Array) -> dict:
    """Codes and images of a batch; `drawn` are images before they are clipped."""
    code = net.encode(x)
    return {
        "ids": code.ids,
        "count": code.count,
        "latents": code.latents,
        "drawn": net.synthesise(code),
        "images": net.decode(code),
    }


def shortened(net: ImageTokenizer, x: jax.Array) -> dict:
    """The same with half of the tokens, and images of such a code with other ids after its count."""
    code = net.encode(x, max(1, net.lengths[-1] // 2))
    made = {"short": code.latents, "short_count": code.count, "short_drawn": net.synthesise(code)}
    if net.prefix:
        after = jnp.arange(code.ids.shape[1]) >= code.count[:, None]
        made["other_tail"] = net.synthesise(net.from_ids(jnp.where(after, 0, code.ids), code.count))
    return made


def gradients(net: ImageTokenizer, x: jax.Array) -> nnx.State:
    """Of the squared error of the reconstruction and the losses of the bottleneck."""

    def loss(net):
        code = net.analyse(x, train=True)
        return jnp.square(net.synthesise(code) - x).mean() + code.losses.get("total", 0.0)

    return nnx.grad(loss)(net)


@cache
def results(name: str) -> tuple[dict, dict]:
    """What one compiled program makes of two batches that share their first image."""
    graph, state = nnx.split(toy(name))

    @jax.jit
    def run(state, x):
        net = nnx.merge(graph, state)
        made = forward(net, x) | {"gradients": gradients(net, x)}
        return made if ENTRIES[name].counts == "fixed" else made | shortened(net, x)

    return tuple(jax.device_get(run(state, images(1, other))) for other in (2, 3))


@every
def test_facts_agree_with_the_class(name):
    entry, net = ENTRIES[name], toy(name)
    assert isinstance(net, ImageTokenizer) and isinstance(net.config, type(entry.config(**entry.toy)))
    assert registry.entry_of(net).kind == entry.kind and registry.with_config(net.config) is entry.model
    assert list(net.lengths) == sorted(set(net.lengths))
    assert (net.base_slot is None) == (net.base_needs is None)
    assert net.prefix == (entry.counts in ("fixed", "prefix"))
    assert (len(net.lengths) > 1) == (entry.counts in ("prefix", "rounds"))
    assert entry.idea and entry.training and entry.paper


@every
def test_a_file_is_a_tokenizer_and_has_its_adapter(name):
    entry = ENTRIES[name]
    path = ROOT / entry.file
    assert path.stem == name.replace("-", "_"), "the file is named after the tokenizer"
    said = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
    assert entry.title in said, "the docstring names the paper"
    assert (ROOT / "tests/parity/adapters" / path.name).exists()


@every
def test_images_become_codes_and_images(name):
    net, made = toy(name), results(name)[0]
    shape = (2, SIDE, SIDE, 3)
    assert made["images"].shape == shape and made["images"].dtype == np.float32
    assert made["images"].min() >= 0 and made["images"].max() <= 1 and made["images"].std() > 1e-3
    assert made["latents"].shape[:2] == (2, net.lengths[-1])
    assert made["count"].shape == (2,) and made["count"].dtype == np.int32
    if net.codes:
        assert made["ids"].dtype == np.int32 and made["ids"].shape == made["latents"].shape[:2]
        assert made["ids"].min() >= 0 and made["ids"].max() < net.codes


@every
def test_a_row_does_not_depend_on_its_batch(name):
    one, other = results(name)
    for part in one.keys() - {"gradients"}:
        np.testing.assert_allclose(one[part][0], other[part][0], rtol=1e-4, atol=1e-4, err_msg=part)
    assert np.abs(one["drawn"][1] - other["drawn"][1]).max() > 1e-3, "another image is another image"


@pytest.mark.slow
@every
def test_jit_changes_nothing(name):
    made, eager = results(name)[0], forward(toy(name), images(1, 2))
    for part in ("latents", "drawn", "count"):
        np.testing.assert_allclose(eager[part], made[part], rtol=1e-3, atol=1e-3, err_msg=part)


@every
def test_shorter_codes_are_prefixes_where_counts_say_so(name):
    net, made = toy(name), results(name)[0]
    if ENTRIES[name].counts == "fixed":
        assert (made["count"] == net.lengths[0]).all()
        return
    n = max(1, net.lengths[-1] // 2)
    same = np.allclose(made["short"][:, :n], made["latents"][:, :n], atol=1e-5)
    assert same == net.prefix
    assert np.abs(made["short_drawn"] - made["drawn"]).max() > 1e-3, "more tokens change the image"
    if net.prefix:
        assert (made["short_count"] == n).all()
        np.testing.assert_allclose(made["other_tail"], made["short_drawn"], rtol=1e-4, atol=1e-4)


@every
def test_bits_are_counted(name):
    net, width = toy(name), math.log2(max(toy(name).codes, 1))
    which = 8 if ENTRIES[name].counts == "adaptive" else 0  # one bit for each of 8 tokens: which are kept
    assert net.bits(3, 8) == pytest.approx(3 * width + which)
    assert net.bits(3, 8, 1.5) == pytest.approx(4.5 + which)
    if net.codec_ready:
        assert net.codes and net.prefix and net.base_slot is None


@every
def test_gradients_are_finite(name):
    leaves = jax.tree.leaves(results(name)[0]["gradients"])
    assert all(np.isfinite(g).all() for g in leaves)
    assert sum(bool(g.any()) for g in leaves) > len(leaves) / 2


@every
def test_a_file_gives_the_same_tokenizer(name, tmp_path):
    net, path = toy(name), tmp_path / "tokenizer.safetensors"
    save_tokenizer(path, net)
    loaded = load_tokenizer(path)
    assert type(loaded) is type(net) and loaded.config == net.config and fingerprint(loaded) == fingerprint(net)
    if net.base_slot is None:
        with pytest.raises(UserError, match="uses no base tokenizer"):
            load_tokenizer(path, base=Means(4))


@every
def test_all_parameters_have_a_name_in_the_authors_files(name):
    net = toy(name)
    ours = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(net, nnx.Param))}
    named = [rule.path for rule in net.names()]
    assert ours <= set(named) and len(named) == len(set(named))


@every
def test_bad_input_gets_one_sentence(name):
    net = toy(name)
    x = np.zeros((1, SIDE, SIDE, 3), np.float32)
    bad = {
        "another size": (lambda: net.encode(x[:, :-1]), str(SIDE - 1)),
        "no batch": (lambda: net.encode(x[0]), str((SIDE, SIDE, 3))),
        "bytes": (lambda: net.encode(x.astype(np.uint8)), "divide bytes by 255"),
        "no tokens": (lambda: net.encode(x, 0), "0 tokens"),
        "too many tokens": (lambda: net.encode(x, 999), "999 tokens"),
        "tokens and quality": (lambda: net.encode(x, net.lengths[-1], quality=20.0), "not both"),
    }
    for what, (call, words) in bad.items():
        with pytest.raises(UserError) as error:
            call()
        assert words in str(error.value) and "\n" not in str(error.value), what


def test_what_is_not_in_the_catalogue_is_refused():
    with pytest.raises(UserError, match="is not in the catalogue"):
        registry.entry_of(Means(4))
    with pytest.raises(UserError, match="config of no tokenizer"):
        registry.with_config(3)
