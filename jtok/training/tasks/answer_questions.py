"""A vision-language model from scratch on digit-scene questions: LLaVA-1.5's shape at toy scale (arXiv:2310.03744).

Each image is encoded once for all of its questions: the decoder reads the image, and then every question as a
branch of its own, which attends to the image and itself, at the positions it would have alone. Besides the answers the
tower learns what each patch shows (`patch_targets`): heads that read its features, and are not part of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from jtok.data import batches
from jtok.data.question_sets import digit_question_sets
from jtok.data.question_text import BOS, IMAGE, VOCABULARY
from jtok.data.questions import KINDS, digit_questions
from jtok.errors import UserError
from jtok.layers.projector import ProjectorConfig
from jtok.layers.stack import Run
from jtok.methods import catalogue
from jtok.models.decoder.decoder import DecoderConfig
from jtok.models.towers.vit import ViTConfig, ViTOutput
from jtok.models.vlm.model import load
from jtok.models.vlm.network import VLMConfig, VLMNetwork
from jtok.models.vlm.shipped import shipped
from jtok.plan import Plan
from jtok.sites import PROJECTOR
from jtok.tokens import Tokens
from jtok.training.config import default_plan_config, default_train_config, plan_options
from jtok.training.tasks.branches import Prefix, branch
from jtok.training.tasks.classify import normalise
from jtok.training.tasks.patch_targets import dense_loss, new_heads


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
    config.plan = default_plan_config()
    config.weights = ""  # directory to start from; "shipped" = the model that comes with jtok
    config.freeze_tower = False
    config.dense = 1.0  # weight of the patch losses
    config.tower_steps = 0  # updates at the beginning in which the decoder is left out
    return config


def make_vlm_config(config: ml_collections.ConfigDict) -> VLMConfig:
    """The model that `config.model` asks for: CLIP's tower, an MLP and Llama's decoder."""
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
        p = config.plan
        self.plan = catalogue.make_plan(p.method, self.model.target(), p.keep, **plan_options(p))
        self._check_plan()
        self.graphdef, _ = nnx.split(nnx.eval_shape(lambda: VLMNetwork(self.model, nnx.Rngs(0))), nnx.Param)

    def init(self, key: Array) -> dict[str, Any]:
        """Fresh parameters, or those of `config.weights`; what the plan has to learn is added under "plan"."""
        model = nnx.to_pure_dict(nnx.state(VLMNetwork(self.model, nnx.Rngs(key)), nnx.Param))
        if self.config.weights:
            model = load_weights(self.config.weights, self.model)
        learned = self.plan.params()
        return {"model": model, "dense": new_heads(self.model.tower.width)} | ({"plan": learned} if learned else {})

    def loss(self, params, batch, key, step) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Cross-entropy of the answers' tokens, and the patch losses of the tower."""
        network = self._network(params)
        seen = self._look(network, batch, hidden=True)
        terms = {}
        if self.config.dense:
            terms = dense_loss(params["dense"], seen.tokens, batch, self.model.tower.side, self.config.data.size)

        def answers():
            each = [self._judge(network, seen, plan, batch) for plan in self._plans(params, key)]
            return tuple(sum(values) / len(each) for values in zip(*each, strict=True))

        if self.config.tower_steps:
            zeros = jnp.zeros(()), jnp.zeros(())
            answer, right = jax.lax.cond(step >= self.config.tower_steps, answers, lambda: zeros)
        else:
            answer, right = answers()
        loss = answer + self.config.dense * sum(terms.values())
        return loss, {"answer": answer, "accuracy": right, **terms}

    def _judge(self, network, seen, plan: Plan, batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """(mean cross-entropy, share of right answers) with a plan."""
        logits = self._answer(network, seen, plan, batch)
        asked = (batch["question_length"] > 0)[..., None]
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["answer"])
        right = ((logits.argmax(-1) == batch["answer"]).all(-1, keepdims=True) & asked).sum() / asked.sum()
        return jnp.where(asked, each, 0.0).sum() / asked.sum(), right.astype(jnp.float32)

    def evaluate(self, params, batch) -> dict[str, Float[Array, "B"]]:
        """Per question: whether the answer and its end come first of all tokens, given the question.

        Kinds come equally often, so that the mean of `accuracy_<kind>` over a multiple of seven questions is that of
        the kind.
        """
        sets = {name: batch[name][:, None] for name in ("question", "question_length", "answer")}
        network = self._network(params)
        plan = self.plan.with_params(params.get("plan", {}))
        logits = self._answer(network, self._look(network, batch, hidden=True), plan, sets)[:, 0]
        right = (logits.argmax(-1) == batch["answer"]).all(-1).astype(jnp.float32)
        kinds = {f"accuracy_{kind}": right * (batch["kind"] == i) * len(KINDS) for i, kind in enumerate(KINDS)}
        return {"accuracy": right, **kinds}

    def trainable(self, params):
        """All, or with `freeze_tower` all but the tower."""
        if not self.config.freeze_tower:
            return None
        learns = jax.tree.map(lambda _: True, params)
        learns["model"]["tower"] = jax.tree.map(lambda _: False, params["model"]["tower"])
        learns["dense"] = jax.tree.map(lambda _: False, params["dense"])
        return learns

    def train_data(self) -> Iterable[Mapping[str, Any]]:
        """Endless shuffled batches of pictures with several questions each."""
        d = self.config.data
        data = digit_question_sets("train", questions=d.questions, size=d.size, cut=d.cut, seed=d.seed)
        return batches(data, batch=self.config.train.batch, seed=self.config.seed, shuffle=True)

    def eval_data(self) -> Iterable[Mapping[str, Any]]:
        """One pass over the held-out questions, one per image."""
        d = self.config.data
        data = digit_questions(d.eval_split, size=d.size, cut=d.cut, seed=d.seed, length=d.eval_questions)
        return batches(data, batch=min(d.eval_batch, len(data)), epochs=1, drop_remainder=False)

    def _check_plan(self) -> None:
        """Raises UserError for plans with anything but a projector and the reducer at its output."""
        others = [site for site in self.plan.sites if site != PROJECTOR]
        if others:
            raise UserError(
                f"{self.plan.name} is placed at {others[0]}: only what is placed at the projector is trained here."
            )

    def _network(self, params) -> VLMNetwork:
        return nnx.merge(self.graphdef, nnx.State(params["model"]))

    def _plans(self, params, key: Array) -> Sequence[Plan]:
        return self.plan.with_params(params.get("plan", {})).for_training(key)

    def _look(self, network: VLMNetwork, batch, *, hidden: bool = False) -> ViTOutput:
        """What the tower makes of the pictures."""
        d = self.config.data
        hidden = hidden and bool(getattr(self.plan.projector, "layers_read", ()))
        return network.tower(normalise(batch["image"], d.mean, d.std), hidden=hidden)

    def _answer(self, network: VLMNetwork, seen: ViTOutput, plan: Plan, batch) -> Float[Array, "B Q 2 V"]:
        """Logits of the two tokens of the answers, given what comes before them."""
        visual = self._visual(network, seen, plan)
        b, place = visual.x.shape[0], self._place(visual, plan)
        bos = network.language.embed(jnp.full((b, 1), BOS))
        prefix = Prefix(
            jnp.concatenate([bos, visual.x.astype(bos.dtype)], 1),
            jnp.concatenate([jnp.zeros((b, 1), jnp.int32), place], 1),
            jnp.concatenate([jnp.ones((b, 1), bool), visual.mask()], 1),
            1 + (self.model.target().patches if plan.placed in ("keep", "restore") else visual.mask().sum(1)),
        )
        length, question = batch["question_length"], batch["question"]
        slots = jnp.arange(question.shape[-1])
        ids = jnp.where(slots == length[..., None], batch["answer"][..., :1], question)
        y = branch(network.language, prefix, network.language.embed(ids))
        at = jnp.maximum(length, 1)[..., None] + jnp.array([-1, 0])
        y = jnp.take_along_axis(y, jnp.minimum(at, len(slots) - 1)[..., None], 2)
        return network.language.logits(y.reshape(b, -1, y.shape[-1])).reshape(*at.shape, -1)

    def _visual(self, network: VLMNetwork, seen: ViTOutput, plan: Plan) -> Tokens:
        """The visual tokens that the decoder gets."""
        projector = plan.projector or network.projector
        taps = [seen.hidden[i][:, 1:] for i in getattr(projector, "layers_read", ())]
        tokens = projector(seen.tokens.split()[1], taps, plan.projector_count)
        run = Run(plan, tokens, [PROJECTOR], slots=("projector",))
        run.reduce(PROJECTOR)
        return run.tokens

    def _place(self, visual: Tokens, plan: Plan) -> Int[Array, "B N"]:
        """Their positions in the prompt."""
        if plan.placed in ("renumber", "order"):
            return 1 + jnp.maximum(jnp.cumsum(visual.mask(), 1) - 1, 0)
        row, column = jnp.moveaxis(jnp.maximum(jnp.round(visual.position), 0).astype(jnp.int32), -1, 0)
        return 1 + row * self.model.tower.side + column


def load_weights(name: str, config: VLMConfig) -> dict[str, Any]:
    """Parameters from a directory, or of the shipped model. Raises UserError for those of another shape."""
    model = shipped() if name == "shipped" else load(name)
    theirs, ours = (_shape(c) for c in (model.config, config))
    if theirs != ours:
        raise UserError(f"the model '{name}' is not of the shape that config.model states: make them agree.")
    return model.params


def _shape(config: VLMConfig) -> tuple[int, ...]:
    tower, language = config.tower, config.language
    sizes = [tower.image, tower.patch, tower.width, tower.depth, tower.heads, tower.mlp]
    return *sizes, language.vocabulary, language.width, language.depth, language.heads, language.mlp
