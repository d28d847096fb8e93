"""Dreams on from a recording: prompts and look-back at their place, sound in step."""

import dataclasses

import numpy as np
import pytest

from pixr1_jax.evaluation import rollout

OPTIONS = {"steps": 2, "guidance": 1.5, "seed": 3}


def test_a_world_that_knows_the_truth_dreams_it(fake_artifact, tiny_clip):
    artifact, clip = fake_artifact(), tiny_clip(0)
    frames, sound = rollout.dream(artifact, clip, context_chunks=3, frames=20, **OPTIONS)
    np.testing.assert_array_equal(frames, clip.video[6:26])
    truth = rollout.true_sound(artifact.manifest, clip, context_chunks=3, frames=20)
    # 20 frames of 200 samples, less the hop of 100 that is not out yet.
    assert sound.shape == truth.shape == (3900, 2)
    np.testing.assert_allclose(sound, clip.audio[1200:5100] / 2**15, atol=1e-7)
    np.testing.assert_array_equal(truth, sound)


def test_prompts_and_lookback(fake_artifact, tiny_clip):
    artifact, clip = fake_artifact(), tiny_clip(1)
    rollout.dream(artifact, clip, context_chunks=2, frames=8, **OPTIONS)
    log = artifact.streams[0].log
    # The event of frame 9 lies in chunk 4, the third that is dreamed.
    kinds = [entry[0] for entry in log]
    assert kinds == ["prompt", "observe", "observe", "step", "step", "prompt", "step", "step"]
    assert log[0][1] == "day" and log[5][1] == "night 1"
    assert log[3] == ("step", 2, 1.5) and artifact.seeds == [3]
    np.testing.assert_array_equal(log[1][1], 0)
    np.testing.assert_array_equal(log[2][1], clip.audio[300:400])


def test_given_actions_replace_the_true_ones(fake_artifact, tiny_clip):
    artifact, clip = fake_artifact(), tiny_clip(2)
    still = np.zeros((8, 2), np.float32)
    frames, _ = rollout.dream(artifact, clip, context_chunks=2, frames=8, actions=still, **OPTIONS)
    np.testing.assert_array_equal(frames, np.broadcast_to(clip.video[3], frames.shape))


def test_a_silent_artifact(fake_artifact, tiny_clip):
    artifact, clip = fake_artifact("still"), tiny_clip(0)
    artifact.manifest |= {"channels": 0, "sample_rate": 12345}
    assert rollout.misfit(artifact.manifest, clip) == ""
    truth = rollout.true_sound(artifact.manifest, clip, context_chunks=2, frames=8)
    assert truth.shape[1] == 0


def test_a_clip_is_converted_to_the_actions_and_sound_of_the_artifact(fake_artifact, tiny_clip):
    manifest, clip = fake_artifact().manifest, tiny_clip(0)
    same = rollout.fitted(manifest, clip)
    for name in ("video", "audio", "actions"):
        np.testing.assert_array_equal(getattr(same, name), getattr(clip, name))
    # An artifact of a mixture: more actions, in another order, and half the samples in one channel.
    mixed = manifest | {"action_names": ["jump", "right", "left"], "sample_rate": 1000, "chunk_samples": 200}
    mixed |= {"hop": 50, "channels": 1}
    assert rollout.misfit(mixed, clip) == ""
    found = rollout.fitted(mixed, clip)
    assert found.action_names == ("jump", "right", "left") and found.sample_rate == 1000
    np.testing.assert_array_equal(found.actions, np.stack([0 * clip.actions[:, 0], *clip.actions.T[::-1]], axis=1))
    assert found.audio.shape == (40 * 100, 1)
    mono = clip.audio.astype(float).mean(1)
    # A low-pass and every second sample, but for the filter's own edges.
    spectrum = np.fft.rfft(mono)
    spectrum[len(spectrum) // 2 :] = 0
    slow = np.fft.irfft(spectrum, len(mono))[::2]
    assert np.corrcoef(found.audio[:, 0], slow)[0, 1] > 0.99
    with pytest.raises(ValueError, match="channels 0, the artifact has 1"):
        rollout.check_window(mixed, dataclasses.replace(clip, audio=clip.audio[:, :0]), 2, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 32}, "tiny/test/000 does not fit the artifact: height 16, the artifact has 32"),
        ({"frame_rate": "12/1"}, "frame_rate 10, the artifact has 12"),
        ({"action_names": ["jump"]}, "action_names left, right, the artifact has jump"),
        ({"steps": [4]}, "steps is 2; the artifact has 4"),
    ],
)
def test_what_does_not_fit_is_named(fake_artifact, tiny_clip, change, message):
    artifact = fake_artifact()
    artifact.manifest |= change
    with pytest.raises(ValueError, match=message):
        rollout.dream(artifact, tiny_clip(0), context_chunks=2, frames=8, **OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 7}, "multiple of 2"),
        ({"frames": 0}, "multiple of 2"),
        ({"frames": 38}, "has 40 frames, context_chunks and frames ask for 42"),
        ({"context_chunks": 0}, "show at least 1"),
        ({"actions": np.zeros((4, 2), np.float32)}, r"use \[8, 2\]"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_arguments(fake_artifact, tiny_clip, options, message):
    with pytest.raises(ValueError, match=message):
        rollout.dream(fake_artifact(), tiny_clip(0), **({"context_chunks": 2, "frames": 8} | OPTIONS | options))
