"""What the tasks say about every cell."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from pixr1_jax.objectives import tasks
from pixr1_jax.objectives.tasks import TASKS, TimeSampling

SAMPLING = TimeSampling(mean=0.8, deviation=1.2, pure_noise=0.25, drop=0.2, drift=0.0, tasks=(("joint", 1.0),))


def fake_batch(samples=4000, chunks=3, padding=1, silent=0):
    """All that drawing reads of a batch; the first samples may be silent."""
    valid = np.tile(np.arange(chunks + padding) < chunks, (samples, 1))
    rows = np.repeat(np.arange(samples, dtype=np.uint32)[:, None], chunks + padding, axis=1)
    return {
        "chunk_sample": rows,
        "chunk_number": np.tile(np.arange(chunks + padding, dtype=np.int32), (samples, 1)),
        "chunk_valid": valid,
        "chunk_audio": valid & (np.arange(samples) >= silent)[:, None],
        "chunk_table": np.zeros((samples, chunks + padding), np.int32),
    }


def draw(batch=None, seed=0, step=0, level=0.1, **changes):
    sampling = dataclasses.replace(SAMPLING, **changes)
    out = tasks.draw(sampling, level, seed, jnp.int32(step), fake_batch() if batch is None else batch)
    return {field.name: np.asarray(getattr(out, field.name)) for field in dataclasses.fields(out)}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_says_which_cells_are_noisy_and_carry_loss(name):
    out = draw(tasks=((name, 1.0),))
    video, audio = out["time"][..., 0], out["time"][..., 1]
    valid = fake_batch()["chunk_valid"]
    noisy = {"video_to_audio": (0, 1), "audio_to_video": (1, 0)}.get(name, (1, 1))
    for times, is_noisy, m in ((video, noisy[0], 0), (audio, noisy[1], 1)):
        assert ((times > 0) == bool(is_noisy))[valid].all() and (times <= 1).all()
        np.testing.assert_array_equal(out["loss"][..., m], valid & bool(is_noisy))
    if name == "joint":
        np.testing.assert_array_equal(video[valid], audio[valid])
    if name == "independent":
        partly = (video < 1) & (audio < 1)
        assert abs(np.corrcoef(video[partly], audio[partly])[0, 1]) < 0.05


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_sample_without_sound_learns_its_video_whatever_the_task(name):
    batch = fake_batch(40, silent=25)
    out, heard = draw(batch, tasks=((name, 1.0),)), draw(fake_batch(40), tasks=((name, 1.0),))
    valid = batch["chunk_valid"][:25]
    np.testing.assert_array_equal(out["loss"][:25, :, 0], valid)
    assert not out["loss"][:25, :, 1].any() and not out["time"][:25, :, 1].any() and out["time"][:25, :, 0].all()
    for field in ("time", "loss"):
        np.testing.assert_array_equal(out[field][25:], heard[field][25:])


def test_samples_draw_from_the_table_that_they_name():
    batch = fake_batch(3000)
    batch["chunk_table"] = np.repeat(np.arange(3000)[:, None] % 3, 4, axis=1).astype(np.int32)
    tables = ((("video_to_audio", 1.0),), (("audio_to_video", 1.0), ("joint", 3.0)))
    noisy = draw(batch, tasks=(("joint", 1.0),), tables=tables)["time"][:, 0] > 0
    assert noisy[0::3].all()
    assert (noisy[1::3] == [False, True]).all()
    assert noisy[2::3, 0].all() and noisy[2::3, 1].mean() == pytest.approx(0.75, abs=0.04)
    with pytest.raises(ValueError, match="dance"):
        dataclasses.replace(SAMPLING, tables=((("dance", 1.0),),))


def test_times_follow_the_law():
    time = draw()["time"][..., 0]
    pure = time == 1
    assert pure.mean() == pytest.approx(0.25, abs=0.02)
    logit = np.log(time[~pure] / (1 - time[~pure]))
    assert logit.mean() == pytest.approx(0.8, abs=0.05) and logit.std() == pytest.approx(1.2, abs=0.05)
    assert len(np.unique(time[~pure])) > 0.99 * (~pure).sum()  # every chunk its own


def test_tasks_have_their_weights_and_belong_to_samples():
    out = draw(tasks=(("audio_to_video", 1.0), ("joint", 2.0), ("video_to_audio", 1.0)))
    noisy = out["time"] > 0
    assert (noisy == noisy[:, :1])[:, :3].all()
    share = lambda video, audio: np.mean((noisy[:, 0, 0] == video) & (noisy[:, 0, 1] == audio))
    assert share(True, False) == pytest.approx(0.25, abs=0.03)
    assert share(True, True) == pytest.approx(0.5, abs=0.03)
    assert share(False, True) == pytest.approx(0.25, abs=0.03)


def test_dropping_belongs_to_samples_and_context_levels_to_chunks():
    out = draw()
    assert (out["drop"] == out["drop"][:, :1]).all()
    assert out["drop"][:, 0].mean() == pytest.approx(0.2, abs=0.03)
    assert not draw(drop=0.0)["drop"].any()
    level = out["context"]
    assert level.min() >= 0 and level.max() <= 0.1 and level.mean() == pytest.approx(0.05, abs=0.002)
    np.testing.assert_array_equal(level[..., 0], level[..., 1])
    assert not draw(level=0.0)["context"].any()


def test_draws_follow_the_sample_whatever_its_row():
    batch = fake_batch(20)
    order = np.random.default_rng(0).permutation(20)
    shuffled = {name: value[order] for name, value in batch.items()}
    for name, value in draw(batch).items():
        np.testing.assert_array_equal(draw(shuffled)[name], value[order])
    assert (draw(batch, step=1)["time"] != draw(batch)["time"]).any()
    assert (draw(batch, seed=1)["time"] != draw(batch)["time"]).any()


@pytest.mark.parametrize("given", [(("joint", 1.0), ("dance", 1.0)), ()])
def test_unknown_tasks(given):
    with pytest.raises(ValueError, match="known tasks are .*'joint'"):
        TimeSampling(mean=0, deviation=1, pure_noise=0, drop=0, drift=0, tasks=given)
