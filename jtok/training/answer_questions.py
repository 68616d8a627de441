"""A vision-language model from scratch on digit-scene questions: LLaVA-1.5's shape at toy scale (arXiv:2310.03744).

Each picture is looked at once for all of its questions: the decoder reads the picture, and then every question as a
branch of its own, which sees the picture and itself, at the positions it would have alone. Beside the answers the
tower is told what each patch shows (`dense_targets`): heads that read its features, and are not part of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jtok.data import batches
from jtok.data.question_sets import digit_question_sets
from jtok.data.question_text import BOS, IMAGE, VOCABULARY
from jtok.data.questions import KINDS, digit_questions
from jtok.models.decoder import Decoder, DecoderConfig, Layer, Stack
from jtok.models.projectors import ProjectorConfig
from jtok.models.vit import ViTConfig
from jtok.models.vlm import VLMConfig, VLMNetwork
from jtok.training.classify import normalise
from jtok.training.config import default_train_config

DIGITS = 10
#: What the dense heads tell of a patch: its digit or none, whether it holds the digit's centre, and the digit's box.
_DENSE = DIGITS + 1 + 1 + 4


def default_config() -> ml_collections.ConfigDict:
    """Every field of the experiment, with defaults; configs change what they need."""
    config = default_train_config()
    config.task = "answer_questions"
    config.model = ml_collections.ConfigDict(
        {"patch": 8, "tower_width": 128, "tower_depth": 6, "tower_mlp": 384, "tower_heads": 4}
    )
    config.model.update({"width": 128, "depth": 4, "mlp": 256, "heads": 4})
    config.data = ml_collections.ConfigDict({"size": 96, "cut": "stratified", "seed": 0, "questions": 10})
    config.data.update({"eval_split": "validation", "eval_questions": 490, "eval_batch": 70})
    config.data.update({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)})
    config.dense = 1.0  # weight of what the tower is told of its patches
    config.tower_steps = 0  # updates at the beginning in which the decoder is left out
    return config


def make_vlm_config(config: ml_collections.ConfigDict) -> VLMConfig:
    """The model that `config.model` asks for: CLIP's tower, a perceptron and Llama's decoder."""
    m, dtype = config.model, config.train.dtype
    tower = ViTConfig(
        image=config.data.size, patch=m.patch, width=m.tower_width, depth=m.tower_depth, heads=m.tower_heads,
        mlp=m.tower_mlp, head="none", act="quick_gelu", eps=1e-5, patch_bias=False, pre_norm=True, final_norm="none",
        remat=config.train.remat, dtype=dtype,
    )  # fmt: skip
    language = DecoderConfig(
        vocabulary=len(VOCABULARY), width=m.width, depth=m.depth, heads=m.heads, kv_heads=m.heads,
        head_dim=m.width // m.heads, mlp=m.mlp, remat=config.train.remat, dtype=dtype,
    )  # fmt: skip
    return VLMConfig("llava", tower, ProjectorConfig(m.tower_width, m.width), language, IMAGE)


class AnswerQuestions:
    """The training loop's task: parameters are {"model": the vision-language model, "dense": heads of the tower}."""

    def __init__(self, config: ml_collections.ConfigDict):
        self.config = config
        self.model = make_vlm_config(config)
        self.graphdef, _ = nnx.split(nnx.eval_shape(lambda: VLMNetwork(self.model, nnx.Rngs(0))), nnx.Param)

    def init(self, key: Array) -> dict[str, Any]:
        """Fresh parameters."""
        model = nnx.to_pure_dict(nnx.state(VLMNetwork(self.model, nnx.Rngs(key)), nnx.Param))
        width = self.model.tower.width
        dense = {"kernel": jnp.zeros((width, _DENSE)), "bias": jnp.zeros(_DENSE)}
        whole = {"kernel": jnp.zeros((width, DIGITS)), "bias": jnp.zeros(DIGITS)}
        return {"model": model, "dense": {"patch": dense, "image": whole}}

    def loss(self, params, batch, key, step) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Cross-entropy of the answers' tokens, and what the tower is told of its patches."""
        network, features = self._look(params, batch)
        terms = dense_loss(params["dense"], features, batch, self.model.tower.side, self.config.data.size)

        def answers():
            logits = self._answer(network, features, batch)
            asked = (batch["question_length"] > 0)[..., None]
            each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["answer"])
            right = ((logits.argmax(-1) == batch["answer"]).all(-1, keepdims=True) & asked).sum() / asked.sum()
            return jnp.where(asked, each, 0.0).sum() / asked.sum(), right.astype(jnp.float32)

        if self.config.tower_steps:
            zeros = jnp.zeros(()), jnp.zeros(())
            answer, right = jax.lax.cond(step >= self.config.tower_steps, answers, lambda: zeros)
        else:
            answer, right = answers()
        loss = answer + self.config.dense * sum(terms.values())
        return loss, {"answer": answer, "accuracy": right, **terms}

    def evaluate(self, params, batch) -> dict[str, Float[Array, "B"]]:
        """Per question: whether the answer and its end come first of all tokens, given the question.

        Kinds come equally often, so that the mean of `accuracy_<kind>` over a multiple of seven questions is that of
        the kind.
        """
        sets = {name: batch[name][:, None] for name in ("question", "question_length", "answer")}
        network, features = self._look(params, batch)
        logits = self._answer(network, features, sets)[:, 0]
        right = (logits.argmax(-1) == batch["answer"]).all(-1).astype(jnp.float32)
        kinds = {f"accuracy_{kind}": right * (batch["kind"] == i) * len(KINDS) for i, kind in enumerate(KINDS)}
        return {"accuracy": right, **kinds}

    def trainable(self, params) -> None:
        """All."""
        return None

    def train_data(self) -> Iterable[Mapping[str, Any]]:
        """Endless shuffled batches of pictures with several questions each."""
        d = self.config.data
        data = digit_question_sets("train", questions=d.questions, size=d.size, cut=d.cut, seed=d.seed)
        return batches(data, batch=self.config.train.batch, seed=self.config.seed, shuffle=True)

    def eval_data(self) -> Iterable[Mapping[str, Any]]:
        """One pass over the held-out questions, one a picture."""
        d = self.config.data
        data = digit_questions(d.eval_split, size=d.size, cut=d.cut, seed=d.seed, length=d.eval_questions)
        return batches(data, batch=min(d.eval_batch, len(data)), epochs=1, drop_remainder=False)

    def _look(self, params, batch) -> tuple[VLMNetwork, Float[Array, "B N D"]]:
        """The model, and the tower's features, the class token first."""
        network = nnx.merge(self.graphdef, nnx.State(params["model"]))
        d = self.config.data
        return network, network.tower(normalise(batch["image"], d.mean, d.std)).tokens

    def _answer(self, network: VLMNetwork, features, batch) -> Float[Array, "B Q 2 V"]:
        """Logits of the two tokens of the answers, given what comes before them."""
        visual = network.projector(features.split()[1]).x
        bos = network.language.embed(jnp.full((visual.shape[0], 1), BOS))
        length, question = batch["question_length"], batch["question"]
        slots = jnp.arange(question.shape[-1])
        ids = jnp.where(slots == length[..., None], batch["answer"][..., :1], question)
        y = branch(network.language, jnp.concatenate([bos, visual], 1), network.language.embed(ids))
        at = jnp.maximum(length, 1)[..., None] + jnp.array([-1, 0])
        y = jnp.take_along_axis(y, jnp.minimum(at, len(slots) - 1)[..., None], 2)
        return network.language.logits(y.reshape(y.shape[0], -1, y.shape[-1])).reshape(*at.shape, -1)


def branch(
    decoder: Decoder, prefix: Float[Array, "B P D"], branches: Float[Array, "B Q T D"]
) -> Float[Array, "B Q T D"]:
    """Outputs of a decoder's last layer for Q texts that each follow the same prefix, at positions P, P + 1, ...

    The same as running Q sequences, at the cost of one prefix. Texts are padded behind.
    """
    b, p, d = prefix.shape
    q, t = branches.shape[1:3]
    count = jnp.broadcast_to(jnp.arange(p), (b, p))
    after = jnp.broadcast_to(p + jnp.arange(t), (b, q, t)).reshape(b, q * t)
    turn = decoder.turn(jnp.concatenate([count, after], 1)[..., None])

    def body(layer: Layer, x: Array) -> tuple[Array, None]:
        queries, keys, values = layer.project(x, turn)
        own = [a[:, p:].reshape(b, q, t, *a.shape[2:]) for a in (queries, keys, values)]
        first = jax.nn.dot_product_attention(queries[:, :p], keys[:, :p], values[:, :p], is_causal=True)
        rest = _branch_attention(*own, keys[:, :p], values[:, :p]).reshape(b, q * t, *first.shape[2:])
        return layer.finish(x, jnp.concatenate([first, rest], 1)), None

    x = jnp.concatenate([prefix, branches.reshape(b, q * t, d)], 1)
    x, _ = Stack(decoder).scan(body, x, 0, decoder.config.depth)
    return x[:, p:].reshape(b, q, t, d)


def _branch_attention(q, k, v, prefix_k, prefix_v) -> Float[Array, "B Q T H Dh"]:
    """Attention of each branch to the prefix and, causally, to itself."""
    scale, t = q.shape[-1] ** -0.5, q.shape[2]
    to_prefix = jnp.einsum("bqthd,bphd->bqhtp", q, prefix_k)
    to_own = jnp.einsum("bqthd,bqshd->bqhts", q, k)
    to_own = jnp.where(jnp.tril(jnp.ones((t, t), bool)), to_own, jnp.finfo(to_own.dtype).min)
    weights = jax.nn.softmax(scale * jnp.concatenate([to_prefix, to_own], -1).astype(jnp.float32), -1).astype(v.dtype)
    first, own = jnp.split(weights, [prefix_k.shape[1]], -1)
    return jnp.einsum("bqhtp,bphd->bqthd", first, prefix_v) + jnp.einsum("bqhts,bqshd->bqthd", own, v)


def dense_targets(
    labels: Int[Array, "B K"], boxes: Float[Array, "B K 4"], side: int, size: int
) -> tuple[Int[Array, "B N"], Bool[Array, "B N"], Bool[Array, "B N"], Float[Array, "B N 4"]]:
    """What each of side * side patches of a picture of `size` pixels shows.

    (digit, 10 where there is none; whether that is certain, which it is not for patches that a box just touches;
    whether the centre of a digit's box is in the patch; that box over the picture's size).
    """
    patch = size / side
    edges = jnp.arange(side) * patch
    y0, x0, y1, x1 = jnp.moveaxis(boxes[:, :, None], -1, 0)  # [B,K,1]
    rows = jnp.clip(jnp.minimum(y1, edges + patch) - jnp.maximum(y0, edges), 0)
    columns = jnp.clip(jnp.minimum(x1, edges + patch) - jnp.maximum(x0, edges), 0)
    overlap = (rows[:, :, :, None] * columns[:, :, None]).reshape(*labels.shape, -1) / patch**2  # [B,K,N]
    best, most = overlap.argmax(1), overlap.max(1)
    shown = most >= 0.25
    digit = jnp.where(shown, jnp.take_along_axis(labels, best, 1), DIGITS)
    box = jnp.take_along_axis(boxes, best[..., None], 1) / size
    cell = jnp.floor((boxes[..., :2] + boxes[..., 2:]) / 2 / patch).astype(jnp.int32)
    centre = (cell[..., 0] * side + cell[..., 1])[..., None] == jnp.arange(side * side)
    return digit, shown | (most == 0), (centre & (labels >= 0)[..., None]).any(1), box


def dense_loss(heads, features, batch, side: int, size: int) -> dict[str, Float[Array, ""]]:
    """Losses of the heads that read the tower: each patch tells its digit, the class token those of the picture."""
    x = features.x.astype(jnp.float32)
    digit, certain, centre, box = dense_targets(batch["labels"], batch["boxes"], side, size)
    out = x[:, 1:] @ heads["patch"]["kernel"] + heads["patch"]["bias"]
    classes, is_centre, boxes = jnp.split(out, [DIGITS + 1, DIGITS + 2], -1)
    each = optax.softmax_cross_entropy_with_integer_labels(classes, digit)
    shown = digit < DIGITS
    # patches of digits are about a sixth: both sides count alike
    digits, ground = (jnp.sum(each * m) / jnp.maximum(jnp.sum(m), 1) for m in (shown & certain, ~shown & certain))
    at_centre = optax.sigmoid_binary_cross_entropy(is_centre[..., 0], centre.astype(jnp.float32))
    off = jnp.abs(boxes - box).mean(-1)
    there = jax.nn.one_hot(batch["labels"], DIGITS).max(1)
    found = x[:, 0] @ heads["image"]["kernel"] + heads["image"]["bias"]
    return {
        "patch_digit": digits,
        "patch_ground": ground,
        "patch_centre": (at_centre * (shown | centre)).sum() / jnp.maximum((shown | centre).sum(), 1),
        "patch_box": 5 * jnp.sum(off * shown) / jnp.maximum(jnp.sum(shown), 1),
        "image_digits": optax.sigmoid_binary_cross_entropy(found, there).mean(),
    }
