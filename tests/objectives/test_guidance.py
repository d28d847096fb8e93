"""Guidance: what a strength means, and how strengths are drawn."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixr1_jax.objectives import guidance

NUMBERS = st.floats(-5, 5, width=32)


@settings(deadline=None, max_examples=50)
@given(NUMBERS, NUMBERS, st.floats(0, 4, width=32))
def test_strength_one_is_conditional_and_zero_is_not(conditional, unconditional, strength):
    c, u = jnp.float32(conditional), jnp.float32(unconditional)
    np.testing.assert_allclose(guidance.guide(c, u, jnp.float32(1)), conditional, atol=1e-5)
    np.testing.assert_allclose(guidance.guide(c, u, jnp.float32(0)), unconditional, atol=1e-5)
    expected = (1 - strength) * unconditional + strength * conditional
    np.testing.assert_allclose(guidance.guide(c, u, jnp.float32(strength)), expected, atol=1e-4)


def test_half_of_the_strengths_are_1_the_others_log_uniform_and_all_belong_to_samples():
    samples = np.repeat(np.arange(4000, dtype=np.uint32)[:, None], 3, axis=1)
    batch = {"chunk_sample": samples, "chunk_number": np.tile(np.arange(3, dtype=np.int32), (4000, 1))}
    strength = np.asarray(guidance.sample_strength(0, jnp.int32(1), batch, 4.0))
    assert (strength == strength[:, :1]).all()
    assert strength.min() >= 1 and strength.max() <= 4
    guided = strength[:, 0] > 1
    assert guided.mean() == pytest.approx(0.5, abs=0.03)
    share = np.log(strength[guided, 0]) / np.log(4.0)
    for quantile in (0.25, 0.5, 0.75):
        assert np.quantile(share, quantile) == pytest.approx(quantile, abs=0.03)
    np.testing.assert_array_equal(guidance.sample_strength(0, jnp.int32(1), batch, 1.0), 1.0)
