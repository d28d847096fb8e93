"""What selection finds and what it loses, on a trained dense model and held-out rows.

    python benchmarks/recall.py --config=configs/quickstart.py --workdir=runs/quickstart

The work directory holds the data and the checkpoints of the stage `train`. For each layer and number of chosen blocks:

* recall, the share of the selectable blocks' true attention mass that the chosen ones hold, by pooled queries and keys
  after and before rotation, and by the true mass itself (the oracle);
* the relative error of attention's output under: the chosen blocks alone (top-K); the rest as pseudo-tokens (tail); a
  gated coarse attention added (after VSA, arXiv 2505.13389); a projected linear attention over the rest added (after
  SLA, arXiv 2509.24006). Gates and projections are fitted by least squares to half of the rows; errors are of the rest;
* the held-out loss of the model as it is, with no training under a budget, with the tail and without.

Writes WORKDIR/recall.json and WORKDIR/recall.png.
"""

import json
from collections.abc import Callable, Sequence
from unittest import mock

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import sparsity
from ml_collections import ConfigDict

from data_pipelines.loader import row_source
from data_pipelines.row_layout import Role
from data_pipelines.shards import Dataset, open_dataset
from pixr1_jax.attention import select
from pixr1_jax.attention.blocks import Tail, visible
from pixr1_jax.attention.reference import token_mask
from pixr1_jax.core import cli_errors
from pixr1_jax.core import config as config_lib
from pixr1_jax.core.tree import named_leaves
from pixr1_jax.objectives.pretrain import Pretrain, noised
from pixr1_jax.omni import layers as nn
from pixr1_jax.omni import rope, tokens
from pixr1_jax.omni.model import Omni
from pixr1_jax.omni.tokens import Cells, Layout
from pixr1_jax.training import setup
from pixr1_jax.training.checkpoint import load_params

_ROWS = 8
_SHARES = (0.0, 0.125, 0.25, 0.5, 0.75)
_TRIED = (0.0, 0.25, 0.5)  # shares at which the loss is measured


def attention_inputs(model: Omni, objective: Pretrain, batch, seen, layout: Layout):
    """Queries and keys before rotation, values, and angles of every layer of a dense pass over a batch."""
    config = objective.model
    scene = noised(config, objective.sampling, batch, 1234, jnp.int32(10**6))
    cells = Cells(scene.draw.time, scene.draw.time, jnp.ones_like(scene.draw.time[..., 0]), scene.draw.context)
    looks, _ = tokens.look_back(model, config, scene.context, batch, scene.draw.drop)
    signals = {Role.CLEAN: scene.context, Role.NOISY: scene.noisy}
    x = tokens.embed(model, config, layout, batch, signals, looks, scene.draw.drop)
    modulation = tokens.modulation(model, config, layout, cells, batch["actions"], scene.draw.drop)
    angles = rope.angles(layout.position, config.head_dim)
    found = []
    for i in range(config.layers):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], model.layers)
        parts = jnp.split(modulation + layer.modulation[...], 6, axis=-1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        q, k, v = layer.qkv_heads(nn.rms_norm(x) * (1 + scale_a) + shift_a, config.heads)
        found.append((q, k, v))
        probability = softmax(scores(rope.rotate(q, angles), rope.rotate(k, angles)), tokens_read(seen, layout))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", probability, v)
        x = x + gate_a * nn.dot(mixed.reshape(*x.shape[:2], -1), layer.out)
        x = x + gate_m * layer.mlp(nn.rms_norm(x) * (1 + scale_m) + shift_m)
    return found, angles


def tokens_read(reads: jax.Array, layout: Layout) -> jax.Array:
    """Block relation [batch, (heads,) blocks, blocks] as a token mask [batch, heads or 1, tokens, tokens]."""
    block = layout.kind.shape[1] // layout.blocks.count
    return token_mask(reads if reads.ndim == 4 else reads[:, None], layout.blocks.valid, block)


def scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """Scaled scores [batch, heads, queries, keys]."""
    return jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5


def softmax(scores: jax.Array, weight: jax.Array) -> jax.Array:
    """Softmax in which every key counts `weight` times; zeros where nothing counts."""
    peak = jnp.max(scores, axis=-1, keepdims=True, where=weight > 0, initial=-1e30)
    shares = jnp.where(weight > 0, weight * jnp.exp(jnp.minimum(scores - peak, 0.0)), 0.0)
    return shares / jnp.maximum(shares.sum(axis=-1, keepdims=True), 1e-30)


def by_oracle(mass: jax.Array, free: jax.Array, keep: int) -> jax.Array:
    """The free blocks of most true mass."""
    order = jnp.argsort(jnp.argsort(-jnp.where(free[:, None], mass, -1.0), axis=-1), axis=-1)
    return free[:, None] & (order < keep)


def measure(q, k, v, angles, options: select.Candidates, layout: Layout, keep: int) -> dict[str, float]:
    """Recall and output errors of one layer."""
    block = layout.kind.shape[1] // layout.blocks.count
    valid = layout.blocks.valid
    turned_q, turned_k = rope.rotate(q, angles), rope.rotate(k, angles)
    free, always = options.free[:, None], options.always[:, None]
    dense = softmax(scores(turned_q, turned_k), tokens_read(options.free | options.always, layout))
    rows, heads, length, _ = dense.shape
    # Mean over a block's queries of the mass that each key block receives.
    mass = dense.reshape(rows, heads, length // block, block, -1, block).sum(-1)
    real = (jnp.arange(block) < valid[..., None])[:, None, ..., None]
    mass = (mass * real).sum(3) / jnp.maximum(valid, 1)[:, None, :, None]
    counted = jnp.full(options.keep.shape[1:], keep)

    def chosen(a, b):
        return select.choose(select.pool(a, valid, block), select.pool(b, valid, block), options, counted) & free

    picks = {"after rotation": chosen(turned_q, turned_k), "before rotation": chosen(q, k)}
    picks["oracle"] = by_oracle(mass, options.free, keep)
    out = {f"recall, {name}": (mass * pick).sum() / (mass * free).sum() for name, pick in picks.items()}
    out["free mass"] = (mass * free).sum() / mass.sum()
    out["density"] = picks["oracle"].sum() / (free.sum() * heads)

    exact = jnp.einsum("bhqk,bkhd->bqhd", dense, v)
    means = [select.pool(x, valid, block) for x in (turned_k, v)]
    alive = jnp.arange(length) % block < jnp.repeat(valid, block, axis=1)

    def sparse(pick, tail: bool):
        mask = tokens_read(pick | always, layout)
        rest = jnp.where(free & ~pick, valid[:, None, None].astype(jnp.float32), 0.0) * tail
        both = jnp.concatenate([scores(turned_q, turned_k), scores(turned_q, means[0])], axis=-1)
        weight = jnp.concatenate([mask, jnp.repeat(rest, block, axis=2)], axis=-1)
        return jnp.einsum("bhqk,bkhd->bqhd", softmax(both, weight), jnp.concatenate([v, means[1]], axis=1))

    def error(value):
        """Relative error over the second half of the rows."""
        half = slice(rows // 2, None)
        gap = jnp.where(alive[..., None, None], value - exact, 0.0)[half]
        return jnp.sqrt(jnp.square(gap).sum() / jnp.square(jnp.where(alive[..., None, None], exact, 0.0)[half]).sum())

    pick = picks["after rotation"]
    plain = sparse(pick, False)
    for name, which in (("", pick), ("oracle ", picks["oracle"])):
        out[f"error, {name}top-K"], out[f"error, {name}tail"] = error(sparse(which, False)), error(sparse(which, True))

    def fitted(target, x):
        """Best linear combination per head, fitted on the first half of the rows."""
        half = slice(0, rows // 2)
        at = lambda y: jnp.where(alive[..., None, None], y, 0.0)[half].reshape(-1, *y.shape[2:])
        gram = jnp.einsum("nhi,nhj->hij", at(x), at(x))
        gram += 0.1 * jnp.trace(gram, axis1=1, axis2=2)[:, None, None] / x.shape[-1] * jnp.eye(x.shape[-1])
        cross = jnp.einsum("nhi,nhj->hij", at(x), at(target))
        return jnp.einsum("bqhi,hij->bqhj", x, jnp.linalg.solve(gram, cross))

    query_means = select.pool(turned_q, valid, block)
    coarse = softmax(scores(query_means, means[0]), options.free[:, None] | always)
    coarse = jnp.repeat(jnp.einsum("bhqk,bkhd->bqhd", coarse, means[1]), block, axis=1)
    gate = jnp.where(alive[..., None, None], coarse, 0.0)
    head = slice(0, rows // 2)
    strength = ((exact - plain) * gate)[head].sum((0, 1)) / jnp.square(gate[head]).sum((0, 1))  # [heads, dim]
    out["error, gated coarse"] = error(plain + strength * gate)
    feature_q, feature_k = (jax.nn.softmax(x, axis=-1) for x in (turned_q, turned_k))
    left = tokens_read(free & ~pick, layout)
    linear = jnp.where(left, jnp.einsum("bqhd,bkhd->bhqk", feature_q, feature_k), 0.0)
    linear = linear / jnp.maximum(linear.sum(-1, keepdims=True), 1e-9)
    linear = jnp.einsum("bhqk,bkhd->bqhd", linear, v)
    out["error, linear branch"] = error(plain + fitted(exact - plain, linear))
    return out


def untrained_losses(config: ConfigDict, dataset: Dataset, model: Omni, keeps: dict[float, int]) -> dict[str, float]:
    """Held-out loss of the dense model under budgets that it was not trained with."""

    def plain(*args, **rest):
        lists, tail = chosen(*args, **rest)
        return lists, Tail(tail.key, tail.value, jnp.zeros_like(tail.weight))

    chosen: Callable = select.select
    out = {"dense": sparsity.validation(config, dataset, model, sparsity.jitted(config, dataset)[1], draws=1)}
    for share in _TRIED:
        keep = keeps[share]
        budgeted = sparsity.with_budget(config, keep, 0)
        for name, function in (("tail", chosen), ("top-K", plain)):
            with mock.patch.object(select, "select", function):
                judge = sparsity.jitted(budgeted, dataset)[1]
                out[f"{share}, {name}"] = sparsity.validation(budgeted, dataset, model, judge, draws=1)
    return out


def draw(table: list[dict], path) -> None:
    """Recall against density, by layer, and output error against density."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
    for layer in sorted({row["layer"] for row in table}):
        rows = [row for row in table if row["layer"] == layer]
        x = [row["density"] for row in rows]
        line = left.plot(x, [row["recall, after rotation"] for row in rows], "o-", label=f"layer {layer}")
        left.plot(x, [row["recall, oracle"] for row in rows], ":", color=line[0].get_color())
    left.plot([0, 1], [0, 1], color="0.8", zorder=0)
    left.set(xlabel="share of selectable blocks read", ylabel="recall of attention mass", ylim=(0, 1.02))
    left.legend(frameon=False, title="dotted: oracle")
    shares = sorted({row["share"] for row in table})
    for name in ("top-K", "tail", "gated coarse", "linear branch", "oracle top-K"):
        mean = lambda key, share: np.mean([row[key] for row in table if row["share"] == share])
        x, y = ([mean(key, share) for share in shares] for key in ("density", f"error, {name}"))
        right.plot(x, y, "o-", label=name)
    right.set(xlabel="share of selectable blocks read", ylabel="relative error of the output", ylim=(0, None))
    right.legend(frameon=False)
    figure.savefig(path, dpi=100)


def main(argv: Sequence[str]) -> None:
    """Measures all layers."""
    del argv
    config, workdir = config_lib.flag_config(), config_lib.flag_workdir()
    dataset = open_dataset(setup.shards_directory(workdir))
    plan = setup.pack_plan(config, dataset, "test")
    objective = setup.objective(config, "train", plan)
    assert isinstance(objective, Pretrain)
    sizes = objective.model
    template = jax.eval_shape(lambda: Omni(sizes, jax.random.key(0)))
    model = load_params(setup.checkpoint_directory(workdir, "train"), template)
    source = row_source(dataset, plan, sizes.tokens)
    rows = [source[i] for i in range(_ROWS)]
    batch = {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}
    layout = Layout.of(batch)
    seen = visible(layout.blocks, layout.blocks, sizes.memory)
    budget = setup.model_config(sparsity.with_budget(config, 0, 0)).attention.budget
    assert budget is not None
    options = select.candidates(layout.blocks, layout.blocks, seen, sizes.memory, budget, layers=1)
    free = np.asarray(options.free.sum(-1))
    options = select.Candidates(**(vars(options) | {"most": int(free.max())}))
    found, angles = jax.jit(lambda: attention_inputs(model, objective, batch, seen, layout))()
    keeps = {
        share: next(n for n in range(free.max() + 1) if np.minimum(n, free).sum() >= share * free.sum())
        for share in _SHARES
    }
    run = jax.jit(measure, static_argnames="keep")
    table = []
    for share, keep in keeps.items():
        for layer, (q, k, v) in enumerate(found):
            values = {name: float(x) for name, x in run(q, k, v, angles, options, layout, keep=keep).items()}
            table.append({"share": share, "keep": keep, "layer": layer} | values)
    report = {"jax": jax.__version__, "parameters": sum(x.size for x in named_leaves(model).values()), "layers": table}
    path = workdir / "recall.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    draw(table, workdir / "recall.png")
    report["loss without training under the budget"] = untrained_losses(config, dataset, model, keeps)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report["loss without training under the budget"], indent=2))


if __name__ == "__main__":
    config_lib.define_flags()
    cli_errors.run(main)
