"""The streaming step: what comes in goes out, what is live is live, silent models stream too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixr1_jax.engine.step import Stream
from pixr1_jax.omni import tokens

pytestmark = pytest.mark.usefixtures("quick_compile")

QUIET = np.zeros((25, 2), np.int16)


class Played:
    """A stream with jitted calls."""

    def __init__(self, config, model, height=8, width=12):
        self.stream = Stream(config, height, width)
        jit = jax.jit
        self.start = lambda seed=0: jit(self.stream.start)(jnp.uint32(seed))
        self.observe = jit(functools.partial(self.stream.observe, model))
        self.prompt = jit(functools.partial(self.stream.prompt, model))
        self.step = jit(functools.partial(self.stream.step, model), static_argnames="steps")


@pytest.fixture(scope="module")
def played(tiny):
    config = tiny.config()
    return Played(config, tiny.model(config))


def shapes(state):
    return {name: (value.shape, value.dtype) for name, value in state.items()}


def test_observed_sound_comes_back_one_hop_late(tiny, played):
    """Through the MDCT, companding and the chunked overlap: the waveform itself."""
    spec = played.stream.config.tokens
    clip = tiny.clip(spec, 8)
    wave = np.concatenate([np.zeros((spec.hop, 2), np.int16), clip.audio])
    state, heard = played.start(), []
    for i in range(4):
        sound = wave[i * spec.chunk_samples : (i + 1) * spec.chunk_samples + spec.hop]
        state, out = played.observe(state, clip.video[2 * i : 2 * i + 2], sound, clip.actions[2 * i : 2 * i + 2])
        heard.append(out)
    heard = np.concatenate(heard)
    np.testing.assert_allclose(heard[spec.hop :], clip.audio[: -spec.hop] / 32768.0, atol=2e-5)
    np.testing.assert_allclose(heard[: spec.hop], 0, atol=2e-5)
    assert int(state["chunk"]) == 4
    last = np.asarray(tokens.to_bytes(state["pending_video"]))
    assert set(map(bytes, last)) <= {bytes(row) for row in _patch_rows(clip.video[6:8])}


def _patch_rows(video):
    """Patches of two frames by slicing, in any order."""
    return [video[:, y : y + 4, x : x + 4].ravel() for y in range(0, 8, 4) for x in range(0, 12, 4)]


@pytest.mark.parametrize("steps", [1, 3])
def test_a_step_keeps_the_shape_of_the_state(tiny, played, steps):
    state = played.start()
    actions = np.zeros((2, 2), np.float32)
    after, frames, sound = played.step(state, actions, jnp.float32(1.0), steps=steps)
    assert frames.shape == (2, 8, 12, 3) and frames.dtype == jnp.uint8
    assert sound.shape == (20, 2) and sound.dtype == jnp.float32 and np.abs(sound).max() <= 1
    observed, _ = played.observe(after, np.zeros((2, 8, 12, 3), np.uint8), QUIET, actions)
    prompted = played.prompt(observed, np.zeros(6, np.uint8), jnp.int32(3))
    assert shapes(state) == shapes(after) == shapes(observed) == shapes(prompted)
    assert int(prompted["chunk"]) == 2


def test_frames_are_what_the_next_chunk_sees(played):
    """What was shown is, up to rounding, what is pending."""
    state, frames, _ = played.step(played.start(), np.zeros((2, 2), np.float32), jnp.float32(1.0), steps=1)
    pending = np.asarray(state["pending_video"])
    assert np.abs(pending).max() <= 1
    shown = {bytes(row) for row in _patch_rows(np.asarray(frames))}
    assert {bytes(row) for row in np.asarray(tokens.to_bytes(jnp.asarray(pending)))} == shown


@pytest.mark.parametrize("what", ["actions", "guidance", "prompt", "steps", "seed"])
def test_every_input_is_live(played, what):
    def dream(changed):
        state = played.start(seed=int(changed and what == "seed"))
        text = np.frombuffer(b"nights" if changed and what == "prompt" else b"day   ", np.uint8)
        state = played.prompt(state, text, jnp.int32(6))
        actions = np.full((2, 2), 1.0 if changed and what == "actions" else 0.0, np.float32)
        strength = jnp.float32(2.0 if changed and what == "guidance" else 1.0)
        state, *_ = played.step(state, actions, strength, steps=3 if changed and what == "steps" else 1)
        return np.asarray(state["pending_video"])

    assert np.abs(dream(True) - dream(False)).max() > 1e-3


def test_a_text_ends_with_an_empty_one(played):
    """A stream whose text was taken back is one that never had a text, once its past is the same."""
    state = played.start()
    empty = played.prompt(state, np.zeros(6, np.uint8), jnp.int32(0))
    back = played.prompt(played.prompt(state, np.frombuffer(b"stormy", np.uint8), jnp.int32(6)), *_nothing())
    for _ in range(2):
        outs = [played.step(s, np.zeros((2, 2), np.float32), jnp.float32(1.0), steps=1) for s in (state, empty, back)]
        np.testing.assert_array_equal(outs[0][1], outs[1][1])
        np.testing.assert_array_equal(outs[0][1], outs[2][1])
        state, empty, back = (out[0] for out in outs)


def _nothing():
    return np.zeros(6, np.uint8), jnp.int32(0)


def test_only_the_bytes_of_a_text_are_read(played):
    outs = []
    for tail in (b"\0\0\0", b"xyz"):
        state = played.prompt(played.start(), np.frombuffer(b"day" + tail, np.uint8), jnp.int32(3))
        outs.append(played.step(state, np.zeros((2, 2), np.float32), jnp.float32(1.0), steps=1)[1])
    np.testing.assert_array_equal(*outs)


def test_odd_picture_sizes(tiny):
    config = tiny.config()
    played = Played(config, tiny.model(config), height=7, width=5)
    video = np.random.default_rng(0).integers(0, 256, (2, 7, 5, 3), np.uint8)
    state, _ = played.observe(played.start(), video, QUIET, np.zeros((2, 2), np.float32))
    _, frames, _ = played.step(state, np.zeros((2, 2), np.float32), jnp.float32(1.0), steps=1)
    assert frames.shape == (2, 7, 5, 3)


@pytest.mark.parametrize("rates", [{}, {"hop": 0, "hops": 0, "channels": 0}])
def test_a_silent_model_streams_and_keeps_its_state(tiny, rates):
    """The state must keep its shapes, since a served program takes no others."""
    config = tiny.config(tiny.token_spec(audio_tokens=0, **rates))
    played = Played(config, tiny.model(config))
    spec, actions = config.tokens, np.zeros((2, 2), np.float32)
    state = played.start()
    silence = np.zeros((0, spec.channels), np.int16)
    observed, heard = played.observe(state, np.zeros((2, 8, 12, 3), np.uint8), silence, actions)
    after, frames, sound = played.step(observed, actions, jnp.float32(1.0), steps=2)
    assert shapes(state) == shapes(observed) == shapes(after)
    assert heard.shape == sound.shape == (0, spec.channels) and frames.shape == (2, 8, 12, 3)
