"""Paths of `jax.named_scope`: read from an equation, free of the marks that transformations leave, and searched."""

from __future__ import annotations

import re

from jax.extend.core import JaxprEqn

# jvp(a), transpose(jvp(a)), vmap(a): the backward pass of a block is part of that block's cost.
_TRANSFORM = re.compile(r"\b(?:jvp|transpose|vmap)\(((?:[^()]|\([^()]*\))*)\)")


def scope_of(eqn: JaxprEqn) -> str:
    """The named-scope path of an equation inside its own jaxpr, parts joined by "/" ("" when it has none)."""
    path = str(eqn.source_info.name_stack)
    while (stripped := _TRANSFORM.sub(r"\1", path)) != path:
        path = stripped
    return "/".join(part for part in path.split("/") if part)


def join(outer: str, inner: str) -> str:
    """The path of an inner jaxpr's scope below that of the equation which holds it."""
    return f"{outer}/{inner}" if outer and inner else outer or inner


def below(path: str, scope: str) -> bool:
    """Whether `path` is `scope` or lies below it, at any depth: below("model/tower/block.3/mlp", "tower/block.3")."""
    return f"/{scope}/" in f"/{path}/"
