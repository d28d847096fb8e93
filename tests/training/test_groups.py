"""Every parameter has its group, and the norms of the groups are those of numpy and add up."""

import jax
import numpy as np
import pytest

from pixr1_jax.core.tree import named_leaves
from pixr1_jax.omni.model import Omni
from pixr1_jax.training.groups import GROUPS, group_norms, group_of


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("video_in/down", "embeddings"),
        ("no_action", "embeddings"),
        ("kind", "embeddings"),
        ("look_back/forecast", "look_back"),
        ("layers/modulation", "modulation"),
        ("cell/out", "modulation"),
        ("layers/out", "attention"),
        ("layers/down", "mlp"),
        ("audio_out/mean", "heads"),
        ("critic/w", "other"),
    ],
)
def test_paths_have_their_groups(path, group):
    assert group_of(path) == group


def test_every_parameter_of_the_model_has_a_named_group(tiny):
    model = jax.eval_shape(lambda: Omni(tiny.config(), jax.random.key(0)))
    found = {group_of(path) for path in named_leaves(model)}
    assert found == set(GROUPS)


def test_norms_are_those_of_numpy_and_add_up(tiny):
    config = tiny.config()
    before, gradient, after = (tiny.model(config, seed) for seed in range(3))
    norms = {name: float(value) for name, value in jax.jit(group_norms)(gradient, before, after).items()}
    flat = lambda tree, group: np.concatenate(
        [np.asarray(x, np.float64).ravel() for path, x in named_leaves(tree).items() if group_of(path) == group]
    )
    for group in GROUPS:
        old, new, slope = (flat(tree, group) for tree in (before, after, gradient))
        assert norms[f"grad_norm/{group}"] == pytest.approx(np.linalg.norm(slope), rel=1e-5)
        ratio = np.linalg.norm(new - old) / np.linalg.norm(old)
        assert norms[f"update_ratio/{group}"] == pytest.approx(ratio, rel=1e-5)
    squares = sum(norms[f"grad_norm/{group}"] ** 2 for group in GROUPS)
    everything = sum(np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(gradient))
    assert squares == pytest.approx(everything, rel=1e-5)


def test_parameters_at_zero_have_no_ratio_and_a_nan_shows_in_its_group():
    zero, one = {"cell": {"a": np.zeros(3)}, "kind": np.ones(2)}, {"cell": {"a": np.ones(3)}, "kind": np.ones(2)}
    slope = {"cell": {"a": np.full(3, np.nan)}, "kind": np.ones(2)}
    norms = group_norms(slope, zero, one)
    assert norms["update_ratio/modulation"] == 0 and norms["update_ratio/embeddings"] == 0
    assert np.isnan(norms["grad_norm/modulation"]) and norms["grad_norm/embeddings"] == pytest.approx(np.sqrt(2))
