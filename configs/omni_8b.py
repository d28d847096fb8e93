"""Omni at 8 B parameters, native 1080p at 24 frames/s with stereo sound at 48 kHz, on 256 TPU chips.

    pixr1 plan --config=configs/omni_8b.py            # v5p:8x8x4, known to Google Cloud as v5p-512
    pixr1 plan --config=configs/omni_8b.py:v6e        # v6e:16x16
    pixr1 data build --config=configs/omni_8b.py --config.path=DIR --workdir=runs/omni_8b
    pixr1 train --config=configs/omni_8b.py --config.path=DIR --workdir=runs/omni_8b

and `distill`, `export` alike. DIR is a folder of videos of any size up to 1080p; nothing is cropped or resized. `v6e`
is the same experiment laid out for the other chip, `smoke` the same way with a tiny model on the playground in about
two minutes on a CPU. What a step costs: docs/benchmarks.md, Plans.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; `variant` is "" (v5p), "v6e" or "smoke", `config.path` the folder of videos."""
    config = ConfigDict()
    config.seed = 0
    config.compilation_cache = ""  # a folder or bucket that keeps compiled programs
    config.path = placeholder(str)

    config.data = ConfigDict()
    config.data.source = "videos"
    config.data.shards = 256
    config.data.video_codec = "h264_420"
    config.data.processes = 16
    config.data.patience = 600.0
    config.data.videos = ConfigDict()
    config.data.videos.path = config.get_ref("path")
    config.data.videos.test_share = 0.01

    # A chunk of 1080p is 27 x 48 = 1296 patches, in 11 blocks, 6 times a second; sound is 8000 samples of it.
    config.tokens = ConfigDict()
    config.tokens.patch = 40
    config.tokens.chunk_frames = 4
    config.tokens.block = 128
    config.tokens.hop = 250
    config.tokens.hops = 32
    config.tokens.audio_tokens = 16
    config.tokens.channels = 2
    config.tokens.action_dim = 8
    config.tokens.text_bytes = 256

    config.memory = ConfigDict()
    config.memory.window = 4
    config.memory.sinks = 1
    config.memory.bank = 64
    config.memory.horizon = 64

    config.model = ConfigDict()
    config.model.width = 4096
    config.model.layers = 40
    config.model.heads = 16
    config.model.head_dim = 256
    config.model.hidden = 10240
    config.model.video_rank = 512
    config.model.audio_rank = 256
    config.model.audio_scale = 4.0
    config.model.audio_power = 0.5
    config.model.context_time = 0.0
    config.model.max_context_time = 0.15
    config.model.dtype = "bfloat16"
    config.model.remat = "dots"
    config.model.attention = ConfigDict()
    config.model.attention.implementation = "auto"
    config.model.attention.tile = 4
    config.model.attention.budget = None

    # A row of 24 576 tokens: a window of 8 chunks of 1080p (1.3 s), or more and longer ones of smaller pictures.
    config.pack = ConfigDict()
    config.pack.window_chunks = 8
    config.pack.fill = True
    config.pack.picture = (1080, 1920)
    config.pack.row = ConfigDict()
    config.pack.row.chunks = 64
    config.pack.row.patches = 8 * 1296
    config.pack.row.text = 4096
    config.pack.row.clean_blocks = 7 * 13 + 5
    config.pack.row.noisy_blocks = 8 * 12
    config.pack.batch_rows = 256
    config.pack.threads = 32
    config.pack.prefetch = 8
    config.pack.max_bad = 0.01

    config.mesh = ConfigDict()
    config.mesh.slice, config.mesh.data, config.mesh.fsdp, config.mesh.context, config.mesh.tensor = 1, 1, -1, 2, 1
    config.mesh.context_parallel = "ulysses"

    config.plan = ConfigDict()
    config.plan.topology = "v5p:8x8x4"
    config.plan.num_slices = 1
    config.plan.max_hbm_gib = 90.0

    config.launch = ConfigDict()
    config.launch.bucket = ""  # gs://NAME, for checkpoints and compiled programs
    config.launch.image = ""  # built from launch/Dockerfile
    config.launch.max_restarts, config.launch.grace_seconds = 50, 120
    config.launch.namespace, config.launch.service_account = "default", ""
    config.launch.queue, config.launch.priority = "", ""
    config.launch.spot, config.launch.reservation = False, ""
    config.launch.project, config.launch.zone, config.launch.runtime = "", "", ""

    config.train = _stage(steps=300_000, learning_rate=1.5e-4, warmup=2000, accumulate=2)
    config.train.objective = ConfigDict()
    config.train.objective.time_floor = 0.5
    config.train.objective.audio_weight = 0.3
    _sampling(config.train.objective, drop=0.1)

    config.distill = _stage(steps=20_000, learning_rate=5e-5, warmup=500, accumulate=2)
    config.distill.objective = ConfigDict()
    config.distill.objective.time_floor = 0.5
    config.distill.objective.audio_weight = 0.3
    config.distill.objective.softening = 0.02
    config.distill.objective.to_clean = 0.25
    config.distill.objective.to_same = 0.5
    config.distill.objective.max_guidance = 1.5
    config.distill.objective.tangent_warmup = 4000
    _sampling(config.distill.objective, drop=0.0)

    config.export = ConfigDict()
    config.export.steps = (1, 2, 4)
    config.export.platforms = ("tpu", "cuda")
    config.export.size = (1080, 1920)

    config.stream = ConfigDict()
    config.stream.script = "configs/scripts/words.txt"
    config.stream.seconds = 20.0
    config.stream.steps = 2
    config.stream.guidance = 1.0
    config.stream.seed = 0
    config.stream.clip = 0
    config.stream.context_seconds = 1.0

    config.evaluate = ConfigDict()
    config.evaluate.clips = 64
    config.evaluate.context_chunks = 6
    config.evaluate.frames = 96
    config.evaluate.steps = (1, 2, 4)
    config.evaluate.guidance = 1.0
    config.evaluate.seed = 0

    if variant == "smoke":
        _smoke(config)
    elif variant == "v6e":
        # A third of the memory: attention's results are kept, the products computed again, and no chip shares its row.
        config.plan.topology = "v6e:16x16"
        config.plan.max_hbm_gib = 30.0
        config.model.remat = "mixed"
        config.mesh.context = 1
        config.train.accumulate = config.distill.accumulate = 1
    elif variant:
        raise ValueError(f"configs/omni_8b.py has no variant {variant!r}; use 'smoke', 'v6e' or none")
    return config


def _stage(steps: int, learning_rate: float, warmup: int, accumulate: int) -> ConfigDict:
    stage = ConfigDict()
    stage.steps = steps
    stage.log_every = 50
    stage.checkpoint = ConfigDict()
    stage.checkpoint.every_steps = 1000
    stage.checkpoint.keep = 3
    stage.max_step_seconds, stage.max_first_step_seconds = 900.0, 3600.0
    stage.max_skipped = 20
    stage.ema_decay = 0.9995
    stage.accumulate = accumulate
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
    config.data = ConfigDict()
    config.data.source = "playground"
    config.data.train_clips, config.data.test_clips, config.data.shards = 16, 4, 1
    config.data.frames = 32
    config.data.seed = 0
    config.data.video_codec = "zstd"
    config.data.playground = ConfigDict()
    config.data.playground.height, config.data.playground.width = 32, 48
    config.data.playground.frame_rate, config.data.playground.sample_rate = 12, 6000
    config.tokens.patch, config.tokens.chunk_frames, config.tokens.block, config.tokens.text_bytes = 8, 2, 8, 16
    config.tokens.hop, config.tokens.hops, config.tokens.audio_tokens = 125, 8, 4
    config.tokens.action_dim = 3
    config.memory.bank, config.memory.horizon = 16, 16
    config.model.width, config.model.layers, config.model.hidden = 64, 2, 128
    config.model.heads, config.model.head_dim = 2, 32
    config.model.video_rank, config.model.audio_rank = 96, 96
    config.model.dtype = "float32"
    config.model.attention.implementation, config.model.attention.tile = "reference", 1
    config.mesh.context = 1
    config.pack.window_chunks, config.pack.picture = 8, (32, 48)
    row = config.pack.row
    row.chunks, row.patches, row.text, row.clean_blocks, row.noisy_blocks = 8, 8 * 24, 64, 7 * 5 + 8, 8 * 4
    config.pack.batch_rows, config.pack.threads = 4, 2
    for stage, steps in ((config.train, 20), (config.distill, 6)):
        stage.steps = stage.optimizer.total_steps = steps
        stage.accumulate = 1
        stage.optimizer.warmup_steps = 2
        stage.log_every, stage.checkpoint.every_steps = 2, 10
    config.distill.objective.tangent_warmup = 2
    config.export.size, config.export.platforms = (32, 48), ("cpu",)
    config.stream.script, config.stream.seconds = "configs/scripts/playground.txt", 3.0
    config.evaluate.clips, config.evaluate.context_chunks, config.evaluate.frames = 2, 4, 16
