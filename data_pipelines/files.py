"""Files that are whole or not there: written under a temporary name, forced to the disk, then renamed."""

from __future__ import annotations

import hashlib
import os
import pathlib

PARTIAL = ".partial"


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Writes a file whole, in place of an older one."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        partial.write_bytes(data)
        sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: pathlib.Path) -> None:
    """Forces a file's data, or a directory's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: pathlib.Path) -> str:
    """Returns the sum of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
