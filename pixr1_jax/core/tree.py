"""Readable names for pytrees: any tree of arrays as nested dicts of strings, and back.

Files keep the names, never the Python classes, so a class can be renamed or moved without losing what it
wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

_FORBIDDEN = ("/", ".")


class TreeError(ValueError):
    """A tree has no readable names, or two trees differ; the message names the path."""


def named_leaves(tree: Any) -> dict[str, Any]:
    """Lists the leaves of a pytree by path, in the order of `jax.tree.leaves`.

    A path joins attribute names, dict keys and positions with "/": `params/blocks/attention/query`. An
    `nnx.Variable` stands for its value and adds nothing to the path. Empty containers and None have no
    leaves.

    Args:
        tree: Any pytree: nnx modules in tree mode, dataclasses, optax states, dicts.

    Returns:
        Leaves by path.

    Raises:
        TreeError: If two leaves share a path, or a key holds "/" or ".".
    """
    found: dict[str, Any] = {}
    nodes, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: isinstance(node, nnx.Variable))
    for path, node in nodes:
        name = "/".join(_part(entry) for entry in path)
        for leaf in jax.tree.leaves(node):
            if name in found:
                raise TreeError(f"{name}: two leaves share this path; rename one")
            found[name] = leaf
    return found


def to_dict(tree: Any) -> dict[str, Any]:
    """Turns a pytree into nested dicts with the same leaves, keyed by the parts of their paths.

    Args:
        tree: Any pytree with at least one container; see `named_leaves` for the names.

    Returns:
        Nested dicts with string keys.

    Raises:
        TreeError: If two leaves share a path, one path continues another, or a key holds "/" or ".".
    """
    nested: dict[str, Any] = {}
    for name, leaf in named_leaves(tree).items():
        *parents, last = name.split("/")
        node = nested
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise TreeError(f"{name}: a leaf has the name of a branch; rename one")
        if last in node:
            raise TreeError(f"{name}: a leaf has the name of a branch; rename one")
        node[last] = leaf
    return nested


def from_dict(template: Any, tree: Mapping[str, Any]) -> Any:
    """Puts the leaves of nested dicts into the structure of a template: the inverse of `to_dict`.

    Args:
        template: A pytree; its leaves are replaced, whatever they are.
        tree: Nested dicts as `to_dict` makes them.

    Returns:
        A pytree structured as `template`.

    Raises:
        TreeError: If the paths differ; the message names the first differing one in alphabetical order.
    """
    wanted, given = named_leaves(template), named_leaves(tree)
    for name in sorted(wanted.keys() ^ given.keys()):
        raise TreeError(f"{name}: " + ("missing from the dicts" if name in wanted else "unknown to the template"))
    return jax.tree.unflatten(jax.tree.structure(template), [given[name] for name in wanted])


def _part(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            part = str(getattr(entry, attribute))
            if not part or any(character in part for character in _FORBIDDEN):
                raise TreeError(f"the key {part!r} is empty or holds one of {_FORBIDDEN}; rename it")
            return part
    raise TreeError(f"{entry!r} is not a named path entry; register its class with keys")
