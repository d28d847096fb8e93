"""Our shards as a dataset of TensorFlow Datasets, for those whose tools read these.

    builder = Pixr1Clips(shards="DIR", data_dir="TFDS_DIR", file_format="array_record")
    builder.download_and_prepare()
    clips = builder.as_data_source("train")       # or tfds.load("pixr1_clips", data_dir="TFDS_DIR")

Every clip is decoded, so the copy is as large as its pixels under zlib. Facts, whose names and shapes differ from clip
to clip, are left out: features are the same for all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.shards import Dataset, open_dataset


class Pixr1Clips(tfds.core.GeneratorBasedBuilder):
    """Clips with sound, actions and timed texts; see `data_pipelines.clip.Clip` for the features."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, shards: str | os.PathLike[str] | None = None, **options: Any):
        """Reads the dataset directory `shards`, which is needed only to prepare; see tfds for the options."""
        self._shards = None if shards is None else os.fspath(shards)
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "video": features.Tensor(shape=(None, None, None, 3), dtype=np.uint8, encoding="zlib"),
                    "audio": features.Tensor(shape=(None, None), dtype=np.int16, encoding="zlib"),
                    "actions": features.Tensor(shape=(None, None), dtype=np.float32, encoding="zlib"),
                    "action_names": features.Sequence(features.Text()),
                    "events": features.Sequence({"frame": np.int32, "text": features.Text()}),
                    "frame_rate": features.Tensor(shape=(2,), dtype=np.int64),
                    "sample_rate": np.int64,
                    "episode": features.Text(),
                    "source": features.Text(),
                    "licence": features.Text(),
                    "seed": np.int64,
                }
            ),
            description="Clips with sound, actions and timed texts, each at its own size and rates.",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        if self._shards is None:
            raise ValueError("shards is missing; give the directory of the dataset to convert")
        dataset = open_dataset(self._shards)
        return {split: self._generate_examples(dataset, split) for split in dataset.splits}

    def _generate_examples(self, dataset: Dataset, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for info in dataset.clips(split):
            clip = dataset.read(info)
            yield (
                clip.episode,
                {
                    "video": clip.video,
                    "audio": clip.audio,
                    "actions": clip.actions,
                    "action_names": list(clip.action_names),
                    "events": [{"frame": event.frame, "text": event.text} for event in clip.events],
                    "frame_rate": np.array(clip.frame_rate.as_integer_ratio(), np.int64),
                    "sample_rate": clip.sample_rate,
                    "episode": clip.episode,
                    "source": clip.source,
                    "licence": clip.licence,
                    "seed": clip.seed,
                },
            )
