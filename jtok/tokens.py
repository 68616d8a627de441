"""A token set: what travels through a model and what reducers make smaller."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jtok import kernels
from jtok.errors import UserError
from jtok.ops.merge import Matching

AbsorbMode = Literal["size", "mean", "sum", "add_mean"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token features with everything that must follow them when tokens are taken or merged.

    Shapes: B images, N tokens, D features, N0 original patches, P position coordinates. The first `special` tokens
    (class, distillation, registers) are never dropped and own no patches.
    """

    x: Float[Array, "B N D"]
    size: Float[Array, "B N"]  # patches each token stands for, float32
    owner: Int[Array, "B N0"]  # index of the token that holds each original patch; -1 = dropped
    position: Float[Array, "B N P"]  # (row, column) or (time, row, column), float32; special tokens at -1
    segment: Int[Array, "B N"]  # crop, frame or image that a token belongs to
    valid: Bool[Array, "B N"] | None = None  # False = padding; None = all tokens are real
    policy: Float[Array, "B N"] | None = None  # soft keep decision in training: multiplies attention to a token
    carry: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # arrays [B,N,...] that follow takes and merges
    special: int = dataclasses.field(default=0, metadata={"static": True})
    grid: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})  # patches per axis at the input
    proportional: bool = dataclasses.field(default=False, metadata={"static": True})  # log size biases attention

    @property
    def count(self) -> int:
        """Number of token slots N, special ones included."""
        return self.x.shape[1]

    @property
    def patches(self) -> int:
        """Number of token slots that are not special."""
        return self.count - self.special

    def replace(self, **changes: Any) -> Tokens:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def mask(self) -> Bool[Array, "B N"]:
        """`valid`, spelled out when it is None."""
        return jnp.ones(self.x.shape[:2], bool) if self.valid is None else self.valid

    def split(self) -> tuple[Tokens, Tokens]:
        """(special tokens, the others), each a token set; `concat` reverses it."""
        s = self.special
        head = self._slice(slice(0, s), jnp.where(self.owner < s, self.owner, -1), special=s)
        body = self._slice(slice(s, None), jnp.where(self.owner >= s, self.owner - s, -1), special=0)
        return head, body

    def concat(self, other: Tokens) -> Tokens:
        """This set followed by another part of the same images; a patch owned by both stays with this one."""
        owner = jnp.where(other.owner >= 0, other.owner + self.count, -1)
        both = (
            self.replace(valid=self.mask(), policy=self._policy()),
            other.replace(valid=other.mask(), policy=other._policy()),
        )
        if self.valid is None and other.valid is None:
            both = tuple(t.replace(valid=None) for t in both)
        if self.policy is None and other.policy is None:
            both = tuple(t.replace(policy=None) for t in both)
        joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), both[0]._rows(), both[1]._rows())
        return self.replace(
            **joined,
            owner=jnp.where(self.owner >= 0, self.owner, owner),
            special=self.special + other.special,
            proportional=self.proportional or other.proportional,
        )

    def take(self, index: Int[Array, "B K"], keep: Bool[Array, "B K"] | None = None) -> Tokens:
        """The tokens at `index`, in that order. Slots where `keep` is False become padding (zero features, not valid).

        Raises UserError when more tokens are asked for than there are.
        """
        if keep is None and index.shape[1] > self.count:
            raise UserError(f"cannot keep {index.shape[1]} tokens out of {self.count}: ask for fewer tokens.")
        rows = kernels.gather(self._rows(), index)
        if keep is not None:
            valid = keep if rows["valid"] is None else keep & rows["valid"]
            rows |= {"x": jnp.where(keep[..., None], rows["x"], 0), "valid": valid}
            rows["size"] = jnp.where(keep, rows["size"], 0)
        return self.replace(**rows, owner=rename(self.owner, invert(index, self.count, keep)))

    def absorb(
        self, others: Tokens, match: Int[Array, "B M"], how: AbsorbMode = "size", weight: Array | None = None
    ) -> Tokens:
        """Merges each of `others` into the token of this set that `match` names (-1: into none, it is dropped).

        how: `size` size-weighted mean (or weighted by `weight=(own [B,N], theirs [B,M])`), `mean` plain mean of the
        target and what joins it, `sum` plain sum, `add_mean` target plus the mean of what joins it (VisionZip).
        Sizes add up and the patches of `others` change owner. Positions and `carry` are averaged by size.
        """
        num = self.count
        if others.valid is not None:
            match = jnp.where(others.valid, match, -1)
        targets, theirs = (self.size, others.size) if weight is None else weight
        mass = kernels.merge(others.size[..., None], match, num)[0][..., 0]

        def average(a, b, wa, wb):
            flat = b.reshape(*b.shape[:2], -1)
            total, w = kernels.merge(flat, match, num, weight=wb)
            total = total.reshape(a.shape)
            wa, w = (t.reshape(*t.shape, *[1] * (a.ndim - 2)) for t in (wa, w))
            return ((a * wa + total) / jnp.maximum(wa + w, 1e-12)).astype(a.dtype)

        ones = jnp.ones_like(self.size), jnp.ones_like(others.size)
        if how == "size":
            x = average(self.x, others.x, targets, theirs)
        elif how == "mean":
            x = average(self.x, others.x, *ones)
        else:
            total, n = kernels.merge(others.x, match, num)
            x = (self.x + (total if how == "sum" else total / jnp.maximum(n, 1)[..., None])).astype(self.x.dtype)
        joining = rename(others.owner, match)
        return self.replace(
            x=x,
            size=self.size + mass,
            owner=jnp.where(self.owner >= 0, self.owner, joining),
            position=average(self.position, others.position, self.size, others.size),
            carry=jax.tree.map(
                lambda a, b: average(a, b, self.size, others.size), dict(self.carry), dict(others.carry)
            ),
        )

    def merge(self, assign: Int[Array, "B N"], num: int, weight: Float[Array, "B N"] | None = None) -> Tokens:
        """`num` new tokens, each the weighted mean (by size unless `weight` is given) of the tokens assigned to it.

        assign: new index of every token, -1 = dropped. Empty groups give zero rows of size 0.
        """
        if self.valid is not None:
            assign = jnp.where(self.valid, assign, -1)

        def average(a, w):
            total, mass = kernels.merge(a.reshape(*a.shape[:2], -1), assign, num, weight=w, mode="mean")
            return total.reshape(a.shape[0], num, *a.shape[2:]).astype(a.dtype)

        size = kernels.merge(self.size[..., None], assign, num)[0][..., 0]
        first = first_member(assign, num)
        return self.replace(
            x=average(self.x, self.size if weight is None else weight),
            size=size,
            owner=rename(self.owner, assign),
            position=average(self.position, self.size),
            segment=jnp.take_along_axis(self.segment, first, 1),
            valid=None if self.valid is None else size > 0,
            policy=None if self.policy is None else average(self.policy, self.size),
            carry={k: jax.tree.map(lambda a: average(a, self.size), v) for k, v in self.carry.items()},
        )

    def join(self, matching: Matching, how: AbsorbMode = "size") -> Tokens:
        """The set in which the sources of a matching have joined their targets; `how` as in `absorb`."""
        if matching.source.shape[1] == 0:
            return self
        return self.take(matching.kept).absorb(self.take(matching.source), matching.slot, how)

    def pool(self, cells: np.ndarray, num: int) -> Tokens:
        """Merges the patches of every crop by a fixed table: cell of each place of the grid, -1 = left out.

        `num` tokens a crop, crop after crop, each the mean of its cell; there must be no special tokens. Raises
        UserError if the tokens are no longer the whole grid.
        """
        crops = self.owner.shape[1] // cells.size
        if self.special or self.count != crops * cells.size:
            before = "no reducer may be placed before the pooling, and grids may not be resampled"
            raise UserError(f"cells need all {cells.size} patches of every crop: {before}.")
        cells = cells.reshape(-1)
        assign = np.concatenate([np.where(cells < 0, -1, cells + crop * num) for crop in range(crops)])
        return self.merge(jnp.broadcast_to(jnp.asarray(assign, jnp.int32), self.x.shape[:2]), crops * num)

    def mix(self, weights: Float[Array, "B K N"], x: Float[Array, "B K D"] | None = None) -> Tokens:
        """K new tokens, each a soft mixture of all tokens; `x` gives the features if they are not `weights @ x`.

        A patch is owned by the token that takes most of its weight (ties: the lowest index), and by none (-1) if no
        token takes any. Sizes, positions and `carry` mix with the weights, normalised over the K tokens for sizes and
        over the N tokens otherwise.
        """
        w = weights.astype(jnp.float32)
        if self.valid is not None:
            w = jnp.where(self.valid[:, None], w, 0)
        x = jnp.einsum("bkn,bnd->bkd", w, self.x.astype(jnp.float32)) if x is None else x
        share = w / jnp.maximum(w.sum(1, keepdims=True), 1e-12)
        mean = w / jnp.maximum(w.sum(2, keepdims=True), 1e-12)

        def mixed(a):
            return jnp.einsum("bkn,bn...->bk...", mean, a.astype(jnp.float32)).astype(a.dtype)

        k = w.shape[1]
        return self.replace(
            x=x.astype(self.x.dtype),
            size=jnp.einsum("bkn,bn->bk", share, self.size),
            owner=rename(self.owner, jnp.where(w.max(1) > 0, jnp.argmax(w, 1), -1).astype(jnp.int32)),
            position=mixed(self.position),
            segment=jnp.broadcast_to(self.segment[:, :1], (w.shape[0], k)),
            valid=None,
            policy=None if self.policy is None else mixed(self.policy),
            carry={key: jax.tree.map(mixed, v) for key, v in self.carry.items()},
        )

    def unmerge(self, y: Float[Array, "B N C"] | None = None) -> Float[Array, "B N0 C"]:
        """Every original patch gets the row of `y` (default: features) of the token that holds it; zeros if dropped.

        This is how dense predictions are read off a merged set.
        """
        return kernels.gather(self.x if y is None else y, self.owner)

    def _policy(self) -> Array:
        return jnp.ones(self.x.shape[:2], jnp.float32) if self.policy is None else self.policy

    def _rows(self) -> dict[str, Any]:
        names = ("x", "size", "position", "segment", "valid", "policy")
        return {name: getattr(self, name) for name in names} | {"carry": dict(self.carry)}

    def _slice(self, rows: slice, owner: Array, special: int) -> Tokens:
        return self.replace(**jax.tree.map(lambda a: a[:, rows], self._rows()), owner=owner, special=special)


def from_features(
    x: Float[Array, "B N D"], grid: tuple[int, ...], special: int = 0, valid: Bool[Array, "B N"] | None = None
) -> Tokens:
    """A fresh token set: `special` leading tokens, then one token a patch of `grid` in raster order."""
    b, n, _ = x.shape
    n0 = n - special
    axes = jnp.meshgrid(*(jnp.arange(g, dtype=jnp.float32) for g in grid), indexing="ij")
    where = jnp.stack([a.reshape(-1) for a in axes], -1)
    if where.shape[0] != n0:
        raise UserError(f"a grid of {'x'.join(map(str, grid))} has {where.shape[0]} patches, but {n0} were given.")
    where = jnp.concatenate([jnp.full((special, len(grid)), -1.0), where])
    owner = jnp.broadcast_to(jnp.arange(special, n, dtype=jnp.int32), (b, n0))
    return Tokens(
        x=x,
        size=jnp.ones((b, n), jnp.float32) if valid is None else valid.astype(jnp.float32),
        owner=owner if valid is None else jnp.where(valid[:, special:], owner, -1),
        position=jnp.broadcast_to(where, (b, n, len(grid))),
        segment=jnp.zeros((b, n), jnp.int32),
        valid=valid,
        special=special,
        grid=tuple(grid),
    )


def invert(index: Int[Array, "B K"], n: int, keep: Bool[Array, "B K"] | None = None) -> Int[Array, "B n"]:
    """For each of n old tokens the slot in `index` that took it (the last one, if several did), -1 if none."""
    slots = jnp.broadcast_to(jnp.arange(index.shape[1], dtype=jnp.int32), index.shape)
    target = index if keep is None else jnp.where(keep, index, n)
    empty = jnp.full((index.shape[0], n + 1), -1, jnp.int32)
    return jax.vmap(lambda e, t, s: e.at[t].max(s))(empty, target, slots)[:, :n]


def rename(owner: Int[Array, "B N0"], new: Int[Array, "B N"]) -> Int[Array, "B N0"]:
    """Follows an owner map through `new` (old token -> new token, -1 = dropped)."""
    renamed = jnp.take_along_axis(new.astype(jnp.int32), jnp.maximum(owner, 0), 1)
    return jnp.where(owner >= 0, renamed, -1)


def first_member(assign: Int[Array, "B N"], num: int) -> Int[Array, "B num"]:
    """Index of the first token of every group (0 for an empty one)."""
    hit = assign[:, None, :] == jnp.arange(num)[None, :, None]
    return jnp.argmax(hit, -1).astype(jnp.int32)
