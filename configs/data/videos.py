"""A folder of videos, at their own sizes and rates, with sound, shots and captions, as shards.

    pixr1 data build --config=configs/data/videos.py --config.path=DIR --out=OUT
    pixr1 data inspect OUT --verify --html=OUT.html

Any file that FFmpeg reads is taken; what gives no clip stands in OUT/rejected.jsonl with the reason. Captions come
from x.txt or x.jsonl beside x.mp4, or from captions.csv or captions.jsonl in DIR (docs/recipes.md).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Returns the config; `config.path` is the folder."""
    config = ConfigDict()
    config.path = placeholder(str)

    config.data = ConfigDict()
    config.data.source = "videos"
    config.data.shards = 8
    config.data.video_codec = "h264_420"
    config.data.processes = 2
    config.data.patience = 600.0
    config.data.videos = ConfigDict()
    config.data.videos.path = config.get_ref("path")
    config.data.videos.licence = "unknown"
    config.data.videos.test_share = 0.05
    config.data.videos.max_seconds = 10.0
    config.data.videos.min_seconds = 0.5
    config.data.videos.cuts = True
    config.data.videos.copy = True
    return config
