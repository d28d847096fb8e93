"""Trees keep their leaves and get readable names on the way to nested dicts and back."""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from pixr1_jax.core import tree as tree_lib

Pair = collections.namedtuple("Pair", "left right")

names = st.text("abc01_", min_size=1, max_size=3)
trees = st.recursive(
    st.integers(),
    lambda inner: (
        st.dictionaries(names, inner, max_size=3)
        | st.lists(inner, max_size=3)
        | st.tuples(inner, inner).map(lambda pair: Pair(*pair))
    ),
    max_leaves=12,
).filter(lambda tree: not isinstance(tree, int))


class Layer(nnx.Module):
    def __init__(self):
        self.kernel = nnx.Param(jnp.ones((2, 3)), axes=("embed", "mlp"))
        self.inner = nnx.List([nnx.Param(jnp.zeros(3), axes=("mlp",))])


@settings(max_examples=100, deadline=None)
@given(tree=trees)
def test_any_tree_comes_back(tree):
    nested = tree_lib.to_dict(tree)
    blank = jax.tree.map(lambda leaf: None if leaf is None else -1, tree)
    assert tree_lib.from_dict(blank, nested) == tree
    assert list(tree_lib.named_leaves(tree).values()) == jax.tree.leaves(tree)


def test_names_are_those_one_would_write():
    layer: Any = {"layer": Layer()}
    opt_state = optax.adamw(1e-3, mask={"layer": False}).init(layer)
    tree = {"params": Layer(), "pair": Pair(1, [2]), "opt_state": opt_state, "nothing": None}
    assert sorted(tree_lib.named_leaves(tree)) == [
        "opt_state/0/count",
        "opt_state/0/mu/layer/inner/0",
        "opt_state/0/mu/layer/kernel",
        "opt_state/0/nu/layer/inner/0",
        "opt_state/0/nu/layer/kernel",
        "pair/left",
        "pair/right/0",
        "params/inner/0",
        "params/kernel",
    ]
    nested = tree_lib.to_dict({"params": Layer()})
    assert sorted(nested["params"]) == ["inner", "kernel"]
    np.testing.assert_array_equal(nested["params"]["kernel"], jnp.ones((2, 3)))


def test_a_module_comes_back_with_its_metadata():
    template = jax.eval_shape(Layer)
    back = tree_lib.from_dict(template, tree_lib.to_dict(Layer()))
    assert jax.tree.structure(back) == jax.tree.structure(Layer())
    assert back.kernel.axes == ("embed", "mlp")


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({"a/b": 1}, "'a/b'"),
        ({"a.b": 1}, "'a.b'"),
        ({"": 1}, "''"),
    ],
)
def test_unreadable_names_are_refused(tree, text):
    with pytest.raises(tree_lib.TreeError, match=text):
        tree_lib.to_dict(tree)


def test_colliding_names_are_refused():
    @jax.tree_util.register_pytree_with_keys_class
    class Twins:
        def tree_flatten_with_keys(self):
            return ((jax.tree_util.DictKey("x"), 1), (jax.tree_util.GetAttrKey("x"), self.second)), None

        def tree_flatten(self):
            return (1, self.second), None

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls()

        second: object = 2

    with pytest.raises(tree_lib.TreeError, match="^x: two leaves"):
        tree_lib.to_dict(Twins())
    Twins.second = {"y": 2}
    with pytest.raises(tree_lib.TreeError, match="^x/y: a leaf has the name of a branch"):
        tree_lib.to_dict(Twins())


def test_the_first_differing_path_is_named():
    with pytest.raises(tree_lib.TreeError, match="^b/c: missing from the dicts"):
        tree_lib.from_dict({"a": 1, "b": {"c": 2}, "z": 3}, {"a": 1})
    with pytest.raises(tree_lib.TreeError, match="^b: unknown to the template"):
        tree_lib.from_dict({"a": 1}, {"a": 1, "b": 2})
