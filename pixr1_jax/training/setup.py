"""From a config to the objects of a run: model sizes, data, objective. Every verb that needs one builds it here."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data_pipelines import config as data_config
from data_pipelines import patches
from data_pipelines.cuts import PlanError
from data_pipelines.fill import Blocks
from data_pipelines.index import ClipInfo
from data_pipelines.live import LivePlan, LivePlayground
from data_pipelines.loader import Readers, row_source
from data_pipelines.mix import Mixture, Shares, mix
from data_pipelines.plan import PackPlan
from data_pipelines.row_layout import RowSpec, TokenSpec
from data_pipelines.shards import Dataset, open_dataset
from data_pipelines.split import split_blocks
from pixr1_jax.attention.blocks import MemoryPolicy
from pixr1_jax.core.config import ConfigError, freeze
from pixr1_jax.core.partition import MeshShape, Partition, Rules, make_mesh
from pixr1_jax.core.rng import Purpose, purpose_key
from pixr1_jax.objectives.flow_map import FlowMap
from pixr1_jax.objectives.pretrain import Pretrain
from pixr1_jax.objectives.tasks import TimeSampling
from pixr1_jax.omni import layers as nn
from pixr1_jax.omni import principal, tokens
from pixr1_jax.omni.model import Omni, OmniConfig

Rows = PackPlan | Mixture | LivePlan
_FITTED_PATCHES = 24 << 10  # patches of the plan's first rows that embeddings and forecast are fitted to, at least
_ROWS_FOR_SOUND = 16  # times as many rows are searched for sound where those have too little


def shards_directory(workdir: pathlib.Path) -> pathlib.Path:
    """Where a work directory keeps its dataset."""
    return workdir / "shards"


def checkpoint_directory(workdir: pathlib.Path, stage: str) -> pathlib.Path:
    """Where a stage ("train" or "distill") keeps its checkpoints."""
    return workdir / stage / "checkpoints"


def artifact_directory(workdir: pathlib.Path) -> pathlib.Path:
    """Where a work directory keeps its exported artifact."""
    return workdir / "artifact"


def model_config(config: ConfigDict) -> OmniConfig:
    """Sizes of the model, from the sections `tokens`, `memory` and `model`."""
    fields = dict(config.model)
    spec = freeze(TokenSpec, config.tokens, "tokens")
    policy = freeze(MemoryPolicy, config.memory, "memory")
    return freeze(OmniConfig, ConfigDict(fields), "model", tokens=spec, memory=policy)


def partition(config: ConfigDict, devices: Sequence[Any] | None = None) -> Partition:
    """The mesh of the section `mesh` over all devices, or over those given, and the rules.

    Raises:
      PartitionError: The mesh does not fit the devices.
    """
    section = freeze(_MeshSection, config.mesh, "mesh")
    return Partition(make_mesh(section, devices), Rules(), section.context_parallel)


@dataclasses.dataclass(frozen=True)
class _MeshSection(MeshShape):
    context_parallel: str


def open_data(config: ConfigDict, workdir: pathlib.Path) -> Dataset | LivePlayground | dict[str, Dataset]:
    """Opens the dataset of a run; of a mixture (section `data.mix`) all, by name.

    Raises:
      ShardError: A dataset is missing or damaged.
    """
    folder = shards_directory(workdir)
    if config.data.get("live"):
        data = freeze(data_config.DataConfig, config.data, "config.data")
        return data_config.live_playground(data, "config.data", open_dataset(folder))
    if "mix" not in config.data:
        return open_dataset(folder)
    return {name: open_dataset(part.get("directory") or folder / name) for name, part in config.data.mix.items()}


def shown_dataset(config: ConfigDict) -> str:
    """Name of the dataset of a mixture that is streamed, filmed and scored, `export.dataset`; "" without a mixture.

    Raises:
      ConfigError: A mixture without that field, or with an unknown name.
    """
    name, names = config.export.get("dataset"), tuple(config.data.get("mix", ()))
    if not names and name is not None:
        raise ConfigError(f"export.dataset is {name!r}, but there is one dataset alone; leave it out")
    if names and name not in names:
        found = "missing" if name is None else repr(name)
        raise ConfigError(
            f"export.dataset is {found}; name the dataset of data.mix whose clock and test clips are streamed and "
            f"scored, one of {', '.join(names)}"
        )
    return name or ""


def shown_directory(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
    """Where the dataset is that is streamed, filmed and scored; see `shown_dataset`."""
    name, folder = shown_dataset(config), shards_directory(workdir)
    return pathlib.Path(config.data.mix[name].get("directory") or folder / name) if name else folder


def pack_plan(
    config: ConfigDict, data: Dataset | LivePlayground | Mapping[str, Dataset], split: str = "train"
) -> PackPlan | Mixture | LivePlan:
    """The pack plan of the section `pack`; of several datasets a mixture in the shares `pack.shares`.

    Raises:
      PlanError: The clips do not fit the rows that the section gives.
    """
    spec = freeze(TokenSpec, config.tokens, "tokens")
    fixed = fixed_rows(config) if "row" in config.pack else None
    sizes = {
        "window_chunks": config.pack.window_chunks,
        "rows_windows": config.pack.get("windows_per_row", 1),
        "seed": config.seed,
    }
    blocks = _row_blocks(config)
    if isinstance(data, LivePlayground) and split == "train":
        return data.plan(spec, row=None if fixed is None else fixed.row_spec, **sizes)
    if isinstance(data, Mapping):
        clips = {name: dataset.clips(split) for name, dataset in data.items()}
        # The table of a dataset is that of its place, see `_tables`; 0 is of no dataset.
        tables = {name: number for number, name in enumerate(data, start=1)}
        return mix(clips, spec, _shares(config), row_blocks=blocks, tables=tables, **sizes)
    clips = data.clips(split)
    if fixed is not None:
        fixed.check(clips)
        return PackPlan(clips, spec, row=fixed.row_spec, fill=config.pack.fill, **sizes)
    if isinstance(blocks, int):
        blocks = split_blocks([clips], spec, config.pack.window_chunks, blocks)
    return PackPlan(clips, spec, row=blocks, **sizes)


def _row_blocks(config: ConfigDict) -> int | Blocks | None:
    """Blocks of a row that windows are cut to fill, of its halves where `pack.clean_blocks` gives one of them."""
    blocks, clean = config.pack.get("row_blocks"), config.pack.get("clean_blocks")
    if clean is None:
        return blocks
    if blocks is None or not 0 <= clean < blocks:
        raise ConfigError(f"pack.clean_blocks is {clean}; it is the clean part of pack.row_blocks, which is {blocks}")
    return Blocks(clean, blocks - clean)


@dataclasses.dataclass(frozen=True)
class FixedRows:
    """Rows whose shape the config gives, so that a step can be compiled before there is any data.

    Attributes:
      row_spec: Capacities.
      picture: Height and width of the largest picture.
      patch: Patch side.
    """

    row_spec: RowSpec
    picture: tuple[int, int]
    patch: int

    def check(self, infos: Sequence[ClipInfo]) -> None:
        """Raises PlanError where a clip has a larger picture."""
        most = math.prod(patches.grid_shape(*self.picture, self.patch))
        for info in infos:
            count = math.prod(patches.grid_shape(info.height, info.width, self.patch))
            if count > most:
                raise PlanError(
                    f"{info.episode}: a picture of {info.height}x{info.width} has {count} patches, and "
                    f"pack.picture={self.picture} {most}; raise pack.picture"
                )


def fixed_rows(config: ConfigDict) -> FixedRows:
    """The rows of `pack.row` and `pack.picture`.

    Raises:
      ConfigError: A field is missing or of the wrong type.
    """
    missing = [name for name in ("row", "picture") if name not in config.pack]
    if missing:
        raise ConfigError(
            f"pack.{missing[0]} is missing; the shape of a row must follow from the config here: give pack.row "
            f"({', '.join(field.name for field in dataclasses.fields(RowSpec))}) and pack.picture"
        )
    return FixedRows(freeze(RowSpec, config.pack.row, "pack.row"), tuple(config.pack.picture), config.tokens.patch)


def _shares(config: ConfigDict) -> list[Shares]:
    """The shares of `pack.shares`: sections of `from_row` and `weights` by dataset."""
    if "shares" not in config.pack:
        names = ", ".join(config.data.mix)
        raise ConfigError(
            f"pack.shares is missing; give ({{'from_row': 0, 'weights': {{...}}}},) with weights of {names}"
        )
    found = []
    for number, section in enumerate(config.pack.shares):
        given = freeze(_ShareSection, section, f"pack.shares[{number}]")
        found.append(Shares(given.from_row, tuple(given.weights.items())))
    return found


@dataclasses.dataclass(frozen=True)
class _ShareSection:
    from_row: int
    weights: Mapping[str, float]


def max_keys(config: OmniConfig, plan: Rows | FixedRows, window_chunks: int, ramped: bool) -> int:
    """The most key blocks that any block of the plan's rows can read in full, during the budget's ramp if `ramped`."""
    spec, policy = config.tokens, config.memory
    if window_chunks > policy.horizon:
        raise ValueError(
            f"pack.window_chunks={window_chunks} exceeds memory.horizon={policy.horizon}; raise the horizon, beyond "
            "which positions are not told apart"
        )
    head, text = spec.blocks_for(spec.head_tokens), spec.blocks_for(spec.text_bytes)
    sizes = {plan.picture} if isinstance(plan, FixedRows) else {(info.height, info.width) for info in plan.infos}
    grids = [patches.grid_shape(height, width, spec.patch) for height, width in sizes]
    chunk = head + 1 + max(spec.blocks_for(rows * columns) for rows, columns in grids)
    whole = min(window_chunks - 1, policy.window + policy.sinks)
    seen = chunk * (1 + whole) + (window_chunks - 1 - whole) + text
    seen = min(seen, plan.row_spec.blocks)  # windows that fill rows are shorter where pictures are large
    budget = config.attention.budget
    if budget is None or (ramped and budget.ramp_steps):
        return seen
    return min(seen, budget.always(policy, chunk=chunk, head=head, text=text) + budget.most)


def initial_model(
    config: OmniConfig,
    readers: Readers,
    plan: PackPlan | Mixture | LivePlan,
    seed: int,
    partition: Partition | None = None,
) -> Omni:
    """A new model whose embeddings are the principal components of the plan's first rows, laid out by `partition`.

    Every process fits the embeddings by itself, to the same rows; the layers are made where they belong.
    """
    key = purpose_key(seed, Purpose.INIT)
    outside = jax.jit(lambda key: _split(Omni(config, key))[0])(key)
    outside = jax.tree.map(np.asarray, _fitted(outside, config, readers, plan))
    make = lambda key, outside: _join(outside, _split(Omni(config, key))[1])
    shardings = None if partition is None else partition.shardings(jax.eval_shape(make, key, outside))
    return jax.jit(make, out_shardings=shardings)(key, outside)


def _split(model: Omni) -> tuple[Omni, nn.Layer]:
    """A model without its layers, and the layers."""
    model = jax.tree.map(lambda x: x, model)
    layers = model.layers
    del model.layers
    return model, layers


def _join(outside: Omni, layers: nn.Layer) -> Omni:
    """The inverse of `_split`."""
    model = jax.tree.map(lambda x: x, outside)
    model.layers = layers
    return model


def _fitted(model: Omni, config: OmniConfig, readers: Readers, plan: PackPlan | Mixture | LivePlan) -> Omni:
    """The model with its embeddings and forecast fitted to the plan's first rows."""
    source = row_source(readers, plan, config.tokens)
    content = jax.jit(lambda batch: tokens.content(config, batch))
    video, audio, patches_of, before, held = [], [], [], [], []
    rows = min(-(-_FITTED_PATCHES // plan.row_spec.patches), plan.rows_per_epoch)
    for i in range(rows):
        row = {name: jnp.asarray(value[None]) for name, value in source[i].items()}
        signals = content(row)
        video.append(np.asarray(signals.video)[np.asarray(row["patch_slot"]) >= 0])
        patches_of.append(np.asarray(signals.video))
        before.append(np.asarray(row["patch_before"]))
        held.append(np.asarray(tokens.held_by_patch(config, row)))
        heard = np.repeat(np.asarray(row["chunk_audio"]), config.tokens.audio_tokens, axis=1)
        audio.append(np.asarray(signals.audio)[heard])
    # Sound may be rare: more rows are read for it, and where there is none its embeddings stay as they are made.
    missing = config.audio_rank if config.tokens.audio_tokens else 0
    for i in range(rows, _ROWS_FOR_SOUND * rows):
        if sum(map(len, audio)) >= missing:
            break
        row = {name: jnp.asarray(value[None]) for name, value in source[i].items()}
        heard = np.repeat(np.asarray(row["chunk_audio"]), config.tokens.audio_tokens, axis=1)
        audio.append(np.asarray(content(row).audio)[heard])
    has_audio = any(map(len, audio))
    model = principal.initialise(model, np.concatenate(video), np.concatenate(audio) if has_audio else None)
    # A level drawn uniformly up to the most has this root mean square.
    noise = config.max_context_time / np.sqrt(3.0)
    join = np.concatenate
    return principal.initialise_forecast(model, join(patches_of), join(before), join(held), noise)


def objective(
    config: ConfigDict, stage: str, plan: Rows | FixedRows, partition: Partition | None = None
) -> Pretrain | FlowMap:
    """The objective of a stage, from its section `objective`, on a mesh if there is one.

    Where the config fixes the rows, the objective is the same for any data.
    """
    sizes = model_config(config)
    fields: dict[str, Any] = dict(config[stage].objective)
    sampling_fields = {field.name for field in dataclasses.fields(TimeSampling)}
    sampling = {name: fields.pop(name) for name in list(fields) if name in sampling_fields}
    if "tasks" in sampling:
        sampling["tasks"] = _table(sampling["tasks"])
        sampling["tables"] = _tables(config, stage, sampling.get("tables", {}), sampling["tasks"])
    kind = {"train": Pretrain, "distill": FlowMap}[stage]
    shape = fixed_rows(config) if "row" in config.pack else plan
    return freeze(
        kind,
        ConfigDict(fields),
        f"{stage}.objective",
        model=sizes,
        sampling=freeze(TimeSampling, ConfigDict(sampling), f"{stage}.objective"),
        clean_blocks=shape.row_spec.clean_blocks,
        max_keys=max_keys(sizes, shape, config.pack.window_chunks, ramped=kind is Pretrain),
        partition=partition,
    )


def _table(weights: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(dict(weights).items()))


def _tables(
    config: ConfigDict, stage: str, given: Mapping[str, Mapping[str, float]], tasks: tuple[tuple[str, float], ...]
) -> tuple[tuple[tuple[str, float], ...], ...]:
    """Weights of the tasks for each dataset of a mixture: its entry in `objective.tables`, or `tasks`."""
    names = tuple(config.data.get("mix", ()))
    for name in given:
        if name not in names:
            known = (
                f"data.mix has {', '.join(names)}" if names else "there is no data.mix, so give objective.tasks alone"
            )
            raise ConfigError(f"{stage}.objective.tables.{name} is of no dataset; {known}")
    return tuple(_table(given[name]) if name in given else tasks for name in names)
