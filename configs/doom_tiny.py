"""Doom with sound on two CPU cores: two rooms, two picture shapes in the same rows, dreamt at 160x120.

    pip install 'pixr1-jax[doom]'; apt-get install libopenal1
    pixr1 quickstart --config=configs/doom_tiny.py --workdir=runs/doom

or verb by verb, as in docs/recipes.md. `configs/doom_tiny.py:smoke` is the same way in about two minutes.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; `variant` is "" or "smoke"."""
    config = ConfigDict()
    config.seed = 0
    config.compilation_cache = ""  # a folder or bucket that keeps compiled programs

    config.data = ConfigDict()
    config.data.source = "vizdoom"
    config.data.train_clips = 240
    config.data.test_clips = 32
    config.data.frames = 48
    config.data.seed = 0
    config.data.shards = 4
    config.data.video_codec = "zstd"
    config.data.vizdoom = ConfigDict()
    # Both are played with the same buttons, so the actions of one mean something in the other (the control gain).
    config.data.vizdoom.scenarios = ("defend_the_center", "defend_the_line")
    config.data.vizdoom.resolutions = ("RES_160X120", "RES_256X144")
    config.data.vizdoom.sample_rate = 11025
    config.data.vizdoom.tics_per_frame = 4

    # 35 / 4 frames a second: a chunk of 2 frames lasts 8 / 35 s, which is 2520 = 8 * 315 samples.
    config.tokens = ConfigDict()
    config.tokens.patch = 20
    config.tokens.chunk_frames = 2
    config.tokens.block = 16
    config.tokens.hop = 315
    config.tokens.hops = 8
    config.tokens.audio_tokens = 8
    config.tokens.channels = 2
    config.tokens.action_dim = 8
    config.tokens.text_bytes = 40

    config.memory = ConfigDict()
    config.memory.window = 3
    config.memory.sinks = 1
    config.memory.bank = 16
    config.memory.horizon = 16

    config.model = ConfigDict()
    config.model.width = 192
    config.model.layers = 4
    config.model.heads = 2
    config.model.head_dim = 96
    config.model.hidden = 512
    config.model.video_rank = 96
    config.model.audio_rank = 96
    config.model.audio_scale = 4.0
    config.model.audio_power = 0.5
    config.model.context_time = 0.0
    config.model.max_context_time = 0.15
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.model.attention = ConfigDict()
    config.model.attention.implementation = "gather"
    config.model.attention.tile = 1
    config.model.attention.budget = None

    # A row holds two windows of 256x144, or three of 160x120.
    config.mesh = ConfigDict()
    config.mesh.slice, config.mesh.data, config.mesh.fsdp, config.mesh.context, config.mesh.tensor = 1, -1, 1, 1, 1
    config.mesh.context_parallel = "ulysses"

    config.pack = ConfigDict()
    config.pack.window_chunks = 6
    config.pack.windows_per_row = 2
    config.pack.batch_rows = 2
    config.pack.threads = 2
    config.pack.prefetch = 8
    config.pack.max_bad = 0.01

    config.train = _stage(steps=300, learning_rate=2e-3, warmup=30)
    config.train.objective = ConfigDict()
    config.train.objective.time_floor = 0.5
    config.train.objective.audio_weight = 0.3
    _sampling(config.train.objective, drop=0.1)

    config.distill = _stage(steps=60, learning_rate=3e-4, warmup=5)
    config.distill.objective = ConfigDict()
    config.distill.objective.time_floor = 0.5
    config.distill.objective.audio_weight = 0.3
    config.distill.objective.softening = 0.02
    config.distill.objective.to_clean = 0.25
    config.distill.objective.to_same = 0.5
    config.distill.objective.max_guidance = 1.5
    config.distill.objective.tangent_warmup = 40
    _sampling(config.distill.objective, drop=0.0)

    config.export = ConfigDict()
    config.export.steps = (1, 2, 4)
    config.export.platforms = ("cpu",)
    config.export.size = (120, 160)

    config.stream = ConfigDict()
    config.stream.script = "configs/scripts/doom.txt"
    config.stream.seconds = 20.0
    config.stream.steps = 2
    config.stream.guidance = 1.0
    config.stream.seed = 0
    config.stream.clip = 1
    config.stream.context_seconds = 1.5

    config.evaluate = ConfigDict()
    config.evaluate.clips = 16
    config.evaluate.context_chunks = 6
    config.evaluate.frames = 32
    config.evaluate.steps = (1, 2, 4)
    config.evaluate.guidance = 1.0
    config.evaluate.seed = 0

    if variant == "smoke":
        _smoke(config)
    elif variant:
        raise ValueError(f"configs/doom_tiny.py has no variant {variant!r}; use 'smoke' or none")
    return config


def _stage(steps: int, learning_rate: float, warmup: int) -> ConfigDict:
    stage = ConfigDict()
    stage.steps = steps
    stage.log_every = 10
    stage.checkpoint = ConfigDict()
    stage.checkpoint.every_steps = 100
    stage.checkpoint.keep = 2
    stage.max_step_seconds, stage.max_first_step_seconds = 900.0, 3600.0
    stage.max_skipped = 20
    stage.ema_decay = 0.98
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
    return stage


def _sampling(objective: ConfigDict, drop: float) -> None:
    objective.mean = 2.0
    objective.deviation = 1.2
    objective.pure_noise = 0.3
    objective.drop = drop
    objective.drift = 0.15
    objective.tasks = ConfigDict({"joint": 0.8, "independent": 0.1, "video_to_audio": 0.05, "audio_to_video": 0.05})


def _smoke(config: ConfigDict) -> None:
    config.data.train_clips, config.data.test_clips, config.data.shards = 16, 8, 1
    config.data.frames = 32
    config.model.width, config.model.layers, config.model.hidden = 64, 2, 128
    config.model.heads, config.model.head_dim = 2, 32
    config.model.video_rank, config.model.audio_rank = 64, 32
    for stage, steps in ((config.train, 10), (config.distill, 4)):
        stage.steps = stage.optimizer.total_steps = steps
        stage.optimizer.warmup_steps = 2
        stage.log_every, stage.checkpoint.every_steps = 2, 10
    config.distill.objective.tangent_warmup = 2
    config.stream.seconds = 3.0
    config.evaluate.clips, config.evaluate.context_chunks, config.evaluate.frames = 2, 4, 16
