"""TensorFlow Datasets: theirs as a source, ours as a dataset of theirs, with TensorFlow not installed."""

import fractions
import importlib.util
import pickle

import numpy as np
import pytest

from data_pipelines import build
from data_pipelines.clip import Clip, TextEvent
from data_pipelines.shards import open_dataset
from data_pipelines.source import Rejected

tfds = pytest.importorskip("tensorflow_datasets")

from data_pipelines.sources.tfds import TfdsSource  # noqa: E402 (needs the package above)
from data_pipelines.tfds_builder import Pixr1Clips  # noqa: E402


def video(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (3 + number, 6, 8, 3), np.uint8)


class Toys(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "clip": tfds.features.Tensor(shape=(None, 6, 8, 3), dtype=np.uint8),
                "picture": tfds.features.Tensor(shape=(5, 4, 1), dtype=np.uint8),
                "sound": tfds.features.Tensor(shape=(None,), dtype=np.float32),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                "words": tfds.features.Text(),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(4):
            example = {
                "clip": video(number),
                "picture": np.full((5, 4, 1), number, np.uint8),
                "sound": np.full(90, 0.5, np.float32),
                "label": number % 2,
                "words": f"ein Hund läuft {number}",
            }
            yield number, example


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    directory = str(tmp_path_factory.mktemp("tfds"))
    Toys(data_dir=directory, file_format="array_record").download_and_prepare()
    return directory


def by_label(made):
    return {clip.events[0].text: clip for _, clip in made}


def test_videos_with_sound_and_captions(toys):
    splits = (("train", "train[:50%]"), ("test", "train[50%:]"))
    source = TfdsSource(
        "toys", toys, splits, video="clip", audio="sound", text="words", frame_rate="10", sample_rate=200
    )
    source = pickle.loads(pickle.dumps(source))
    items = source.items()
    assert [item.split for item in items] == ["train", "train", "test", "test"]
    found = by_label(source.record(items))
    for number in range(4):
        clip = found[f"ein Hund läuft {number}"]
        assert isinstance(clip, Clip)
        np.testing.assert_array_equal(clip.video, video(number))
        # 20 samples a frame, as long as the video: cut, or silent at its end.
        sound = np.zeros(20 * (3 + number), np.int16)
        sound[:90] = 16384
        np.testing.assert_array_equal(clip.audio[:, 0], sound)


def test_pictures_with_labels_in_shards(toys, tmp_path):
    source = TfdsSource("toys", toys, (("train", "train"),), video="picture", text="label", licence="CC0-1.0")
    build.build(tmp_path, source, shards={"train": 2}, spec={}, progress=False)
    dataset = open_dataset(tmp_path)
    dataset.verify()
    clips = [dataset.read(info) for info in dataset.clips("train")]
    assert [clip.video.shape for clip in clips] == [(1, 5, 4, 3)] * 4 and {clip.channels for clip in clips} == {0}
    assert {(int(clip.video.max()), clip.events[0].text) for clip in clips} == {
        (0, "cat"), (1, "dog"), (2, "cat"), (3, "dog"),
    }  # fmt: skip


def test_mistakes_name_the_fix(toys):
    with pytest.raises(ValueError, match="no feature 'film'; use one of clip, label, picture, sound, words"):
        TfdsSource("toys", toys, video="film")
    with pytest.raises(ValueError, match="split 'test' cannot be read: .*prepare it with"):
        TfdsSource("toys", toys, (("test", "test"),), video="clip").items()
    with pytest.raises(ValueError, match="dataset 'nothing_of_the_kind' is unknown"):
        TfdsSource("nothing_of_the_kind", toys)
    source = TfdsSource("toys", toys, (("train", "train[:1]"),), video="sound")
    ((_, made),) = source.record(source.items())
    assert isinstance(made, Rejected) and "sound is float32[90]; use uint8 frames" in made.reason


def test_our_shards_as_a_dataset_of_theirs(tmp_path):
    rng = np.random.default_rng(0)
    made = [
        Clip(
            video=rng.integers(0, 256, (4, 6 + n, 8, 3), np.uint8),
            audio=rng.integers(-99, 99, (80, n), np.int16),
            actions=rng.normal(size=(4, 2)).astype(np.float32),
            action_names=("left", "right"),
            events=(TextEvent(0, "a ☀"), TextEvent(2, "b")),
            frame_rate=fractions.Fraction(30000, 1001),
            sample_rate=600,
            source="test",
            licence="CC0-1.0",
            seed=n,
            episode=f"clip {n}",
        )
        for n in range(3)
    ]
    build.write_dataset(tmp_path / "shards", {"train": made[:2], "test": made[2:]}, shards={"train": 1, "test": 1})
    builder = Pixr1Clips(shards=tmp_path / "shards", data_dir=str(tmp_path / "tfds"), file_format="array_record")
    builder.download_and_prepare()
    again = tfds.builder_from_directory(str(builder.data_path))
    found = {one["episode"].decode(): one for split in ("train", "test") for one in again.as_data_source(split)}
    for clip in made:
        one = found[clip.episode]
        for name in ("video", "audio", "actions"):
            np.testing.assert_array_equal(one[name], getattr(clip, name))
        assert [text.decode() for text in one["events"]["text"]] == ["a ☀", "b"]
        assert list(one["frame_rate"]) == [30000, 1001] and one["seed"] == clip.seed
    assert importlib.util.find_spec("tensorflow") is None
