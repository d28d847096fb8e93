"""TensorFlow Datasets as a source: any video or image dataset that has been prepared; TensorFlow is not needed."""

from __future__ import annotations

import dataclasses
import fractions
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines.clip import Clip, ClipError, TextEvent, one_line, samples_at
from data_pipelines.record import Record
from data_pipelines.source import Item, Rejected


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """Examples of a dataset as clips; an image is a clip of one frame.

    Attributes:
        dataset: name, with config and version if wanted, such as "moving_mnist" or "ucf101/ucf101_1_256".
        data_dir: where it was prepared, in a format with random access (array_record).
        splits: (our split, split or slice of the dataset), such as ("train", "train[:90%]").
        video: feature of the frames, uint8 `[frames, height, width, channels]`, or of the image, without frames.
        frame_rate: frames a second, such as "30000/1001", since the datasets do not say.
        audio: feature of the sound, int16 or float in -1..1, `[samples]` or `[samples, channels]`; "" for none.
        sample_rate: of the sound, Hz.
        text: feature of the caption: a text, or a class label; "" for none.
        licence: terms of the dataset.
        batch: examples that are read together.
    """

    dataset: str
    data_dir: str | None = None
    splits: tuple[tuple[str, str], ...] = (("train", "train"), ("test", "test"))
    video: str = "video"
    frame_rate: str = "25"
    audio: str = ""
    sample_rate: int = 16_000
    text: str = ""
    licence: str = "unknown"
    batch: int = 64

    def __post_init__(self) -> None:
        if self.rate <= 0 or self.sample_rate < 1 or self.batch < 1:
            raise ValueError("frame_rate, sample_rate and batch must be positive")
        if not self.splits:
            raise ValueError('splits is empty; name at least one, as in (("train", "train[:90%]"),)')
        features = _open(self).info.features
        assert features is not None
        for name in filter(None, (self.video, self.audio, self.text)):
            if name not in features:
                raise ValueError(f"{self.dataset} has no feature {name!r}; use one of {', '.join(sorted(features))}")

    @property
    def rate(self) -> fractions.Fraction:
        """Frames a second."""
        return fractions.Fraction(self.frame_rate)

    def items(self) -> Sequence[Item]:
        """See `data_pipelines.source.Source`."""
        found = []
        for split, wanted in self.splits:
            count = len(_data_source(self, wanted))
            found += [Item(split, f"tfds/{self.dataset}/{split}/{n:06d}", (wanted, n)) for n in range(count)]
        return found

    def record(self, items: Sequence[Item]) -> Iterator[tuple[Item, Clip | Record | Rejected]]:
        """See `data_pipelines.source.Source`."""
        features = _open(self).info.features
        opened: dict[str, Any] = {}
        for item in items:
            split, number = item.what
            if split not in opened:
                opened[split] = _data_source(self, split)
            try:
                clip = _clip(self, opened[split][number], features, item.name)
                clip.validate()
            except (ValueError, LookupError, TypeError, OSError) as error:
                yield item, Rejected(item.name, one_line(error))
                continue
            yield item, clip


def _clip(source: TfdsSource, example: dict[str, Any], features: Any, episode: str) -> Clip:
    video = np.asarray(example[source.video])
    if video.ndim == 3:
        video = video[None]
    if video.ndim != 4 or video.dtype != np.uint8 or video.shape[3] not in (1, 3):
        raise ClipError(f"{source.video} is {video.dtype}{list(video.shape)}; use uint8 frames of 1 or 3 channels")
    if video.shape[3] == 1:
        video = np.repeat(video, 3, axis=3)
    caption = _caption(example[source.text], features[source.text]) if source.text else ""
    return Clip(
        video=video,
        audio=_audio(source, example, len(video)),
        actions=np.zeros((len(video), 0), np.float32),
        action_names=(),
        events=(TextEvent(0, caption),) if caption else (),
        frame_rate=source.rate,
        sample_rate=source.sample_rate,
        source=f"tfds:{source.dataset}",
        licence=source.licence,
        seed=0,
        episode=episode,
    )


def _audio(source: TfdsSource, example: dict[str, Any], frames: int) -> np.ndarray:
    """The sound, as long as the video: cut, or silent at its end."""
    samples = samples_at(frames, source.sample_rate, source.rate)
    if not source.audio:
        return np.zeros((samples, 0), np.int16)
    sound = np.asarray(example[source.audio])
    sound = sound[:, None] if sound.ndim == 1 else sound
    if np.issubdtype(sound.dtype, np.floating):
        sound = np.round(np.clip(sound, -1, 1) * 32767)
    elif sound.dtype.itemsize > 2 and np.abs(sound).max(initial=0) > 32767:
        raise ClipError(f"{source.audio} is {sound.dtype} beyond 16 bits; use int16, or floats in -1..1")
    sound = sound[:samples].astype(np.int16)
    return np.pad(sound, ((0, samples - len(sound)), (0, 0)))


def _caption(value: Any, feature: Any) -> str:
    if hasattr(feature, "int2str"):
        return feature.int2str(int(value))
    return value.decode() if isinstance(value, bytes) else str(value)


def _open(source: TfdsSource) -> Any:
    tfds = _import()
    try:
        return tfds.builder(source.dataset, data_dir=source.data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise ValueError(f"dataset {source.dataset!r} is unknown; {one_line(error)}") from error


def _data_source(source: TfdsSource, split: str) -> Any:
    builder = _open(source)
    try:
        return builder.as_data_source(split=split)
    except Exception as error:  # tfds raises many kinds for data that are missing or in another format
        raise ValueError(
            f"{source.dataset} split {split!r} cannot be read: {one_line(error)}; prepare it with "
            f"tfds.builder({source.dataset!r}, file_format='array_record').download_and_prepare()"
        ) from error


def _import() -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError("this needs TensorFlow Datasets: pip install 'pixr1-jax[tfds]'") from error
    return tfds
