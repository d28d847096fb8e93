"""Scalars to Weights & Biases, where a config asks for it: the section `wandb` and the extra `pixr1-jax[wandb]`."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
from ml_collections import ConfigDict

from pixr1_jax.core.config import ConfigError, freeze, to_plain

_ID_FILE = "wandb_id"
_FIELD = "config.wandb"


@dataclasses.dataclass(frozen=True)
class WandbConfig:
    """The section `wandb`.

    Attributes:
        project: The project that the run belongs to.
        name: Name of the experiment: the group of its stages, each a run named NAME/STAGE.
        mode: "online" or "offline", to be sent later with `wandb sync`.
    """

    project: str
    name: str
    mode: Literal["online", "offline"]

    def __post_init__(self):
        for field in ("project", "name"):
            if not getattr(self, field):
                raise ValueError(f"{field} is empty; name it")


class WandbBoard:
    """One W&B run, which all restarts of a stage continue."""

    def __init__(self, run: Any):
        """Takes the run that `open_board` began."""
        self._run = run

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Sends scalars by name."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Waits until all is sent."""
        self._run.finish()


def open_board(config: ConfigDict, stage: str, directory: str | os.PathLike[str]) -> WandbBoard | None:
    """Begins or continues the W&B run of a stage.

    Args:
        config: The experiment; without a section `wandb` nothing is begun.
        stage: "train" or "distill".
        directory: Folder of the stage, which keeps the id of its run.

    Returns:
        The board; None without the section, and on all processes but the first.

    Raises:
        ConfigError: The section is wrong, the package is missing, or W&B refuses to begin.
    """
    if "wandb" not in config:
        return None
    section = freeze(WandbConfig, config.wandb, _FIELD)
    if jax.process_index() != 0:
        return None
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise ConfigError(
            f"{_FIELD} is given but Weights & Biases is not installed; pip install 'pixr1-jax[wandb]', or leave it out"
        ) from error
    run_id = _run_id(Path(directory))
    try:
        run = wandb.init(
            project=section.project,
            group=section.name,
            name=f"{section.name}/{stage}",
            id=run_id,
            resume="allow",
            mode=section.mode,
            dir=os.fspath(directory),
            config=to_plain(config),
        )
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"{_FIELD}: W&B cannot begin ({reason}); log in with `wandb login`, or use offline"
        ) from error
    # Its own step never goes back, and steps that are run again after a restart would be dropped.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return WandbBoard(run)


def _run_id(directory: Path) -> str:
    """The id of the stage's run, made up when it is first asked for."""
    path = directory / _ID_FILE
    if path.exists():
        found = path.read_text(encoding="utf-8").strip()
        if not re.fullmatch(r"[0-9a-f]{12}", found):
            raise ConfigError(f"{path} holds no id of a W&B run ({found!r}); remove it, and a new run begins")
        return found
    made = uuid.uuid4().hex[:12]
    partial = path.with_name(f"{_ID_FILE}.partial")
    partial.write_text(made + "\n", encoding="utf-8")
    os.replace(partial, path)
    return made
