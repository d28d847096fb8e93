"""`pixr1 quickstart`: the whole way at a small scale: data, train, distill, export, stream, evaluate.

pixr1 quickstart --config=configs/quickstart.py --workdir=DIR

Leaves in the work directory: shards/, train/ and distill/ (checkpoints and metrics), artifact/, dream.mp4,
scores.json and scores.png. The same command continues where it was stopped.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Sequence

import ml_collections
from rich.console import Console
from rich.rule import Rule

from data_pipelines.shards import open_dataset
from pixr1_jax.core import cli_errors
from pixr1_jax.core import config as config_lib
from pixr1_jax.data import build_data
from pixr1_jax.evaluate import evaluate
from pixr1_jax.export import export_run
from pixr1_jax.stream import stream
from pixr1_jax.training import loop, setup


def quickstart(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
    """Runs all stages; returns the seconds that each took.

    Of a mixture, `export.dataset` is filmed and scored.

    A stage that was stopped by a signal ends the run, and the same call continues it.
    """
    shards, artifact = setup.shards_directory(workdir), setup.artifact_directory(workdir)
    shown = setup.shown_directory(config, workdir)  # before any work, since a mixture has to name it

    def film() -> None:
        section = config.stream
        dataset = open_dataset(shown)
        stream(
            artifact,
            workdir / "dream.mp4",
            script=section.script,
            seconds=section.seconds,
            seed=section.seed,
            steps=section.steps,
            guidance=section.guidance,
            context_clip=dataset.read(dataset.clips("test")[section.clip]),
            context_seconds=section.context_seconds,
        )

    stages: dict[str, Callable[[], object]] = {
        "data": lambda: build_data(config, shards),
        "train": lambda: loop.run(config, "train", workdir),
        "distill": lambda: loop.run(config, "distill", workdir),
        "export": lambda: export_run(config, workdir),
        "stream": film,
        "evaluate": lambda: evaluate(artifact, shown, workdir, **config.evaluate.to_dict()),
    }
    console, seconds = Console(stderr=True), {}
    for number, (name, run) in enumerate(stages.items(), start=1):
        console.print(Rule(f"{number}/{len(stages)} {name}", align="left"))
        start = time.monotonic()
        run()
        seconds[name] = time.monotonic() - start
        if name in ("train", "distill") and not loop.finished(config, name, workdir):
            console.print(f"{name} was stopped and saved; the same command continues it")
            return seconds
    console.print(Rule(align="left"))
    console.print(", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))
    console.print(f"film: {workdir / 'dream.mp4'}   scores: {workdir / 'scores.png'}, {workdir / 'scores.json'}")
    return seconds


def define_flags() -> None:
    """Defines the flags of this verb."""
    config_lib.define_flags()


def main(argv: Sequence[str]) -> None:
    """Runs all stages."""
    if len(argv) > 1:
        raise ValueError(f"pixr1 quickstart takes no argument {argv[1]!r}; see pixr1 quickstart --help")
    quickstart(config_lib.flag_config(), config_lib.flag_workdir())


if __name__ == "__main__":
    define_flags()
    cli_errors.run(main)
