"""`pixr1 export`: writes the distilled model of a work directory as an artifact that runs without its code.

pixr1 export --config=FILE --workdir=DIR [--out=DIR]
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from absl import flags

from data_pipelines.windows import action_schema
from pixr1_jax.core import cli_errors
from pixr1_jax.core import config as config_lib
from pixr1_jax.core.progress import track
from pixr1_jax.engine.export import export
from pixr1_jax.engine.step import Stream
from pixr1_jax.omni.model import Omni
from pixr1_jax.training import setup
from pixr1_jax.training.checkpoint import load_params


def export_run(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, out: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Exports the averaged weights of the stage "distill", for the picture size of the section `export`.

    Args:
        config: the experiment.
        workdir: its folder.
        out: the artifact's folder; None puts it in `workdir`.

    Returns:
        The artifact's manifest.
    """
    sizes = setup.model_config(config)
    template = jax.eval_shape(lambda: Omni(sizes, jax.random.key(0)))
    model = load_params(setup.checkpoint_directory(workdir, "distill"), template)
    section = config.export
    data = setup.open_data(config, workdir)
    name = setup.shown_dataset(config)
    shown = data[name] if isinstance(data, dict) else data
    infos = [info for one in (data.values() if isinstance(data, dict) else [data]) for info in one.clips("train")]
    fitting = (info for info in shown.clips("train") if (info.height, info.width) == tuple(section.size))
    info = next(fitting, None)
    if info is None:
        dataset = f"the dataset {name!r}" if name else "the dataset"
        raise ValueError(f"export.size is {tuple(section.size)}, and no clip of {dataset} has it; use a size it has")
    # The model's tokens may hold more actions than the run's datasets have.
    names = action_schema(infos)
    names += tuple(f"unused {number}" for number in range(len(names), sizes.tokens.action_dim))
    facts = {
        "frame_rate": f"{info.frame_rate.numerator}/{info.frame_rate.denominator}",
        # Sound is converted to the run's samples a chunk, whatever the clips have.
        "sample_rate": round(sizes.tokens.chunk_samples * info.frame_rate / sizes.tokens.chunk_frames),
        "action_names": list(names),
        "config": config_lib.fingerprint(config),
    }
    count = len(section.platforms) * (len(section.steps) + 3)
    with track(count, "export") as progress:
        return export(
            Stream(sizes, info.height, info.width),
            model,
            out or setup.artifact_directory(workdir),
            steps=section.steps,
            platforms=section.platforms,
            facts=facts,
            progress=lambda name: progress.advance(1, program=name),
        )


def define_flags() -> None:
    """Defines the flags of this verb."""
    config_lib.define_flags()
    flags.DEFINE_string("out", None, "The artifact's folder, in place of `artifact` in --workdir.")


def main(argv: Sequence[str]) -> None:
    """Exports."""
    if len(argv) > 1:
        raise ValueError(f"pixr1 export takes no argument {argv[1]!r}; see pixr1 export --help")
    export_run(config_lib.flag_config(), config_lib.flag_workdir(), flags.FLAGS.out)


if __name__ == "__main__":
    define_flags()
    cli_errors.run(main)
