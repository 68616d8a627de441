"""VAR's quantizer: indices of all scales, sums, losses, gradients, and what the predictor reads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jtok.tokenizers.quantizers.multi_scale import MultiScaleVQ
from tests.parity.case import Case

SLUG = "var"


def quant(case: Case) -> dict[str, np.ndarray]:
    p, weights = case.params, case.weights
    last, first = (lambda x: jnp.moveaxis(jnp.asarray(x), 1, -1)), (lambda x: jnp.moveaxis(x, -1, 1))
    book = jnp.asarray(weights["embedding.weight"])
    vq = MultiScaleVQ(
        *book.shape,
        p["v_patch_nums"],
        convolutions=p["share_quant_resi"],
        residual=p["quant_resi"],
        cosine=p["using_znorm"],
        beta=p["beta"],
        rngs=nnx.Rngs(0),
    )
    for i, conv in enumerate(vq.smooth):
        conv.kernel[...] = jnp.transpose(weights[f"quant_resi.qresi_ls.{i}.weight"], (2, 3, 1, 0))
        conv.bias[...] = jnp.asarray(weights[f"quant_resi.qresi_ls.{i}.bias"])
    graph, state = nnx.split(vq)
    z, w = last(case.inputs["f"]), last(case.inputs["w"])

    def objective(z, book):
        state["codebook"] = nnx.Param(book)
        result = nnx.merge(graph, state)(z, train=True)
        return (result.values * w).sum() + result.losses["total"], result

    (grad_f, grad_book), result = jax.grad(objective, (0, 1), has_aux=True)(z, book)
    vq.codebook[...] = book
    total, steps = 0.0, []
    for scale, codes in enumerate(vq.maps(result.indices)):
        total, x = vq.next_input(total, codes, scale)
        steps.append(first(x).reshape(x.shape[0], -1))
    return {
        "indices": result.indices,
        "f_hats": jnp.stack([first(s) for s in vq.encode(z)[1]]),
        "vq_loss": result.losses["total"],
        "f_hat_ste": first(result.values),
        "grad_f": first(grad_f),
        "grad_embedding": grad_book,
        "var_input": vq.teacher_inputs(result.indices),
        "rec": first(vq.decode(result.indices)),
        "phi_index": np.array([vq.smoother(i) for i in range(len(vq.sides))]),
        "next_inputs": jnp.concatenate(steps, 1),
    }


COMPONENTS = {"quant": quant}
TOLERANCE = {"quant": (1e-4, 1e-5)}
