"""Compiled programs kept on disk, so that a run that starts again does not compile again."""

from __future__ import annotations

import os

import jax

_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def keep_compiled(directory: str | None) -> None:
    """Keeps compiled programs in a folder; call it before the first is compiled, after `distributed.join`.

    The variable JAX_COMPILATION_CACHE_DIR goes before it. With several processes the folder must be shared: the
    first process writes, all read. jax decides what is worth keeping (JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS,
    one second), and tells programs apart by their code, the devices and its version.

    Args:
        directory: A local folder or a bucket path; "" or None keeps nothing unless the variable is set.
    """
    if directory and not os.environ.get(_VARIABLE):
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(directory))
