"""What a budget costs in validation loss: the quickstart trained at several densities.

    python benchmarks/sparsity.py --config=configs/quickstart.py --workdir=runs/sparsity

Density is the share of the selectable blocks that is read in full, over all queries; what is always read is read at
every density. All runs of a seed see the same batches and noise; all runs are judged by the averaged model on the same
held-out rows under the same noise. Writes WORKDIR/sparsity.json after every run, and continues from it.
"""

import json
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from data_pipelines.loader import make_iterator, row_source
from data_pipelines.shards import Dataset, open_dataset
from pixr1_jax.attention import select
from pixr1_jax.attention.blocks import Blocks, visible
from pixr1_jax.core import cli_errors
from pixr1_jax.core import config as config_lib
from pixr1_jax.data import build_data
from pixr1_jax.omni.model import Omni
from pixr1_jax.training import setup
from pixr1_jax.training.optimizer import make_optimizer
from pixr1_jax.training.state import initial_state, train_step

_DENSITIES = flags.DEFINE_list("densities", ["1", "0.5", "0.25"], "Shares of the selectable blocks.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of model and noise.")
_STEPS = flags.DEFINE_integer("steps", 1700, "Steps of each run.")
_DRAWS = 4  # noise draws of each held-out row


def blocks_of_queries(config: ConfigDict, rows: list[dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """How many blocks every query block of the rows always reads, and how many it may choose from."""
    sizes = setup.model_config(with_budget(config, 0, 0))
    budget = sizes.attention.budget
    assert budget is not None
    always, free = [], []
    for row in rows:
        blocks = Blocks.of({name: jnp.asarray(row[name])[None] for name in row if name.startswith("block_")})
        seen = visible(blocks, blocks, sizes.memory)
        found = select.candidates(blocks, blocks, seen, sizes.memory, budget, layers=1)
        real = np.asarray(blocks.valid) > 0
        always.append(np.asarray(found.always.sum(-1))[real])
        free.append(np.asarray(found.free.sum(-1))[real])
    return np.concatenate(always), np.concatenate(free)


def with_budget(config: ConfigDict, keep: int, ramp_steps: int) -> ConfigDict:
    """The config with a budget of `keep` blocks."""
    config = ConfigDict(config.to_dict())
    with config.unlocked(), config.ignore_type():
        config.model.attention.budget = ConfigDict(
            {"clean": (keep,), "noisy": (keep,), "early": (), "group": 1, "ramp_steps": ramp_steps}
        )
    return config


def jitted(config: ConfigDict, dataset: Dataset):
    """The training step and the held-out loss of a config, compiled once for all seeds."""
    objective = setup.objective(config, "train", setup.pack_plan(config, dataset))
    tx = make_optimizer(config.train.optimizer)

    @jax.jit
    def update(state, batch, seed):
        return train_step(state, None, batch, loss=objective.loss, tx=tx, seed=seed, ema_decay=config.train.ema_decay)

    # Another step and another seed than any in training.
    judge = jax.jit(lambda model, batch, draw: objective.loss(model, None, batch, 1234, 10**6 + draw)[1])
    return update, judge


def train(config: ConfigDict, dataset: Dataset, seed: int, update, judge) -> dict[str, float]:
    """Trains one model and judges it."""
    config = ConfigDict(config.to_dict())
    config.seed = seed
    plan, sizes = setup.pack_plan(config, dataset), setup.model_config(config)
    model = setup.initial_model(sizes, dataset, plan, seed)
    state = jax.jit(lambda model: initial_state(model, make_optimizer(config.train.optimizer)))(model)
    batches = make_iterator(dataset, plan, batch_size=config.pack.batch_rows, threads=1, prefetch=4)
    seconds, losses = [], []
    for _ in range(config.train.steps):
        batch = next(batches)
        start = time.perf_counter()
        state, metrics = update(state, batch, jnp.uint32(seed))
        losses.append(float(metrics["loss"]))
        seconds.append(time.perf_counter() - start)
    return {
        "validation_loss": validation(config, dataset, state.ema, judge),
        "train_loss": float(np.mean(losses[-50:])),
        "step_seconds_median": float(np.median(seconds)),
    }


def validation(config: ConfigDict, dataset: Dataset, model: Omni, judge, draws: int = _DRAWS) -> float:
    """Loss on held-out rows, the same rows and noise for every model."""
    config = ConfigDict(config.to_dict())
    config.seed = 0
    plan = setup.pack_plan(config, dataset, "test")
    source, size = row_source(dataset, plan, setup.model_config(config).tokens), config.pack.batch_rows
    found = []
    for first in range(0, plan.rows_per_epoch - size + 1, size):
        rows = [source[i] for i in range(first, first + size)]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        found += [judge(model, batch, jnp.int32(draw)) for draw in range(draws)]
    weight = config.train.objective.audio_weight
    return float(np.mean([x["loss/video"] + weight * x["loss/audio"] for x in found]))


def summary(runs: list[dict]) -> list[dict]:
    """By density: mean loss, and its change against density 1 of the same seeds."""
    dense = {run["seed"]: run for run in runs if run["density"] == 1}
    table = []
    for density in sorted({run["density"] for run in runs}, reverse=True):
        mine = [run for run in runs if run["density"] == density and run["seed"] in dense]
        if not mine:
            continue
        change = [run["validation_loss"] / dense[run["seed"]]["validation_loss"] - 1 for run in mine]
        table.append(
            {
                "density": density,
                "keep": mine[0]["keep"],
                "seeds": [run["seed"] for run in mine],
                "validation_loss": float(np.mean([run["validation_loss"] for run in mine])),
                "change": float(np.mean(change)),
                "change_by_seed": change,
                "read_per_query": mine[0]["read_per_query"],
                "step_seconds_median": float(np.median([run["step_seconds_median"] for run in mine])),
            }
        )
    return table


def main(argv: Sequence[str]) -> None:
    """Trains what is not yet in the results."""
    del argv
    config, workdir = config_lib.flag_config(), config_lib.flag_workdir()
    workdir.mkdir(parents=True, exist_ok=True)
    steps = _STEPS.value
    config.train.steps = config.train.optimizer.total_steps = steps
    config.train.optimizer.warmup_steps = min(config.train.optimizer.warmup_steps, steps // 5)
    build_data(config, setup.shards_directory(workdir))
    dataset = open_dataset(setup.shards_directory(workdir))
    source = row_source(dataset, setup.pack_plan(config, dataset), setup.model_config(config).tokens)
    always, free = blocks_of_queries(config, [source[i] for i in range(8)])
    path = workdir / "sparsity.json"
    report = json.loads(path.read_text()) if path.exists() else {"runs": []}
    report["setting"] = {
        "steps": steps,
        "jax": jax.__version__,
        "always_read_mean": float(always.mean()),
        "selectable_mean": float(free.mean()),
        "selectable_most": int(free.max()),
    }
    steps_of = {}
    done = {(run["density"], run["seed"]) for run in report["runs"]}
    for seed in map(int, _SEEDS.value):
        for density in map(float, _DENSITIES.value):
            if (density, seed) in done:
                continue
            keep = next(n for n in range(free.max() + 1) if np.minimum(n, free).sum() >= density * free.sum())
            chosen = config if density == 1 else with_budget(config, keep, steps // 4)
            if density not in steps_of:
                steps_of[density] = jitted(chosen, dataset)
            result = {"density": density, "seed": seed, "keep": keep} | train(chosen, dataset, seed, *steps_of[density])
            result["read_per_query"] = float((always + np.minimum(keep, free)).mean())
            report["runs"].append(result)
            report["table"] = summary(report["runs"])
            path.write_text(json.dumps(report, indent=2) + "\n")
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    config_lib.define_flags()
    cli_errors.run(main)
