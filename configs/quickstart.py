"""The whole system in minutes on two CPU cores: a small world with sound, learnt, folded to 1-4 steps, dreamt.

    ./quickstart                                   # this config, end to end
    pixr1 quickstart --config=configs/quickstart.py:smoke --workdir=/tmp/smoke

`smoke` is the same way in about two minutes, too short to learn anything. `sparse` reads half of what may be chosen in
full (docs/benchmarks.md, Adaptive selection). `live` plays the clips of training while they are read: none comes twice.
"""

from ml_collections import ConfigDict

from launch.sweeps import Change, product, values


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; `variant` is "", "smoke", "sparse" or "live"."""
    config = ConfigDict()
    config.seed = 0
    config.compilation_cache = ""  # a folder or bucket that keeps compiled programs

    config.data = ConfigDict()
    config.data.source = "playground"
    config.data.train_clips = 768
    config.data.test_clips = 24
    config.data.frames = 96
    config.data.seed = 0
    config.data.shards = 4
    config.data.video_codec = "zstd"
    config.data.playground = ConfigDict()
    config.data.playground.height = 32
    config.data.playground.width = 48
    config.data.playground.frame_rate = 12
    config.data.playground.sample_rate = 6000
    config.data.playground.policy = "mixed"

    config.tokens = ConfigDict()
    config.tokens.patch = 8
    config.tokens.chunk_frames = 2
    config.tokens.block = 8
    config.tokens.hop = 125
    config.tokens.hops = 8
    config.tokens.audio_tokens = 4
    config.tokens.channels = 2
    config.tokens.action_dim = 3
    config.tokens.text_bytes = 16

    config.memory = ConfigDict()
    config.memory.window = 4
    config.memory.sinks = 1
    config.memory.bank = 16
    config.memory.horizon = 16

    config.model = ConfigDict()
    config.model.width = 160
    config.model.layers = 4
    config.model.heads = 2
    config.model.head_dim = 80
    config.model.hidden = 432
    config.model.video_rank = 96
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
    config.pack.batch_rows = 4
    config.pack.threads = 2
    config.pack.prefetch = 8
    config.pack.max_bad = 0.01

    config.train = _stage(steps=1700, learning_rate=2e-3, warmup=50)
    config.train.objective = ConfigDict()
    config.train.objective.time_floor = 0.5
    config.train.objective.audio_weight = 0.3
    _sampling(config.train.objective, drop=0.1)

    config.distill = _stage(steps=160, learning_rate=3e-4, warmup=20)
    config.distill.objective = ConfigDict()
    config.distill.objective.time_floor = 0.5
    config.distill.objective.audio_weight = 0.3
    config.distill.objective.softening = 0.02
    config.distill.objective.to_clean = 0.25
    config.distill.objective.to_same = 0.5
    config.distill.objective.max_guidance = 1.5
    config.distill.objective.tangent_warmup = 100
    _sampling(config.distill.objective, drop=0.0)

    config.export = ConfigDict()
    config.export.steps = (1, 2, 4)
    config.export.platforms = ("cpu",)
    config.export.size = (32, 48)

    config.stream = ConfigDict()
    config.stream.script = "configs/scripts/playground.txt"
    config.stream.seconds = 20.0
    config.stream.steps = 2
    config.stream.guidance = 1.0
    config.stream.seed = 0
    config.stream.clip = 0
    config.stream.context_seconds = 1.0

    config.evaluate = ConfigDict()
    config.evaluate.clips = 16
    config.evaluate.context_chunks = 6
    config.evaluate.frames = 64
    config.evaluate.steps = (1, 2, 4)
    config.evaluate.guidance = 1.0
    config.evaluate.seed = 0

    if variant == "smoke":
        _smoke(config)
    elif variant == "sparse":
        config.model.attention.budget = ConfigDict()
        config.model.attention.budget.clean = (7,)
        config.model.attention.budget.noisy = (7,)
        config.model.attention.budget.early = ()
        config.model.attention.budget.group = 1
        config.model.attention.budget.ramp_steps = 400
    elif variant == "live":
        config.data.live = True
    elif variant:
        raise ValueError(f"configs/quickstart.py has no variant {variant!r}; use 'smoke', 'sparse', 'live' or none")
    return config


def sweep() -> list[Change]:
    """Six trials, for `pixr1 sweep` on the variant `smoke` (docs/recipes.md)."""
    return product(values("train.optimizer.learning_rate", 3e-4, 1e-3, 3e-3), values("model.width", 32, 128))


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
    return stage


def _sampling(objective: ConfigDict, drop: float) -> None:
    objective.mean = 2.0
    objective.deviation = 1.2
    objective.pure_noise = 0.3
    objective.drop = drop
    objective.drift = 0.07
    objective.tasks = ConfigDict({"joint": 0.8, "independent": 0.1, "video_to_audio": 0.05, "audio_to_video": 0.05})


def _smoke(config: ConfigDict) -> None:
    config.data.train_clips, config.data.test_clips, config.data.shards = 16, 4, 1
    config.data.frames = 32
    config.model.width, config.model.layers, config.model.hidden = 64, 2, 128
    config.model.heads, config.model.head_dim = 2, 32
    for stage, steps in ((config.train, 20), (config.distill, 6)):
        stage.steps = stage.optimizer.total_steps = steps
        stage.optimizer.warmup_steps = 2
        stage.log_every, stage.checkpoint.every_steps = 2, 10
    config.distill.objective.tangent_warmup = 2
    config.stream.seconds = 3.0
    config.evaluate.clips, config.evaluate.context_chunks, config.evaluate.frames = 2, 4, 16
