"""Shards written by Apache Beam: the same transform on one machine or on Dataflow, Flink or Spark.

The directory must be one that all workers reach, such as a network file system. Needs `pip install 'pixr1-jax[beam]'`.
"""

from __future__ import annotations

from collections.abc import Sequence

from etils import epath

from data_pipelines import writer as writer_lib
from data_pipelines.shards import ShardError
from data_pipelines.source import Source
from data_pipelines.video import VideoCodec
from data_pipelines.writer import Job


def run(
    building: epath.Path, jobs: Sequence[Job], source: Source, video_codec: VideoCodec, arguments: Sequence[str]
) -> None:
    """Writes shards and their part files by a pipeline, and waits for its end.

    Args:
        building: see `writer.open_building`.
        jobs: the shards.
        source: what records their items.
        video_codec: see `writer.write_shard`.
        arguments: options of the pipeline, such as "--runner=DirectRunner" and "--direct_num_workers=2".

    Raises:
        ShardError: Apache Beam is not installed, or the pipeline failed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ShardError("--runner needs Apache Beam; pip install 'pixr1-jax[beam]'") from error

    def write(job: Job) -> str:
        writer_lib.write_shard(building, job, source, video_codec=video_codec)
        return job.name

    # Pickled as they are: our modules are installed on the workers, so nothing of this process goes along.
    options = PipelineOptions(list(arguments), pickle_library="cloudpickle")
    try:
        with beam.Pipeline(options=options) as pipeline:
            # Else neighbouring shards would be fused into one worker's share.
            _ = pipeline | "jobs" >> beam.Create(list(jobs)) | beam.Reshuffle() | "write" >> beam.Map(write)
    except Exception as error:  # whatever a runner raises for what went wrong in a worker
        raise ShardError(f"the Beam pipeline failed: {error}") from error
