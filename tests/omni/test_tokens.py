"""Content to tokens and back, told token by token in plain Python."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.row_layout import Role, TokenKind
from pixr1_jax.omni import audio, tokens
from pixr1_jax.omni.tokens import Cells, Layout, Signals

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def scene(tiny):
    """A row of two clips of different sizes with texts, its content, and different content for the noisy half."""
    config = tiny.config()
    spec = config.tokens
    windows = [
        tiny.window(spec, 3, seed=1, events=((0, "rain"), (3, "fog"))),
        tiny.window(spec, 2, seed=2, height=7, width=5, events=((2, "雪"),)),
    ]
    batch, room = tiny.batch(spec, [windows, windows[::-1]], spare=1)
    clean = tokens.content(config, batch)
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), clean)
    return config, tiny.model(config), batch, room, clean, noisy


def real_tokens(config, batch):
    """(row, place, kind, index, slot, role) of every token that is not padding."""
    block = config.tokens.block
    for row in range(len(batch["kind"])):
        for b, valid in enumerate(batch["block_valid"][row]):
            for at in range(b * block, b * block + valid):
                kind, index, slot = (int(batch[name][row, at]) for name in ("kind", "index", "slot"))
                yield row, at, TokenKind(kind), index, slot, Role(int(batch["block_role"][row, b]))


def places(config, batch):
    """Where the content of each patch stands, by (row, clip, chunk, y, x)."""
    found, block = {}, config.tokens.block
    for row, at, kind, index, _, role in real_tokens(config, batch):
        if kind == TokenKind.VIDEO and role == Role.NOISY:
            clip, chunk = (int(batch[f"block_{name}"][row, at // block]) for name in ("segment", "chunk"))
            found[row, clip, chunk, *batch["position"][row, at, 1:].astype(int).tolist()] = index
    return found


@pytest.mark.parametrize("dropped", [False, True])
def test_look_back_is_a_convolution_of_the_chunk_before_and_its_product_with_the_actions(scene, dropped):
    config, model, batch, room, clean, _ = scene
    drop = np.zeros((2, room.chunks), bool)
    drop[0, 1] = dropped
    features, forecast = tokens.look_back(model, config, clean, batch, jnp.asarray(drop))
    low = (np.asarray(clean.video) - np.asarray(model.video_in.mean[...])) @ np.asarray(model.video_in.down[...])
    look, rank = model.look_back, config.video_rank
    feature = np.asarray(look.feature[...]).reshape(3, 3, rank, -1)
    parts = np.asarray(look.forecast[...]).reshape(3, 3, rank, 1 + config.tokens.action_dim, rank)
    where = places(config, batch)
    for (row, clip, chunk, y, x), index in where.items():
        slot = batch["patch_slot"][row, index]
        held = batch["actions"][row, 2 * slot : 2 * slot + 2].mean(0) - np.asarray(look.usual_action[...])
        weight = np.array([1.0, *(0 * held if drop[row, slot] else held)])
        expected, guess = np.zeros(config.width), np.zeros(rank)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                near = where.get((row, clip, chunk - 1, y + dy, x + dx))
                if near is not None:
                    expected += low[row, near] @ feature[dy + 1, dx + 1]
                    guess += np.einsum("r,raq,a->q", low[row, near], parts[dy + 1, dx + 1], weight)
        np.testing.assert_allclose(features[row, index], expected, atol=1e-4)
        np.testing.assert_allclose(forecast[row, index], guess, atol=1e-4)
    empty = batch["patch_slot"] < 0
    assert empty.any()
    np.testing.assert_array_equal(np.asarray(features)[empty], 0.0)


def test_content_is_pixels_and_compressed_mdct(scene):
    config, _, batch, _, clean, _ = scene
    spec = config.tokens
    np.testing.assert_allclose(clean.video, batch["patches"] / 127.5 - 1, atol=1e-6)
    chunk = audio.to_tokens(jnp.asarray(batch["waveform"][1, 2] / 32768.0, jnp.float32), spec.hop, 2, 4.0, 0.5)
    np.testing.assert_allclose(clean.audio[1, 4:6], chunk, atol=1e-6)


def test_bytes_and_pixels_are_inverse():
    values = np.arange(256, dtype=np.uint8)
    pixels = tokens.to_pixels(jnp.asarray(values))
    assert pixels.min() == -1 and pixels.max() == 1
    np.testing.assert_array_equal(tokens.to_bytes(pixels), values)
    np.testing.assert_array_equal(tokens.to_bytes(jnp.asarray([-3.0, 3.0])), [0, 255])


@pytest.mark.parametrize("dropped", [False, True])
def test_embedding_of_every_token(scene, dropped):
    config, model, batch, room, clean, noisy = scene
    drop = np.zeros((2, room.chunks), bool)
    drop[0, 1] = dropped
    signals = {Role.CLEAN: clean, Role.NOISY: noisy}
    before = jax.random.normal(jax.random.key(0), (*batch["patch_slot"].shape, config.width))
    out = np.asarray(tokens.embed(model, config, Layout.of(batch), batch, signals, before, jnp.asarray(drop)))
    kinds, text, memory, no_action = (
        np.asarray(x[...]) for x in (model.kind, model.text_in, model.memory, model.no_action)
    )
    video = {role: np.asarray(model.video_in(signal.video) + before) for role, signal in signals.items()}
    sound = {role: np.asarray(model.audio_in(signal.audio)) for role, signal in signals.items()}
    actions = batch["actions"] @ np.asarray(model.action_in[...])
    seen = set()
    for row, at, kind, index, slot, role in real_tokens(config, batch):
        seen.add((kind, role))
        if kind == TokenKind.TEXT:
            expected = text[batch["text"][row, index]]
        elif kind == TokenKind.ACTION:
            expected = no_action if drop[row, slot] and role == Role.NOISY else actions[row, index]
        elif kind == TokenKind.AUDIO:
            expected = sound[role][row, index]
        elif kind == TokenKind.MEMORY:
            expected = memory[index]
        else:
            expected = video[role][row, index]
        np.testing.assert_allclose(out[row, at], expected + kinds[kind], atol=1e-5)
    assert len(seen) == 8  # text and memory are clean only


@pytest.mark.parametrize("dropped", [False, True])
def test_modulation_of_every_token(scene, dropped):
    config, model, batch, room, _, _ = scene
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.uniform(0.1, 1, shape), jnp.float32)
    shape = (2, room.chunks, 2)
    cells = Cells(draw(*shape), draw(*shape) / 10, 1 + draw(*shape[:2]), draw(*shape) / 10)
    drop = np.zeros((2, room.chunks), bool)
    drop[1, 2] = dropped
    actions = jnp.asarray(batch["actions"])
    out = np.asarray(tokens.modulation(model, config, Layout.of(batch), cells, actions, jnp.asarray(drop)))
    held = batch["actions"].reshape(2, room.chunks, -1) @ np.asarray(model.cell.action[...])
    embed = jax.jit(lambda *values: model.cell(*values, jnp.float32))
    by_kind = {}
    for row, at, kind, _, slot, role in real_tokens(config, batch):
        if kind not in (TokenKind.VIDEO, TokenKind.AUDIO):
            key, values, action = None, (0.0, 0.0, 1.0), np.zeros(config.width)
        else:
            m = int(kind == TokenKind.AUDIO)
            key = (row, slot, m, role)
            level = float(cells.context[row, slot, m])
            values, action = (level, level, 1.0), held[row, slot]
            if role == Role.NOISY:
                values = (cells.time[row, slot, m], cells.target[row, slot, m], cells.guidance[row, slot])
                action = np.asarray(model.cell.no_action[...]) if drop[row, slot] else action
        if key not in by_kind:
            by_kind[key] = np.asarray(embed(*(jnp.float32(v) for v in values), jnp.asarray(action, jnp.float32)))
        np.testing.assert_allclose(out[row, at], by_kind[key], atol=1e-5)
    assert len(by_kind) == 1 + 2 * 2 * (5 + 3)  # 3 + 2 chunks noisy, all but the last of each clip clean


def test_readout_takes_the_noisy_token_of_each_place_and_starts_from_the_forecast(scene):
    config, model, batch, _, _, _ = scene
    rng = np.random.default_rng(2)
    random = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    features = random(*batch["kind"].shape, config.width)
    forecast = random(*batch["patch_slot"].shape, config.video_rank)
    video_at, audio_at = jnp.asarray(batch["video_at"]), jnp.asarray(batch["audio_at"])
    out = tokens.read_out(model, config, features, forecast, video_at, audio_at)
    x = np.asarray(features)
    x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6)
    head = lambda head, low: low @ np.asarray(head.up[...]) + np.asarray(head.mean[...])
    low_video, low_audio = (x @ np.asarray(h.down[...]) for h in (model.video_out, model.audio_out))
    count = 0
    for row, at, kind, index, _, role in real_tokens(config, batch):
        if role == Role.NOISY and kind == TokenKind.VIDEO:
            expected = head(model.video_out, low_video[row, at] + np.asarray(forecast[row, index]))
            np.testing.assert_allclose(out.video[row, index], expected, atol=1e-4)
        elif role == Role.NOISY and kind == TokenKind.AUDIO:
            np.testing.assert_allclose(out.audio[row, index], head(model.audio_out, low_audio[row, at]), atol=1e-4)
        else:
            continue
        count += 1
    assert count == 2 * (3 * 6 + 2 * 4 + 5 * 2)


def test_layout_parts_join_to_the_row(scene):
    _, _, batch, room, _, _ = scene
    layout = Layout.of(batch)
    joined = layout.part(0, room.clean_blocks) + layout.part(room.clean_blocks, None)
    for a, b in zip(jax.tree.leaves(layout), jax.tree.leaves(joined), strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_sound_there_are_no_audio_values(tiny):
    spec = tiny.token_spec(audio_tokens=0)
    config = tiny.config(spec)
    batch, _ = tiny.batch(spec, [[tiny.window(spec, 2)]])
    model, clean = tiny.model(config), tokens.content(config, batch)
    assert clean.audio.shape[1] == 0
    layout = Layout.of(batch)
    looks, forecast = tokens.look_back(model, config, clean, batch)
    x = tokens.embed(model, config, layout, batch, {Role.CLEAN: clean, Role.NOISY: clean}, looks)
    read = tokens.read_out(model, config, x, forecast, jnp.asarray(batch["video_at"]), jnp.asarray(batch["audio_at"]))
    assert isinstance(read, Signals) and read.audio.shape[1] == 0 and read.video.shape == clean.video.shape


def test_compute_dtype_is_the_configs(scene):
    config, model, batch, room, clean, noisy = scene
    low = dataclasses.replace(config, dtype="bfloat16")
    layout = Layout.of(batch)
    looks, forecast = tokens.look_back(model, low, clean, batch)
    x = tokens.embed(model, low, layout, batch, {Role.CLEAN: clean, Role.NOISY: noisy}, looks)
    ones = jnp.ones((2, room.chunks, 2))
    modulation = tokens.modulation(
        model, low, layout, Cells(ones, ones, ones[..., 0], ones), jnp.asarray(batch["actions"])
    )
    assert x.dtype == modulation.dtype == jnp.bfloat16
    read = tokens.read_out(model, low, x, forecast, jnp.asarray(batch["video_at"]), jnp.asarray(batch["audio_at"]))
    assert read.video.dtype == jnp.float32
