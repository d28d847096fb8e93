"""A folder of any video files as a source of clips; see `VideoFolder`."""

from data_pipelines.sources.videos.folder import VideoFolder

__all__ = ["VideoFolder"]
