"""One model of three datasets: the playground, Doom, and a folder of your own videos, with and without sound.

    pip install 'pixr1-jax[doom,videos]'; apt-get install libopenal1
    pixr1 data build --config=configs/mixed_tiny.py --config.path=DIR --workdir=runs/mixed
    pixr1 train --config=configs/mixed_tiny.py --config.path=DIR --workdir=runs/mixed

and `distill`, `export` alike. Sizes, rates, action schemas and sound differ; rows have one shape, and half of them are
of the playground. `configs/mixed_tiny.py:smoke` is the same way in about three minutes, `:videos` trains on the folder
alone.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; `variant` is "", "smoke" or "videos", `config.path` the folder of videos."""
    config = ConfigDict()
    config.seed = 0
    config.compilation_cache = ""  # a folder or bucket that keeps compiled programs
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
    config.tokens = ConfigDict()
    config.tokens.patch = 40
    config.tokens.chunk_frames = 2
    config.tokens.block = 16
    config.tokens.hop = 125
    config.tokens.hops = 8
    config.tokens.audio_tokens = 4
    config.tokens.channels = 2
    config.tokens.action_dim = 11
    config.tokens.text_bytes = 64

    config.memory = ConfigDict()
    config.memory.window = 4
    config.memory.sinks = 1
    config.memory.bank = 16
    config.memory.horizon = 16

    config.model = ConfigDict()
    config.model.width = 192
    config.model.layers = 4
    config.model.heads = 3
    config.model.head_dim = 64
    config.model.hidden = 512
    config.model.video_rank = 128
    config.model.audio_rank = 96
    config.model.audio_scale = 4.0
    config.model.audio_power = 0.5
    config.model.context_time = 0.0
    config.model.max_context_time = 0.15
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.model.attention = ConfigDict()
    config.model.attention.implementation = "reference"
    config.model.attention.tile = 1
    config.model.attention.budget = None

    config.mesh = ConfigDict()
    config.mesh.slice, config.mesh.data, config.mesh.fsdp, config.mesh.context, config.mesh.tensor = 1, -1, 1, 1, 1
    config.mesh.context_parallel = "ulysses"

    config.pack = ConfigDict()
    config.pack.window_chunks = 8
    config.pack.windows_per_row = 1
    config.pack.row_blocks = 128
    config.pack.shares = ({"from_row": 0, "weights": {"playground": 0.5, "doom": 0.25, "videos": 0.25}},)
    config.pack.batch_rows = 2
    config.pack.threads = 2
    config.pack.prefetch = 4
    config.pack.max_bad = 0.01

    config.train = _stage(steps=1200, learning_rate=1e-3, warmup=50)
    config.train.objective.time_floor = 0.5
    config.train.objective.audio_weight = 0.3
    config.train.objective.drop = 0.1
    config.distill = _stage(steps=120, learning_rate=3e-4, warmup=20)
    config.distill.objective.time_floor = 0.5
    config.distill.objective.audio_weight = 0.3
    config.distill.objective.softening = 0.02
    config.distill.objective.to_clean = 0.25
    config.distill.objective.to_same = 0.5
    config.distill.objective.max_guidance = 1.5
    config.distill.objective.tangent_warmup = 60
    config.distill.objective.drop = 0.0

    config.export = ConfigDict()
    config.export.steps = (1, 2)
    config.export.platforms = ("cpu",)
    config.export.size = (80, 120)

    if variant == "smoke":
        for name in ("playground", "doom"):
            section = config.data.mix[name]
            section.train_clips, section.test_clips, section.shards, section.frames = 8, 2, 1, 24
        config.model.width, config.model.layers, config.model.hidden = 64, 2, 128
        config.model.heads, config.model.head_dim = 2, 32
        for stage, steps in ((config.train, 8), (config.distill, 2)):
            stage.steps = stage.optimizer.total_steps = steps
            stage.optimizer.warmup_steps = 1
            stage.log_every, stage.checkpoint.every_steps = 1, 4
        config.distill.objective.tangent_warmup = 1
    elif variant == "videos":
        for name in ("playground", "doom"):
            delattr(config.data.mix, name)
        config.pack.shares = ({"from_row": 0, "weights": {"videos": 1.0}},)
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


def _stage(steps: int, learning_rate: float, warmup: int) -> ConfigDict:
    stage = ConfigDict()
    stage.steps = steps
    stage.log_every = 10
    stage.checkpoint = ConfigDict()
    stage.checkpoint.every_steps = 300
    stage.checkpoint.keep = 2
    stage.max_step_seconds, stage.max_first_step_seconds = 900.0, 3600.0
    stage.max_skipped = 20
    stage.ema_decay = 0.99
    stage.accumulate = 1
    stage.optimizer = ConfigDict()
    stage.optimizer.name = "adamw"
    stage.optimizer.learning_rate = learning_rate
    stage.optimizer.warmup_steps = warmup
    stage.optimizer.total_steps = steps
    stage.optimizer.schedule = "cosine"
    stage.optimizer.final_scale = 0.1
    stage.optimizer.b1 = 0.9
    stage.optimizer.b2 = 0.99
    stage.optimizer.weight_decay = 0.01
    stage.optimizer.clip_norm = 1.0
    stage.objective = ConfigDict()
    stage.objective.mean = 2.0
    stage.objective.deviation = 1.2
    stage.objective.pure_noise = 0.3
    stage.objective.drift = 0.07
    stage.objective.tasks = ConfigDict(
        {"joint": 0.8, "independent": 0.1, "video_to_audio": 0.05, "audio_to_video": 0.05}
    )
    return stage
