"""VQ: a training step of the moving-average codebook, the learned codebook, MAGVIT's entropy loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jtok.tokenizers.quantizers import vq
from jtok.tokenizers.quantizers.ema import Codebook, EmaVQ
from tests.parity.case import Case

SLUG = "vq"


def core(case: Case) -> dict[str, np.ndarray]:
    p, w = case.params, case.inputs["w"]
    x, embed, count, total = (jnp.asarray(case.inputs[k]) for k in ("x", "embed", "cluster_size", "embed_avg"))
    how = "rotation" if p["rotation_trick"] else "identity"
    dead = p["threshold_ema_dead_code"]
    quantizer = EmaVQ(p["decay"], p["use_cosine_sim"], p["commitment_weight"], p["eps"], dead, how)
    book = Codebook(embed, count, total)

    def objective(x):
        result = quantizer(x, book, train=True)
        return (result.values * w).sum() + result.losses["total"], result

    grad, result = jax.grad(objective, has_aux=True)(x)
    new = quantizer.update(book, x, result.indices)
    return {
        "quantized": result.values,
        "indices": result.indices,
        "commit_loss": result.losses["total"],
        "grad_x": grad,
        "new_embed": new.codes,
        "new_cluster_size": new.count,
        "new_embed_avg": new.total,
    }


def learned(case: Case) -> dict[str, np.ndarray]:
    p, z = case.params, jnp.moveaxis(jnp.asarray(case.inputs["z"]), 1, -1)
    w, codebook = np.moveaxis(case.inputs["w"], 1, -1), jnp.asarray(case.inputs["codebook"])
    quantizer = vq.VQ(
        *codebook.shape, cosine=p["l2_norm"], beta=p["beta"], reduce="channels", rngs=nnx.Rngs(0)
    )  # fmt: skip
    graph, _ = nnx.split(quantizer)

    def objective(z, codebook):
        result = nnx.merge(graph, nnx.State({"codebook": nnx.Param(codebook)}))(z, train=True)
        return (result.values * w).sum() + result.losses["total"], result

    (grad_z, grad_codebook), result = jax.grad(objective, (0, 1), has_aux=True)(z, codebook)
    return {
        "quantized": jnp.moveaxis(result.values, -1, 1),
        "loss": result.losses["total"],
        "indices": result.indices.reshape(z.shape[0], -1),
        "usage_entropy": vq.usage_entropy(result.indices, codebook.shape[0]),
        "grad_z": jnp.moveaxis(grad_z, -1, 1),
        "grad_codebook": grad_codebook,
    }


def entropy(case: Case) -> dict[str, np.ndarray]:
    p, x, codebook = case.params, jnp.asarray(case.inputs["x"]), case.inputs["codebook"]

    def losses(x):
        return vq.entropy_loss(
            vq.squared_distances(x, codebook),
            p["temperature"],
            hard=p["loss_type"] == "argmax",
            sample_weight=p["sample_minimization_weight"],
            batch_weight=p["batch_maximization_weight"],
        )

    result = losses(x)
    return {
        "distances": vq.squared_distances(x, codebook),
        "indices": vq.lookup(x, codebook),
        "entropy_loss": result["total"],
        "sample_entropy": result["sample"],
        "avg_entropy": result["batch"],
        "grad_x": jax.grad(lambda x: losses(x)["total"])(x),
    }


COMPONENTS = {"core": core, "learned-l2norm": learned, "entropy-softmax": entropy}
TOLERANCE = dict.fromkeys(COMPONENTS, (1e-5, 1e-5))
