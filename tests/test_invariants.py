"""The invariants of the design, on a tiny model in which every parameter matters."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from data_pipelines.row_layout import BlockKind
from pixr1_jax.core.rng import Purpose
from pixr1_jax.engine import runner
from pixr1_jax.engine.step import Stream
from pixr1_jax.objectives import flow, guidance
from pixr1_jax.objectives.predict import denoise, encode_context, predict
from pixr1_jax.objectives.pretrain import Pretrain
from pixr1_jax.objectives.tasks import TimeSampling
from pixr1_jax.omni import tokens
from pixr1_jax.omni.tokens import Cells, Signals
from pixr1_jax.training.optimizer import make_optimizer
from pixr1_jax.training.state import initial_state, train_step

pytestmark = pytest.mark.usefixtures("quick_compile")

CHUNKS, SWITCH = 7, 4  # chunks of the long clip, and the one at which its text changes
TEXTS = {0: "day", SWITCH: "night"}


SPARSE = {"clean": (1, 2), "noisy": (1,), "early": (1,), "group": 2}


@pytest.fixture(scope="module", params=["dense", "sparse"])
def setting(tiny, request):
    """Window 2, one sink: by the last of seven chunks the ring has turned over and the bank holds three."""
    config = tiny.config(attention=tiny.attention(**(SPARSE if request.param == "sparse" else {})))
    spec = config.tokens
    long = tiny.window(spec, CHUNKS, events=tuple((2 * chunk, text) for chunk, text in TEXTS.items()))
    short = tiny.window(spec, 3, seed=1, height=7, width=5, events=((2, "fog"),))
    batch, room = tiny.batch(spec, [[long], [short, short]], spare=2)
    clean = tokens.content(config, batch)
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), clean)
    return config, tiny.model(config), batch, room, jax.tree.map(np.asarray, clean), noisy


def cells_at(config, rows, chunks, time=1.0, target=0.0, strength=1.5):
    full = lambda value: jnp.full((rows, chunks, 2), value, jnp.float32)
    return Cells(full(time), full(target), full(strength)[..., 0], full(config.context_time))


@pytest.fixture(scope="module")
def run_predict(setting):
    config, model, _, room, _, _ = setting

    @jax.jit
    def run(batch, context, noisy, cells, drop):
        return predict(
            model, config, batch, context, noisy, cells, drop, clean_blocks=room.clean_blocks, max_keys=room.blocks
        )

    def call(batch, context, noisy, drop=False, **values):
        rows, chunks = batch["chunk_sample"].shape
        cells = cells_at(config, rows, chunks, **values)
        return jax.tree.map(np.asarray, run(batch, context, noisy, cells, np.full((rows, chunks), drop)))

    return call


def by_chunk(config, batch, signals):
    """Values of every (row, chunk slot)."""
    rows, chunks = batch["chunk_sample"].shape
    each = config.tokens.audio_tokens
    return {
        (row, slot): np.concatenate(
            [
                signals.video[row][batch["patch_slot"][row] == slot].ravel(),
                signals.audio[row, slot * each : (slot + 1) * each].ravel(),
            ]
        )
        for row in range(rows)
        for slot in range(chunks)
        if batch["chunk_valid"][row, slot]
    }


def moved(config, batch, before, after):
    """The (row, slot) whose predictions differ in any bit."""
    old, new = by_chunk(config, batch, before), by_chunk(config, batch, after)
    return {place for place in old if not np.array_equal(old[place], new[place])}


def change(config, batch, signals, row, slot):
    """Content with one chunk changed."""
    video, audio = signals.video.copy(), signals.audio.copy()
    video[row, batch["patch_slot"][row] == slot] += 0.7
    each = config.tokens.audio_tokens
    audio[row, slot * each : (slot + 1) * each] -= 0.4
    return Signals(video, audio)


########################################################################### mask leak


@pytest.mark.parametrize(("row", "slot"), [(0, 0), (0, 3), (0, 5), (1, 1), (1, 3), (1, 4)])
def test_changed_context_moves_later_chunks_of_its_clip_only(setting, run_predict, row, slot):
    config, _, batch, _, clean, noisy = setting
    before = run_predict(batch, clean, noisy)
    found = moved(config, batch, before, run_predict(batch, change(config, batch, clean, row, slot), noisy))
    last = CHUNKS - 1 if row == 0 else 3 * (slot // 3) + 2  # of the clip: row 1 holds slots 0-2 and 3-5
    assert found == {(row, later) for later in range(slot + 1, last + 1)}


@pytest.mark.parametrize(("row", "slot"), [(0, 0), (0, 6), (1, 2), (1, 3)])
def test_changed_noise_moves_its_own_chunk_only(setting, run_predict, row, slot):
    config, _, batch, _, clean, noisy = setting
    before = run_predict(batch, clean, noisy)
    after = run_predict(batch, clean, change(config, batch, noisy, row, slot))
    assert moved(config, batch, before, after) == {(row, slot)}


def test_the_last_chunk_of_a_clip_is_nobodys_context(setting, run_predict):
    config, _, batch, _, clean, noisy = setting
    before = run_predict(batch, clean, noisy)
    after = run_predict(batch, change(config, batch, clean, 0, CHUNKS - 1), noisy)
    assert moved(config, batch, before, after) == set()


def test_a_changed_action_moves_its_chunk_and_later_ones(setting, run_predict):
    config, _, batch, _, clean, noisy = setting
    actions = batch["actions"].copy()
    actions[0, 2 * 3 + 1] += 1
    before, after = run_predict(batch, clean, noisy), run_predict(batch | {"actions": actions}, clean, noisy)
    assert moved(config, batch, before, after) == {(0, chunk) for chunk in range(3, CHUNKS)}


def test_a_changed_text_moves_nothing_before_it(setting, run_predict):
    config, _, batch, _, clean, noisy = setting
    text = batch["text"].copy()
    text[0, 3:8] = np.frombuffer(b"storm", np.uint8)
    before, after = run_predict(batch, clean, noisy), run_predict(batch | {"text": text}, clean, noisy)
    assert moved(config, batch, before, after) == {(0, chunk) for chunk in range(SWITCH, CHUNKS)}


def test_padding_is_never_read(setting, run_predict):
    config, _, batch, _, clean, noisy = setting
    rng = np.random.default_rng(1)
    real = np.arange(config.tokens.block) < batch["block_valid"][..., None]
    padding = ~real.reshape(len(real), -1)
    bad = dict(batch)
    for name, high in (("kind", 6), ("index", 4), ("position", 50)):
        garbage = rng.integers(0, high, batch[name].shape).astype(batch[name].dtype)
        bad[name] = np.where(padding[..., None] if name == "position" else padding, garbage, batch[name])
    empty = batch["block_valid"] == 0
    for name in ("chunk", "role", "kind"):
        garbage = rng.integers(0, 2, empty.shape).astype(np.int32)
        bad[f"block_{name}"] = np.where(empty, garbage, batch[f"block_{name}"])
    garble = lambda x: np.where((batch["patch_slot"] < 0)[..., None], 9.0, x).astype(np.float32)
    before = run_predict(batch, clean, noisy)
    after = run_predict(bad, Signals(garble(clean.video), clean.audio), Signals(garble(noisy.video), noisy.audio))
    assert padding.sum() > 20 and empty.any()
    assert moved(config, batch, before, after) == set()


def test_dropped_conditions_are_not_seen(setting, run_predict):
    config, _, batch, _, clean, noisy = setting
    actions, text = batch["actions"] + 1, batch["text"] ^ 1
    change = {"actions": actions, "text": text}
    without = run_predict(batch, clean, noisy, drop=True)
    after = run_predict(batch | change, clean, noisy, drop=True)
    # Later chunks still see the actions and the text in their clean past.
    assert {(0, 0), (1, 0), (1, 3)}.isdisjoint(moved(config, batch, without, after))
    given_ = run_predict(batch, clean, noisy)
    assert moved(config, batch, without, given_) == set(by_chunk(config, batch, without))


########################################################################### one pass, two passes, a stream


def test_context_then_noisy_half_is_the_whole_row(setting, run_predict):
    config, model, batch, room, clean, noisy = setting
    split = {"clean_blocks": room.clean_blocks, "max_keys": room.blocks}

    @jax.jit
    def in_two(batch, context, noisy, cells, drop):
        past = encode_context(model, config, batch, context, cells, **split)
        return denoise(model, config, batch, past, context, noisy, cells, drop, **split)

    rows, chunks = batch["chunk_sample"].shape
    for drop in (False, True):
        whole = run_predict(batch, clean, noisy, drop=drop, time=0.7, target=0.2)
        cells = cells_at(config, rows, chunks, time=0.7, target=0.2)
        parts = in_two(batch, clean, noisy, cells, np.full((rows, chunks), drop))
        old, new = (by_chunk(config, batch, jax.tree.map(np.asarray, x)) for x in (whole, parts))
        for place in old:
            np.testing.assert_allclose(new[place], old[place], atol=2e-5)


def test_a_budget_of_all_blocks_is_dense_attention_and_a_small_one_is_not(tiny, setting, run_predict):
    config, model, batch, room, clean, noisy = setting
    rows, chunks = batch["chunk_sample"].shape
    cells, drop = cells_at(config, rows, chunks), np.zeros((rows, chunks), bool)

    def run(attention):
        sizes = dataclasses.replace(config, attention=attention)
        call = lambda *x: predict(
            model, sizes, batch, *x, cells, drop, clean_blocks=room.clean_blocks, max_keys=room.blocks
        )
        return by_chunk(config, batch, jax.tree.map(np.asarray, jax.jit(call)(clean, noisy)))

    dense, everything = (
        run(tiny.attention("reference", 3, **budget)) for budget in ({}, {"clean": (99,), "noisy": (99,)})
    )
    own = by_chunk(config, batch, run_predict(batch, clean, noisy))
    for place, expected in dense.items():
        np.testing.assert_allclose(everything[place], expected, atol=2e-5)
    apart = max(np.abs(own[place] - expected).max() for place, expected in dense.items())
    assert apart < 2e-5 if config.attention.budget is None else apart > 1e-3


class Played:
    """A stream with jitted calls; its noise, where the state has some, is the given one."""

    def __init__(self, config, model, height=8, width=12):
        self.stream, self.model = Stream(config, height, width), model
        self.observe = jax.jit(partial(self.stream.observe, model))
        self.write_prompt = jax.jit(partial(self.stream.prompt, model))
        self.step = jax.jit(partial(self.stream.step, model), static_argnames="steps")
        self.start = lambda seed=0: jax.jit(self.stream.start)(jnp.uint32(seed))

    def prompt(self, state, text):
        data = np.frombuffer(text.encode(), np.uint8)
        padded = np.zeros(self.stream.config.tokens.text_bytes, np.uint8)
        padded[: len(data)] = data
        return self.write_prompt(state, padded, jnp.int32(len(data)))


@pytest.fixture
def given_noise(monkeypatch):
    """The stream draws what its state says."""
    monkeypatch.setattr(Stream, "_noise", lambda self, state: Signals(state["noise_video"], state["noise_audio"]))


def chunk_of(config, batch, signals, slot):
    each = config.tokens.audio_tokens
    return signals.video[0][batch["patch_slot"][0] == slot], signals.audio[0, slot * each : (slot + 1) * each]


@pytest.mark.parametrize("steps", [1, 2])
def test_streaming_cache_equals_the_parallel_row(tiny, setting, run_predict, given_noise, steps):
    """True chunks are observed one by one; the chunk that the stream would make next is that of the packed row."""
    config, model, batch, _, clean, noisy = setting
    spec, played = config.tokens, Played(config, model)
    expected = run_predict(batch, clean, noisy, time=1.0, target=1.0 - 1.0 / steps)
    if steps == 2:
        half = jax.tree.map(lambda x, z: (0.5 * (x + z)).astype(np.float32), expected, noisy)
        expected = run_predict(batch, clean, half, time=0.5, target=0.0)
    frames = tiny.clip(spec, 2 * CHUNKS).video
    state = played.start()
    for slot in range(CHUNKS):
        if slot in TEXTS:
            state = played.prompt(state, TEXTS[slot])
        actions = batch["actions"][0, 2 * slot : 2 * slot + 2]
        video, sound = chunk_of(config, batch, noisy, slot)
        made, _, _ = played.step(
            state | {"noise_video": video, "noise_audio": sound}, actions, jnp.float32(1.5), steps=steps
        )
        want_video, want_audio = chunk_of(config, batch, expected, slot)
        np.testing.assert_allclose(made["pending_video"], np.clip(want_video, -1, 1), atol=2e-4)
        np.testing.assert_allclose(made["pending_audio"], want_audio, atol=2e-4)
        assert np.mean(np.abs(want_video) < 1) > 0.3  # most is not hidden by the clip
        state, _ = played.observe(state, frames[2 * slot : 2 * slot + 2], batch["waveform"][0, slot], actions)
    cache = played.stream.cache
    assert (np.asarray(state["cache_chunk"])[cache.first_bank :] >= 0).sum() >= 2  # the bank was used


def test_of_chunks_beyond_the_window_only_memory_is_read(setting):
    """Eviction equality: whatever else they hold could as well be gone."""
    config, model, batch, room, clean, noisy = setting
    split = {"clean_blocks": room.clean_blocks, "max_keys": room.blocks}
    rows, chunks = batch["chunk_sample"].shape
    cells, drop = cells_at(config, rows, chunks), np.zeros((rows, chunks), bool)
    past = jax.jit(lambda: encode_context(model, config, batch, clean, cells, **split))()
    run = jax.jit(lambda past: denoise(model, config, batch, past, clean, noisy, cells, drop, **split))
    blocks = past.blocks
    last, policy = CHUNKS - 1, config.memory
    old = (last - blocks.chunk > policy.window) & (blocks.chunk >= policy.sinks) & (blocks.valid > 0)
    content = old & ((blocks.kind == BlockKind.HEAD) | (blocks.kind == BlockKind.PATCH))
    memories = old & (blocks.kind == BlockKind.MEMORY)

    def last_chunk(where):
        by_token = jnp.repeat(where, config.tokens.block, axis=-1)[None, ..., None, None]
        key, value = (jnp.where(by_token, 3.0 - x, x) for x in (past.key, past.value))
        out = run(dataclasses.replace(past, key=key, value=value))
        return by_chunk(config, batch, jax.tree.map(np.asarray, out))[0, last]

    base = last_chunk(jnp.zeros_like(old))
    assert int(content[0].sum()) == 3 * 3 and int(memories[0].sum()) == 3  # chunks 1, 2, 3
    np.testing.assert_array_equal(last_chunk(content), base)
    for chunk in (1, 2, 3):
        assert np.abs(last_chunk(memories & (blocks.chunk == chunk)) - base).max() > 1e-4


@pytest.mark.parametrize("budget", [{}, SPARSE], ids=["dense", "sparse"])
def test_a_stream_does_not_know_how_long_it_has_run(tiny, given_noise, budget):
    """Position shift: with no sinks, the same recent past at a later chunk number gives the same chunk."""
    config = tiny.config(memory=tiny.policy(sinks=0, bank=3), attention=tiny.attention(**budget))
    played = Played(config, tiny.model(config))
    clip = tiny.clip(config.tokens, 14)
    rng = np.random.default_rng(0)
    sound = rng.integers(-9000, 9000, (25, 2)).astype(np.int16)
    state = played.start()
    noise = {"noise_video": state["pending_video"], "noise_audio": state["pending_audio"]}
    noise = {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in noise.items()}
    state |= noise
    for i in range(7):
        if i in (0, 5):
            state = played.prompt(state, f"text {i}")
        state, _ = played.observe(state, clip.video[2 * i : 2 * i + 2], sound, clip.actions[2 * i : 2 * i + 2])
    shift = 1000 * config.memory.window  # a ring place holds the same chunk again
    later = state | {
        "chunk": state["chunk"] + shift,
        "cache_chunk": jnp.where(state["cache_chunk"] >= 0, state["cache_chunk"] + shift, -1),
        "cache_until": jnp.where(state["cache_until"] < 2**29, state["cache_until"] + shift, state["cache_until"]),
    }
    for _ in range(2):
        state, frames, heard = played.step(state, clip.actions[:2], jnp.float32(1.0), steps=2)
        later, late_frames, late_heard = played.step(later, clip.actions[:2], jnp.float32(1.0), steps=2)
        np.testing.assert_array_equal(late_frames, frames)
        np.testing.assert_array_equal(late_heard, heard)
    assert int(later["chunk"]) == int(state["chunk"]) + shift


########################################################################### streams


@pytest.fixture(scope="module")
def played(setting):
    config, model, *_ = setting
    return Played(config, model)


def dream(played, seed, script, chunks=5, steps=1):
    """Frames and sound of a stream; script maps chunk to prompt."""
    actions = np.random.default_rng(3).standard_normal((chunks, 2, 2)).astype(np.float32)
    state, out = played.start(seed), []
    for i in range(chunks):
        if i in script:
            state = played.prompt(state, script[i])
        state, frames, sound = played.step(state, actions[i], jnp.float32(1.0), steps=steps)
        out.append((np.asarray(frames), np.asarray(sound), state))
    return out


def test_a_stream_is_its_seed_and_inputs(played):
    first, again, other = (dream(played, seed, {0: "day"}) for seed in (5, 5, 6))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
        assert (a[0] != c[0]).any()
    assert (first[0][0] != first[1][0]).any()  # noise differs by chunk


def test_a_prompt_acts_from_the_next_chunk_on(played):
    plain, switched = dream(played, 0, {0: "day"}), dream(played, 0, {0: "day", 3: "night"})
    for a, b in zip(plain[:3], switched[:3], strict=True):
        np.testing.assert_array_equal(a[0], b[0])
    pending = np.abs(np.asarray(plain[3][2]["pending_video"]) - np.asarray(switched[3][2]["pending_video"]))
    assert pending.max() > 1e-3
    # Chunk 2, encoded while chunk 3 is made, still read the text of its own time.
    cache = played.stream.cache
    block = cache.tokens.block
    start = (cache.first_ring + 2 % cache.memory.window * cache.chunk_blocks) * block
    here = slice(start, start + cache.chunk_blocks * block)
    assert np.asarray(plain[3][2]["cache_chunk"])[start // block] == 2
    for name in ("cache_key", "cache_value"):
        # The old text is read from another place of the cache, so sums are in another order.
        np.testing.assert_allclose(plain[3][2][name][:, here], switched[3][2][name][:, here], atol=1e-5)


def test_a_prompt_taken_back_before_the_next_chunk_was_never_there(played):
    plain, taken_back = dream(played, 0, {0: "day"}), dream(played, 0, {0: "day"})
    state = played.prompt(played.prompt(plain[1][2], "night"), "fog")
    once = played.prompt(taken_back[1][2], "fog")
    for _ in range(2):
        state, frames, _ = played.step(state, np.zeros((2, 2), np.float32), jnp.float32(1.0), steps=1)
        once, expected, _ = played.step(once, np.zeros((2, 2), np.float32), jnp.float32(1.0), steps=1)
        np.testing.assert_array_equal(frames, expected)


@pytest.mark.parametrize(
    ("artifact", "steps"), [("tiny_artifact", 1), ("tiny_artifact", 2), ("tiny_artifact", 4), ("sparse_artifact", 2)]
)
def test_the_exported_program_makes_the_trainers_chunks(tiny, request, artifact, steps):
    stream, model, directory, _ = request.getfixturevalue(artifact)
    played = Played(stream.config, model)
    served = runner.Artifact.load(directory).start(seed=11)
    state = played.start(11)
    clip = tiny.clip(stream.config.tokens, 14, seed=4)
    sound = np.random.default_rng(0).integers(-9000, 9000, (25, 2)).astype(np.int16)
    for i in range(7):
        actions = clip.actions[2 * i : 2 * i + 2]
        if i in (0, 4):
            served.prompt(f"text {i}")
            state = played.prompt(state, f"text {i}")
        if i == 1:
            state, heard = played.observe(state, clip.video[:2], sound, actions)
            np.testing.assert_allclose(served.observe(clip.video[:2], sound, actions), heard, atol=1e-6)
            continue
        state, frames, heard = played.step(state, actions, jnp.float32(1.5), steps=steps)
        got_frames, got_heard = served.step(actions, steps=steps, guidance=1.5)
        assert np.abs(got_frames.astype(int) - np.asarray(frames, int)).max() <= 1
        np.testing.assert_allclose(got_heard, heard, atol=1e-4)


########################################################################### guidance


@settings(deadline=None, max_examples=50)
@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3), st.floats(0.05, 1), st.floats(1, 4))
def test_guiding_clean_data_is_guiding_velocities(noisy, conditional, unconditional, time, strength):
    x = [jnp.float32(value) for value in (noisy, conditional, unconditional, time, strength)]
    z, c, u, t, w = x
    folded = flow.velocity(z, guidance.guide(c, u, w), t)
    two_pass = guidance.guide(flow.velocity(z, c, t), flow.velocity(z, u, t), w)
    np.testing.assert_allclose(folded, two_pass, atol=1e-3)


def test_a_student_of_folded_targets_needs_one_pass():
    """A linear teacher; a student linear in (z, c, w, w c), fitted to guided targets, is two-pass guidance."""
    rng = np.random.default_rng(0)
    z, c, w = rng.standard_normal(300), rng.standard_normal(300), rng.uniform(1, 3, 300)
    conditional = lambda z, c: 0.6 * z + 1.3 * c
    unconditional = lambda z: 0.5 * z - 0.2
    target = np.asarray(guidance.guide(jnp.asarray(conditional(z, c)), jnp.asarray(unconditional(z)), jnp.asarray(w)))
    features = lambda z, c, w: np.stack([z, c, w, w * z, w * c, np.ones_like(z)], axis=-1)
    student, *_ = np.linalg.lstsq(features(z, c, w), target, rcond=None)
    z, c, w = rng.standard_normal(50), rng.standard_normal(50), rng.uniform(1, 5, 50)
    two_pass = unconditional(z) + w * (conditional(z, c) - unconditional(z))
    np.testing.assert_allclose(features(z, c, w) @ student, two_pass, atol=1e-4)


########################################################################### training

OPTIMIZER = {
    "name": "adamw",
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "total_steps": 10,
    "schedule": "constant",
    "final_scale": 1.0,
    "b1": 0.9,
    "b2": 0.99,
    "weight_decay": 0.01,
    "clip_norm": 1.0,
}


@pytest.fixture(scope="module")
def training(tiny):
    """A jitted step of one-layer pretraining, its first state, and batches of eight rows."""
    config = tiny.config(layers=1)
    spec = config.tokens
    rows = lambda k: [[tiny.window(spec, 3, seed=8 * k + i, events=((0, "ab"),))] for i in range(8)]
    batches = [tiny.batch(spec, rows(k))[0] for k in range(3)]
    _, room = tiny.batch(spec, rows(0))
    sampling = TimeSampling(0.5, 1.0, 0.1, 0.3, 0.1, (("joint", 1.0), ("independent", 1.0), ("audio_to_video", 1.0)))
    objective = Pretrain(config, sampling, 0.25, 0.3, room.clean_blocks, room.blocks)
    tx = make_optimizer(ConfigDict(OPTIMIZER))
    step = partial(train_step, objective=objective, tx=tx, seed=0, ema_decay=0.9, accumulate=1)
    loss = lambda params, batch: objective.loss(params, None, batch, 0, jnp.int32(0))[0]
    jitted = jax.jit(step), jax.jit(loss)
    return *jitted, initial_state(tiny.model(config), tx), batches


def test_the_train_step_compiles_once(training):
    step, _, state, batches = training
    step.clear_cache()
    losses = []
    for batch in [*batches, batches[0]]:
        state, metrics = step(state, None, batch)
        losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1
    assert len(set(losses)) == 4 and np.isfinite(losses).all()


def on_devices(count, state, batch):
    """The state on each of `count` devices, the batch's rows divided among them."""
    mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])
    place = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
    return place(state, PartitionSpec()), place(batch, PartitionSpec("data"))


@pytest.mark.parametrize("count", [2, 4, 8])
def test_any_number_of_devices_gives_the_same_loss(training, count):
    _, loss, state, batches = training
    alone = loss(*on_devices(1, state.params, batches[0]))
    np.testing.assert_allclose(loss(*on_devices(count, state.params, batches[0])), alone, rtol=2e-6)


def test_eight_devices_take_the_steps_that_one_takes(training):
    step, _, first, batches = training
    found = {}
    for count in (1, 8):
        state, found[count] = first, []
        for batch in batches[:2]:
            state, batch = on_devices(count, state, batch)
            state, metrics = step(state, None, batch)
            found[count] += [float(metrics[name]) for name in ("loss", "grad_norm", "loss/video", "loss/audio")]
    np.testing.assert_allclose(found[8], found[1], rtol=2e-5)


def test_noise_belongs_to_the_sample_not_to_its_row(tiny):
    config = tiny.config()
    spec = config.tokens
    windows = [tiny.window(spec, 2, seed=seed, first_chunk=3 * seed) for seed in range(4)]
    one, _ = tiny.batch(spec, [[windows[0], windows[1]], [windows[2], windows[3]]])
    other, _ = tiny.batch(spec, [[windows[3], windows[0]], [windows[1], windows[2]]])

    def noise(batch):
        clean = tokens.content(config, batch)
        drawn = flow.noise_like(clean, batch, 0, jnp.int32(5), (Purpose.VIDEO_NOISE, Purpose.AUDIO_NOISE))
        uniform = flow.uniform(0, Purpose.TIME, jnp.int32(5), batch, 3)
        values = by_chunk(config, batch, jax.tree.map(np.asarray, drawn))
        name = lambda place: (int(batch["chunk_sample"][place]), int(batch["chunk_number"][place]))
        return {name(place): (value, np.asarray(uniform)[place]) for place, value in values.items()}

    first, second = noise(one), noise(other)
    assert len(first) == 8 and first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name][0], second[name][0])
        np.testing.assert_array_equal(first[name][1], second[name][1])
