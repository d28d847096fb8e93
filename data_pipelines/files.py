"""Files that are whole or not there, on this machine or in a bucket (gs://, s3:// by the libraries of fsspec).

Locally a file is written under a temporary name, forced to the disk, then renamed; a bucket shows an object only once
it is whole. Readers of the shards need a local file, so a shard in a bucket is copied to a cache when it is first read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath

PARTIAL = ".partial"
# Names the folder of the cache; else it is the user's own for caches.
CACHE_VARIABLE = "PIXR1_CACHE"

PathLike = str | os.PathLike[str]


def is_remote(path: PathLike) -> bool:
    """Whether a path is in a bucket."""
    return "://" in os.fspath(path)


def size(path: epath.Path) -> int:
    """Returns a file's length in bytes."""
    return path.stat().length


def is_file(path: epath.Path) -> bool:
    """Whether there is such a file."""
    return path.exists() and not path.is_dir()


def write_bytes(path: PathLike, data: bytes) -> None:
    """Writes a file whole, in place of an older one."""
    with new_file(epath.Path(path)) as local:
        local.write_bytes(data)


@contextlib.contextmanager
def new_file(path: epath.Path) -> Iterator[pathlib.Path]:
    """Yields where to write a file, and puts it in place if all went well; else nothing of it is left."""
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="pixr1-") as folder:
            local = pathlib.Path(folder) / path.name
            yield local
            epath.Path(local).copy(path, overwrite=True)
        return
    local = pathlib.Path(path)
    partial = local.with_name(local.name + PARTIAL)
    try:
        yield partial
        _sync(partial)
        os.replace(partial, local)
    finally:
        partial.unlink(missing_ok=True)


def move(source: epath.Path, target: epath.Path) -> None:
    """Gives a file another name in the same file system, in place of an older one."""
    if is_remote(source):
        source.copy(target, overwrite=True)
        source.unlink()
    else:
        os.replace(source, target)


def sync_names(directory: epath.Path) -> None:
    """Forces the names of a local directory to the disk."""
    if not is_remote(directory):
        _sync(pathlib.Path(directory))


def sha256(path: PathLike) -> str:
    """Returns the sum of a file, in hex."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)  # pyright: ignore[reportArgumentType]
    return digest.hexdigest()


def local_copy(path: epath.Path) -> pathlib.Path:
    """Returns a local path with the content of a file: its own, or one in the cache, which is filled if need be."""
    if not is_remote(path):
        return pathlib.Path(path)
    folder = _cache() / hashlib.sha256(os.fspath(path.parent).encode()).hexdigest()[:16]
    cached = folder / path.name
    if not cached.is_file() or cached.stat().st_size != size(path):
        folder.mkdir(parents=True, exist_ok=True)
        with new_file(epath.Path(cached)) as local, path.open("rb") as source, local.open("wb") as target:
            shutil.copyfileobj(source, target)  # pyright: ignore[reportArgumentType]
    return cached


def _cache() -> pathlib.Path:
    given = os.environ.get(CACHE_VARIABLE)
    return pathlib.Path(given) if given else pathlib.Path.home() / ".cache" / "pixr1"


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
