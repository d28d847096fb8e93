"""Build or inspect a dataset.

pixr1 data build --config=FILE [--workdir=DIR | --out=DIR] [--runner=RUNNER [--beam=OPTIONS]]
    Builds the dataset of the configuration's section `data` in --out (a folder, or gs://, s3://), or in the folder of
    --workdir where training looks for it. A dataset that is there and was built from the same section is kept, a build
    that was stopped goes on. --runner has Apache Beam build it, such as DirectRunner or DataflowRunner.

pixr1 data inspect DIR [--verify] [--json=FILE] [--html=FILE] [--png=FILE] [--row_tokens=N --config=FILE]
    Prints what the dataset DIR holds; checks every record; writes the figures, a page with pictures and rejections,
    or the pictures alone. --row_tokens says how full rows of that length would be with the configuration's tokens.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import flags
from etils import epath

from data_pipelines import build as build_lib
from data_pipelines import config as data_config
from data_pipelines import files as files_lib
from data_pipelines import inspect as inspect_lib
from data_pipelines import page as page_lib
from data_pipelines import shards as shards_lib
from data_pipelines import sheet as sheet_lib
from data_pipelines.row_layout import TokenSpec
from pixr1_jax.core import cli_errors
from pixr1_jax.core import config as config_lib

_PICTURED = 8


def build_data(
    config: ml_collections.ConfigDict, directory: str | os.PathLike[str], *, beam: Sequence[str] = ()
) -> None:
    """Builds the dataset of a configuration, or keeps it where it was built before from the same section.

    A mixture (section `data.mix`) has a section for each dataset, which goes to a folder of its name; one that has
    nothing but `directory` is there already.

    Args:
        config: a configuration with the section `data`, see DataConfig.
        directory: the dataset's folder; made if missing.
        beam: see `data_pipelines.build.build`.

    Raises:
        ConfigError: a field of the section is wrong.
        ShardError: the folder holds a dataset of another section, or cannot be written.
    """
    if "data" not in config:
        raise config_lib.ConfigError("config.data is missing; give the section that says what to build")
    if "mix" not in config.data:
        _build(config.data, "config.data", epath.Path(directory), beam)
        return
    for name, section in config.data.mix.items():
        if "directory" not in section:
            _build(section, f"config.data.mix.{name}", epath.Path(directory) / name, beam)
        elif len(section) > 1:
            raise config_lib.ConfigError(f"config.data.mix.{name} has directory and more; a dataset is built or there")


def _build(section: ml_collections.ConfigDict, path: str, directory: epath.Path, beam: Sequence[str]) -> None:
    data = config_lib.freeze(data_config.DataConfig, section, path)
    source = data_config.make_source(data, path)
    try:
        items = source.items()
    except (ValueError, OSError) as error:
        raise config_lib.ConfigError(f"{path}.{data.source}: {error}") from error
    spec = data_config.describe(data, section, items)
    _check_same(directory, spec)
    build_lib.build(
        directory,
        source,
        shards=data_config.shards_of(data, items),
        spec=spec,
        items=items,
        video_codec=data.video_codec,
        processes=data.processes,
        patience=data.patience,
        beam=beam,
    )


def _check_same(directory: epath.Path, spec: dict[str, Any]) -> None:
    """Raises ShardError if a dataset of another section is there: it may be what a model was trained on."""
    if not files_lib.is_file(directory / shards_lib.MANIFEST):
        return
    found = shards_lib.read_manifest(directory).spec
    if found == spec:
        return
    old, new = _flat(found, "data"), _flat(spec, "data")
    name = next(name for name in sorted({*old, *new}) if old.get(name) != new.get(name))
    raise shards_lib.ShardError(
        f"{directory} holds other data: {name} is {old.get(name)!r} there and {new.get(name)!r} here; "
        "choose another folder, or delete that one"
    )


def _flat(value: Any, path: str) -> dict[str, Any]:
    """Returns the leaves of nested dicts by their paths."""
    if not isinstance(value, dict):
        return {path: value}
    return {name: leaf for key, one in value.items() for name, leaf in _flat(one, f"{path}.{key}").items()}


def inspect_data(directory: str) -> None:
    """Prints what a dataset holds and writes the reports that the flags ask for."""
    dataset, summary = inspect_lib.inspect(directory, verify=flags.FLAGS.verify)
    if flags.FLAGS.row_tokens:
        config = config_lib.flag_config()
        spec = config_lib.freeze(TokenSpec, config.tokens, "config.tokens")
        window = config.pack.window_chunks
        fill = inspect_lib.packing(dataset, spec, window_chunks=window, row_tokens=flags.FLAGS.row_tokens)
        filled = f"{fill['tokens']:.1%} of tokens, {fill['blocks']:.1%} of blocks"
        split = f"{fill['clean_blocks']:.0f} clean and {fill['noisy_blocks']:.0f} noisy blocks"
        context = f"{fill['context']:.1f} chunks of context"
        print(f"packing at {fill['row_tokens']} tokens a row: {filled}; {split}, {context}")
        summary["packing"] = fill
    if flags.FLAGS.json:
        inspect_lib.write_json(summary, pathlib.Path(flags.FLAGS.json))
    if flags.FLAGS.html:
        page_lib.write(dataset, summary, pathlib.Path(flags.FLAGS.html), _PICTURED)
    if flags.FLAGS.png:
        sheet_lib.write(dataset, pathlib.Path(flags.FLAGS.png), _PICTURED)


def _beam() -> list[str]:
    if flags.FLAGS.beam and not flags.FLAGS.runner:
        raise ValueError("--beam is given without --runner; name one, such as --runner=DirectRunner")
    return [f"--runner={flags.FLAGS.runner}", *flags.FLAGS.beam.split()] if flags.FLAGS.runner else []


def _shards_directory() -> pathlib.Path:
    # Brings jax with it, which `data inspect` does without.
    from pixr1_jax.training import setup

    return setup.shards_directory(config_lib.flag_workdir())


def define_flags() -> None:
    """Defines the flags of this verb."""
    config_lib.define_flags()
    flags.DEFINE_string("out", None, "build: the dataset's folder, in place of one in --workdir.")
    flags.DEFINE_string("runner", None, "build: the runner of Apache Beam, such as DirectRunner or DataflowRunner.")
    flags.DEFINE_string("beam", "", "build: further options of Apache Beam, separated by spaces.")
    flags.DEFINE_bool("verify", False, "inspect: check the sums of all files and decode every record.")
    flags.DEFINE_integer("row_tokens", None, "inspect: tokens in a row whose filling is wanted; needs --config.")
    flags.DEFINE_string("json", None, "inspect: where to write the figures.")
    flags.DEFINE_string("html", None, "inspect: where to write a page with totals, pictures and rejections.")
    flags.DEFINE_string("png", None, "inspect: where to write a contact sheet of some clips.")


def main(argv: Sequence[str]) -> None:
    """Runs `data build` or `data inspect DIR`."""
    match argv[1:]:
        case ["build"]:
            build_data(config_lib.flag_config(), flags.FLAGS.out or _shards_directory(), beam=_beam())
        case ["inspect", directory]:
            inspect_data(directory)
        case _:
            given = " ".join(argv[1:]) or "nothing"
            raise ValueError(f"pixr1 data takes `build` or `inspect DIR`, not {given}; see pixr1 data --help")


if __name__ == "__main__":
    define_flags()
    cli_errors.run(main)
