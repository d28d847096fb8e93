"""The training loop, for every stage: one function, read from top to bottom.

The order within a step matters. A checkpoint is taken before the next batch is drawn, so that the
saved data position is that of the next step; metrics are written after the step that they describe. A run
that is killed and started again therefore continues the same sequence of losses, bit for bit.
"""

import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from data_pipelines.loader import make_iterator
from pixr1_jax.core.compilation import keep_compiled
from pixr1_jax.core.config import freeze, save_config
from pixr1_jax.core.progress import track
from pixr1_jax.omni.model import Omni
from pixr1_jax.training import setup
from pixr1_jax.training.checkpoint import Checkpoints, finished_steps, load_params
from pixr1_jax.training.checkpoint_policy import CheckpointPolicy
from pixr1_jax.training.flops import StepFlops
from pixr1_jax.training.goodput import Goodput
from pixr1_jax.training.metrics import MetricWriter
from pixr1_jax.training.optimizer import learning_rate, make_optimizer
from pixr1_jax.training.profile import Profiler, Steps
from pixr1_jax.training.signals import stop_on_signal
from pixr1_jax.training.state import TrainState, initial_state, jitted_step
from pixr1_jax.training.throughput import Throughput, device_memory, work_of
from pixr1_jax.training.wandb_board import open_board
from pixr1_jax.training.watchdog import Watchdog


class TrainingError(ValueError):
    """Training cannot go on; the message says why and what to change."""


def run(config: ConfigDict, stage: str, workdir: pathlib.Path, profile: Steps | None = None) -> TrainState:
    """Runs a stage to its last step, or continues it from its newest checkpoint.

    Args:
      config: The experiment.
      stage: "train", or "distill", whose teacher is the averaged model of "train".
      workdir: Holds `shards/`, and receives `STAGE/checkpoints/`, `STAGE/metrics.jsonl`, `STAGE/goodput.jsonl` and
        event files.
      profile: Steps of which a trace goes to `STAGE/profile/`.

    Returns:
      The last state. After SIGTERM it is the state that was saved, short of `config.STAGE.steps`.

    Raises:
      TrainingError: Too many steps in a row were not finite.
      ValueError: The config, the data or a checkpoint does not fit; the message says how.
    """
    section = config[stage]
    keep_compiled(config.get("compilation_cache"))
    directory = workdir / stage
    directory.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        save_config(config, directory / "config.json")
    ledger = Goodput(directory)
    board = open_board(config, stage, directory)

    ###########################################################################
    # Mesh: where everything lies.

    partition = setup.partition(config)
    batch_size = config.pack.batch_rows
    parts = partition.size("batch") * section.accumulate
    if batch_size % parts:
        raise TrainingError(
            f"pack.batch_rows={batch_size} must be a multiple of {parts}: {partition.size('batch')} parts on the mesh, "
            f"each in {stage}.accumulate={section.accumulate} parts"
        )

    ###########################################################################
    # Data.

    data = setup.open_data(config, workdir)
    plan = setup.pack_plan(config, data)
    batches = make_iterator(
        data,
        plan,
        batch_size=batch_size,
        threads=config.pack.threads,
        prefetch=config.pack.prefetch,
        max_bad=config.pack.max_bad,
        rows=partition.own_rows(batch_size),
    )

    ###########################################################################
    # Model, objective, optimizer.

    sizes = setup.model_config(config)
    objective = setup.objective(config, stage, plan, partition)
    tx = make_optimizer(section.optimizer)
    rate = learning_rate(section.optimizer)
    template = jax.eval_shape(lambda: Omni(sizes, jax.random.key(0)))
    teacher = None
    if stage == "distill":
        teacher = load_params(setup.checkpoint_directory(workdir, "train"), partition.abstract(template))
    abstract = partition.abstract(jax.eval_shape(lambda params: initial_state(params, tx), template))
    where = jax.tree.map(lambda x: x.sharding, abstract)
    numbers = {"seed": config.seed, "ema_decay": section.ema_decay, "accumulate": section.accumulate}
    update = jitted_step(objective, tx, abstract, **numbers)

    ###########################################################################
    # State: the newest checkpoint, or a beginning.

    policy = freeze(CheckpointPolicy, section.checkpoint, f"config.{stage}.checkpoint")
    checkpoints = Checkpoints(setup.checkpoint_directory(workdir, stage), policy)
    if checkpoints.latest_step() is None:
        first = setup.initial_model(sizes, data, plan, config.seed, partition) if teacher is None else teacher
        # Buffers of its own: the step donates the state, the teacher must outlive it.
        state = jax.jit(lambda params: initial_state(jax.tree.map(jnp.copy, params), tx), out_shardings=where)(first)
    else:
        state = checkpoints.restore(abstract, batches)
    step = int(state.step)
    _describe(stage, state, plan, step, section.steps)

    ###########################################################################
    # The loop.

    ledger.resume(step)
    ledger.write(step)
    profiler = Profiler(directory, profile, done=step, last=section.steps)
    writer = MetricWriter(directory, first_step=step + 1 if step else 0, board=board)
    throughput = Throughput(work_of(plan, batch_size), jax.devices())
    flops = StepFlops(objective, plan.row_spec, batch_size)
    watchdog = Watchdog(section.max_step_seconds, section.max_first_step_seconds)
    bar = track(section.steps - step, stage, shown=jax.process_index() == 0)
    first_step, pending, shown = step + 1, None, {}

    def begin(span: str, what: str, first: bool = False) -> None:
        ledger.enter(span)
        watchdog.at(f"{stage}: {what}", first=first)

    with stop_on_signal() as stop, watchdog, bar as progress:
        while step < section.steps and not stop.requested_anywhere(step):
            begin("save", f"saving step {step}")
            checkpoints.save(step, state, batches)  # before the next batch is drawn
            profiler.before(step + 1, pending)
            begin("data_wait", f"reading the batch of step {step + 1}")
            batch = next(batches)
            step += 1
            compiles = step == first_step
            begin("compile" if compiles else "step", f"step {step}", first=compiles)
            batch = partition.global_batch(batch, batch_size)
            state, metrics = update(state, teacher, batch)
            ledger.enter("step")
            # One step is waited for while the next is queued: the device never idles, and the host never runs ahead.
            jax.block_until_ready(pending)
            pending = metrics["loss"]
            throughput.step(compiled=compiles)
            if step % section.log_every == 0 or step == section.steps:
                values = {f"{stage}/{name}": float(value) for name, value in jax.device_get(metrics).items()}
                ledger.enter("idle")
                values[f"{stage}/learning_rate"] = float(rate(step - 1))
                values |= throughput.read(ledger.write(step), flops(batch, step - 1))
                values |= device_memory(jax.local_devices()) | {"goodput/share": ledger.account.goodput}
                writer.write(step, values)
                checkpoints.note(values)
                _check_finite(int(values[f"{stage}/skipped_in_a_row"]), section.max_skipped)
                shown = {"loss": values[f"{stage}/loss"]}
            progress.advance(1, **shown)
    profiler.stop(pending)
    ledger.enter("save")
    checkpoints.save(step, state, batches, force=True)
    checkpoints.close()
    writer.close()
    ledger.close(step, finished=step >= section.steps)
    if not jax.process_index():
        print(f"{stage}: {ledger.account.table()}")
    return state


def finished(config: ConfigDict, stage: str, workdir: pathlib.Path) -> bool:
    """Whether a stage has been trained to its last step."""
    steps = finished_steps(setup.checkpoint_directory(workdir, stage))
    return bool(steps) and steps[-1] >= config[stage].steps


def _check_finite(skipped: int, most: int) -> None:
    if skipped >= most:
        raise TrainingError(
            f"{skipped} steps in a row had a loss or gradient that is not finite (max_skipped={most}); "
            "lower optimizer.learning_rate or optimizer.clip_norm"
        )


def _describe(stage: str, state: TrainState, plan, step: int, steps: int) -> None:
    if jax.process_index():
        return
    count = sum(value.size for value in jax.tree.leaves(state.params))
    fill = plan.efficiency()
    print(
        f"{stage}: {count / 1e6:.2f} M parameters, step {step} of {steps}, {plan.rows_per_epoch} rows an epoch, "
        f"packing {fill.tokens:.1%} of tokens and {fill.blocks:.1%} of blocks, {jax.device_count()} devices"
    )
    if plan.left_out:
        print(f"{stage}: {plan.left_out} clips are shorter than a chunk and left out")
