"""One model of three datasets: the playground, Doom, and a folder of your own videos, with and without sound.

    pip install 'pixr1-jax[doom,videos]'; apt-get install libopenal1
    pixr1 quickstart --config=configs/mixed_tiny.py --config.path=DIR --workdir=runs/mixed

or verb by verb. Sizes, rates, action schemas and sound differ; rows have one shape, and half of them are of the
playground, which is streamed and scored. `configs/mixed_tiny.py:smoke` is the same way in about three minutes,
`:videos` trains on the folder alone. What is not named here is as in `configs/quickstart.py`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from pixr1_jax.core.config import beside


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; `variant` is "", "smoke" or "videos", `config.path` the folder of videos."""
    config = beside(__file__, "quickstart.py:smoke" if variant == "smoke" else "quickstart.py")
    config.path = placeholder(str)

    config.data = ConfigDict()
    config.data.mix = ConfigDict()
    config.data.mix.playground = _made("playground", clips=256, frames=48)
    config.data.mix.playground.playground = ConfigDict()
    config.data.mix.playground.playground.height = 80
    config.data.mix.playground.playground.width = 120
    config.data.mix.playground.playground.frame_rate = 12
    config.data.mix.playground.playground.sample_rate = 6000
    config.data.mix.doom = _made("vizdoom", clips=64, frames=48)
    config.data.mix.doom.vizdoom = ConfigDict()
    config.data.mix.doom.vizdoom.scenarios = ("defend_the_center", "defend_the_line")
    config.data.mix.videos = ConfigDict()
    config.data.mix.videos.source = "videos"
    config.data.mix.videos.shards = 4
    config.data.mix.videos.video_codec = "h264_420"
    config.data.mix.videos.processes = 2
    config.data.mix.videos.videos = ConfigDict()
    config.data.mix.videos.videos.path = config.get_ref("path")
    config.data.mix.videos.videos.test_share = 0.0

    # Sound is resampled to 8 * 125 samples a chunk, whatever a chunk lasts, and mono becomes stereo.
    config.tokens.patch = 40
    config.tokens.block = 16
    config.tokens.action_dim = 11
    config.tokens.text_bytes = 64

    config.pack.row_blocks = 128
    config.pack.shares = ({"from_row": 0, "weights": {"playground": 0.5, "doom": 0.25, "videos": 0.25}},)
    config.pack.batch_rows = 2
    config.pack.prefetch = 4

    config.export.dataset = "playground"
    config.export.size = (80, 120)
    config.export.steps = config.evaluate.steps = (1, 2)
    config.evaluate.clips, config.evaluate.frames = 8, 32

    if variant == "smoke":
        for name in ("playground", "doom"):
            section = config.data.mix[name]
            section.train_clips, section.test_clips, section.shards, section.frames = 8, 2, 1, 24
        for stage, steps in ((config.train, 8), (config.distill, 2)):
            stage.steps = stage.optimizer.total_steps = steps
            stage.optimizer.warmup_steps = 1
            stage.log_every, stage.checkpoint.every_steps = 1, 4
        config.distill.objective.tangent_warmup = 1
        config.evaluate.clips, config.evaluate.frames = 2, 16
        return config

    config.model.width, config.model.hidden = 192, 512
    config.model.heads, config.model.head_dim = 3, 64
    config.model.video_rank = 128
    for stage, steps, rate in ((config.train, 1200, 1e-3), (config.distill, 120, 3e-4)):
        stage.steps = stage.optimizer.total_steps = steps
        stage.optimizer.learning_rate = rate
    config.distill.objective.tangent_warmup = 60
    if variant == "videos":
        for name in ("playground", "doom"):
            delattr(config.data.mix, name)
        config.pack.shares = ({"from_row": 0, "weights": {"videos": 1.0}},)
        config.export.dataset = "videos"
    elif variant:
        raise ValueError(f"configs/mixed_tiny.py has no variant {variant!r}; use 'smoke', 'videos' or none")
    return config


def _made(source: str, clips: int, frames: int) -> ConfigDict:
    section = ConfigDict()
    section.source = source
    section.train_clips = clips
    section.test_clips = 8
    section.frames = frames
    section.seed = 0
    section.shards = 2
    section.video_codec = "zstd"
    return section
