"""The streaming MDCT: the definition in float64, perfect reconstruction, companding."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pixr1_jax.omni import audio

# A few shapes, so that little is compiled.
SHAPES = st.sampled_from([(1, 3, 1), (2, 4, 2), (5, 6, 1), (8, 3, 2), (125, 2, 2)])  # hop, frames, channels


def sound(seed, hop, frames, channels, lead=()):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (*lead, (frames + 1) * hop, channels)).astype(np.float32)


def direct_mdct(waveform, hop):
    """X_k = sqrt(2/N) sum_n w_n x_n cos(pi/N (n + 1/2 + N/2)(k + 1/2)), frame by frame."""
    frames = len(waveform) // hop - 1
    out = np.zeros((frames, hop, waveform.shape[1]))
    for f in range(frames):
        for k in range(hop):
            for n in range(2 * hop):
                window = np.sin(np.pi / (2 * hop) * (n + 0.5))
                basis = np.cos(np.pi / hop * (n + 0.5 + hop / 2) * (k + 0.5))
                out[f, k] += np.sqrt(2 / hop) * window * basis * waveform[f * hop + n].astype(np.float64)
    return out


@settings(deadline=None, max_examples=12)
@given(st.sampled_from([(1, 3, 1), (2, 4, 2), (5, 6, 1), (8, 3, 2)]), st.integers(0, 10**6))
def test_analysis_is_the_definition(shape, seed):
    hop, frames, channels = shape
    waveform = sound(seed, hop, frames, channels)
    np.testing.assert_allclose(audio.analyse(jnp.asarray(waveform), hop), direct_mdct(waveform, hop), atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(SHAPES, st.integers(0, 10**6))
def test_reconstruction_is_perfect_one_hop_late(shape, seed):
    hop, frames, channels = shape
    waveform = sound(seed, hop, frames, channels)
    coefficients = audio.analyse(jnp.asarray(waveform), hop)
    assert coefficients.shape == (frames, hop, channels)
    out, overlap = audio.synthesise(coefficients, jnp.zeros((hop, channels)), hop)
    assert out.shape == (frames * hop, channels) and overlap.shape == (hop, channels)
    # The first hop lacks what came before it; the last is still in the overlap.
    np.testing.assert_allclose(out[hop:], waveform[hop:-hop], atol=1e-5)


@settings(deadline=None, max_examples=15)
@given(SHAPES, st.integers(0, 10**6))
def test_pieces_are_the_whole(shape, seed):
    hop, frames, channels = shape
    waveform = sound(seed, hop, frames, channels)
    whole_coefficients = audio.analyse(jnp.asarray(waveform), hop)
    start = jnp.zeros((hop, channels))
    whole, last = audio.synthesise(whole_coefficients, start, hop)
    pieces, overlap = [], start
    for frame in range(frames):
        part = audio.analyse(jnp.asarray(waveform[frame * hop : (frame + 2) * hop]), hop)
        np.testing.assert_allclose(part[0], whole_coefficients[frame], atol=1e-5)
        out, overlap = audio.synthesise(part, overlap, hop)
        pieces.append(out)
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-5)
    np.testing.assert_allclose(overlap, last, atol=1e-5)


def test_the_overlap_of_a_piece_completes_its_last_hop():
    waveform = sound(0, 4, 6, 2)
    _, overlap = audio.synthesise(audio.analyse(jnp.asarray(waveform[:16]), 4), jnp.zeros((4, 2)), 4)
    out, _ = audio.synthesise(audio.analyse(jnp.asarray(waveform[12:20]), 4), overlap, 4)
    np.testing.assert_allclose(out, waveform[12:16], atol=1e-5)


def test_leading_axes_are_a_batch():
    waveform = sound(1, 4, 3, 2, lead=(2, 3))
    coefficients = audio.analyse(jnp.asarray(waveform), 4)
    out, _ = audio.synthesise(coefficients, jnp.zeros((2, 3, 4, 2)), 4)
    assert coefficients.shape == (2, 3, 3, 4, 2) and out.shape == (2, 3, 12, 2)
    np.testing.assert_allclose(coefficients[1, 2], audio.analyse(jnp.asarray(waveform[1, 2]), 4), atol=1e-6)
    np.testing.assert_allclose(out[..., 4:, :], waveform[..., 4:-4, :], atol=1e-5)


def test_the_transform_keeps_energy():
    """Orthonormal lapped basis: sound with silent ends has the energy of its coefficients."""
    waveform = sound(2, 8, 9, 1)
    waveform[:8], waveform[-8:] = 0, 0
    coefficients = np.asarray(audio.analyse(jnp.asarray(waveform), 8))
    np.testing.assert_allclose(np.square(coefficients).sum(), np.square(waveform).sum(), rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.floats(-30, 30, width=32), st.floats(0.5, 16), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_companding_is_undone_and_odd(value, scale, power):
    small = audio.compress(jnp.float32(value), scale, power)
    np.testing.assert_allclose(small, np.sign(value) * abs(scale * value) ** power, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(audio.expand(small, scale, power), value, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(audio.compress(jnp.float32(-value), scale, power), -small)


def test_tokens_of_consecutive_chunks_sound_like_the_source():
    hop, hops, channels, chunks = 5, 4, 2, 3
    waveform = sound(3, hop, hops * chunks, channels)
    overlap, heard = jnp.zeros((hop, channels)), []
    for chunk in range(chunks):
        here = waveform[chunk * hops * hop : ((chunk + 1) * hops + 1) * hop]
        tokens = audio.to_tokens(jnp.asarray(here), hop, 2, 4.0, 0.5)
        assert tokens.shape == (2, hops // 2 * hop * channels)
        out, overlap = audio.from_tokens(tokens, overlap, hop, channels, 4.0, 0.5)
        heard.append(out)
    np.testing.assert_allclose(np.concatenate(heard)[hop:], waveform[hop:-hop], atol=2e-5)


def test_silence_is_zero_and_synthesis_differentiates():
    tokens = audio.to_tokens(jnp.zeros((25, 2)), 5, 2, 4.0, 0.5)
    np.testing.assert_array_equal(tokens, 0.0)
    gradient = jax.grad(lambda x: audio.from_tokens(x, jnp.zeros((5, 2)), 5, 2, 4.0, 0.5)[0].sum())(tokens + 0.1)
    assert np.isfinite(gradient).all()
