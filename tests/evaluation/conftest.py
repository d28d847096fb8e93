"""A world so small that its truth is a formula, recordings of it, and artifacts that dream it well or badly."""

import fractions

import numpy as np
import pytest

from data_pipelines.build import write_dataset
from data_pipelines.clip import Clip, TextEvent
from pixr1_jax.engine import runner

HEIGHT, WIDTH, CHUNK, RATE, SAMPLE_RATE, HOP, CHANNELS = 16, 24, 2, 10, 2000, 100, 2
SAMPLES = SAMPLE_RATE // RATE
NAMES = ("left", "right")
MANIFEST = {
    "height": HEIGHT,
    "width": WIDTH,
    "frame_rate": f"{RATE}/1",
    "sample_rate": SAMPLE_RATE,
    "channels": CHANNELS,
    "chunk_frames": CHUNK,
    "chunk_samples": CHUNK * SAMPLES,
    "hop": HOP,
    "action_names": list(NAMES),
    "text_bytes": 12,
    "steps": [1, 2, 4],
    "parameters": 7,
}


def draw(position):
    frame = np.full((HEIGHT, WIDTH, 3), (40, 90, 140), np.uint8)
    frame[5:11, (np.arange(4) + position) % WIDTH] = (250, 60, 20)
    frame[0, position] = 0
    return frame


def ring(position):
    """A strike on every third place, 50 samples into the frame."""
    sound = np.zeros((SAMPLES, CHANNELS), np.int16)
    if position % 3 == 0:
        times = np.arange(SAMPLES - 50)
        sound[50:] = (12000 * np.exp(-times / 40) * np.sin(times * (0.5 + 0.1 * position)))[:, None]
    return sound


def make_clip(index, frames=40):
    rng = np.random.default_rng(index)
    actions = np.zeros((frames, 2), np.float32)
    for start in range(0, frames, 3):
        actions[start : start + 3, rng.integers(2)] = rng.random() < 0.8
    positions = (5 + index + np.cumsum(actions[:, 1] - actions[:, 0]).astype(int)) % WIDTH
    return Clip(
        video=np.stack([draw(position) for position in positions]),
        audio=np.concatenate([ring(position) for position in positions]),
        actions=actions,
        action_names=NAMES,
        events=(TextEvent(0, "day"), TextEvent(9, f"night {index}")),
        frame_rate=fractions.Fraction(RATE),
        sample_rate=SAMPLE_RATE,
        source="tiny",
        licence="CC0-1.0",
        seed=index,
        episode=f"tiny/test/{index:03d}",
    )


class FakeStream:
    """Follows runner.Stream, latency of the sound included."""

    def __init__(self, dream):
        self.dream, self.log, self.position = dream, [], 0
        self._sound, self._given = np.zeros((HOP, CHANNELS), np.float32), 0

    def prompt(self, text):
        if len(text.encode()) > MANIFEST["text_bytes"]:
            raise ValueError("prompt is too long")
        self.log.append(("prompt", text))

    def observe(self, frames, sound, actions):
        assert frames.shape == (CHUNK, HEIGHT, WIDTH, 3) and frames.dtype == np.uint8
        assert sound.shape == (HOP + CHUNK * SAMPLES, CHANNELS) and sound.dtype == np.int16
        assert actions.shape == (CHUNK, len(NAMES)) and actions.dtype == np.float32
        self.log.append(("observe", sound[:HOP].copy()))
        self.position = int((frames[-1, 0] == 0).all(axis=-1).argmax())
        return self._out(sound[HOP:].astype(np.float32) / 2**15)

    def step(self, actions, steps=2, guidance=1.0):
        assert actions.shape == (CHUNK, len(NAMES)) and actions.dtype == np.float32
        self.log.append(("step", steps, guidance))
        frames, sounds = [], []
        for action in actions:
            if self.dream == "world":
                self.position = (self.position + int(action[1] - action[0])) % WIDTH
            frames.append(draw(self.position))
            silent = self.dream != "world"
            sounds.append(np.zeros((SAMPLES, CHANNELS), np.float32) if silent else ring(self.position) / 2**15)
        return np.stack(frames), self._out(np.concatenate(sounds).astype(np.float32))

    def _out(self, sound):
        self._sound = np.concatenate([self._sound, sound])
        start = self._given * CHUNK * SAMPLES
        self._given += 1
        return self._sound[start : start + CHUNK * SAMPLES]


class FakeArtifact:
    """dream is "world" (knows the truth) or "still" (repeats the last frame, in silence)."""

    def __init__(self, dream="world"):
        self.manifest, self.dream, self.streams, self.seeds = dict(MANIFEST), dream, [], []

    def start(self, seed):
        self.seeds.append(seed)
        self.streams.append(FakeStream(self.dream))
        return self.streams[-1]


@pytest.fixture
def tiny_clip():
    return make_clip


@pytest.fixture
def fake_artifact():
    return FakeArtifact


@pytest.fixture
def load_fake(monkeypatch):
    """Makes runner.Artifact.load return a fake, and returns it."""

    def load(dream="world"):
        artifact = FakeArtifact(dream)
        monkeypatch.setattr(runner.Artifact, "load", lambda directory: artifact)
        return artifact

    return load


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    write_dataset(directory, {"test": [make_clip(index) for index in range(5)]}, shards={"test": 1})
    return directory
