"""A folder of video files as a source: every file becomes records, or a rejection that says why not."""

from __future__ import annotations

import contextlib
import dataclasses
import fractions
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipelines.clip import Clip
from data_pipelines.record import Record
from data_pipelines.source import Item, Rejected, split_by_hash
from data_pipelines.sources.videos import captions, media
from data_pipelines.sources.videos.captions import Captions
from data_pipelines.sources.videos.pieces import Limits, Piece, plan
from data_pipelines.sources.videos.recorder import Recorder
from data_pipelines.sources.videos.survey import Survey, survey


@dataclasses.dataclass(frozen=True)
class VideoFolder:
    """The video files below a folder, at their own sizes, frame rates and sample rates.

    Every file is an item, whatever its name, but for hidden ones and those that hold captions (see `captions`).
    A file gives one record for each of its pieces, and a rejection for what of it is lost; it is read up to its first
    damage. Pieces are shots, cut at
    most `max_seconds` long. Pictures are copied as they are coded where groups of pictures are short and decode
    alone, else encoded anew; nothing is cropped or resized.

    Attributes:
        path: the folder.
        test_share: share of the files that go to the split "test"; the others go to "train".
        licence: of files for which the table of captions gives none.
        max_seconds: length of a piece at most, unless one frame lasts longer.
        min_seconds: shorter pieces are dropped, but for a file that is shorter as a whole.
        cuts: whether to cut at changes of shot.
        cut_threshold: how many times more than its neighbours the first frame of a shot differs from the one before.
        copy: whether to copy coded pictures where that is possible.
        max_group_seconds: longer groups of pictures are not copied: a reader decodes all of a group.
        max_pixels: a file with larger frames is rejected.

    Raises:
        ValueError: a field is out of range; the message names it.
    """

    path: str
    test_share: float = 0.05
    licence: str = "unknown"
    max_seconds: float = 10.0
    min_seconds: float = 0.5
    cuts: bool = True
    cut_threshold: float = 3.0
    copy: bool = True
    max_group_seconds: float = 2.0
    max_pixels: int = 2**26

    def __post_init__(self) -> None:
        if not 0 <= self.test_share <= 1:
            raise ValueError(f"test_share is {self.test_share}; use 0 to 1")
        if not 0 <= self.min_seconds <= self.max_seconds < float("inf") or self.max_seconds == 0:
            raise ValueError(
                f"min_seconds is {self.min_seconds} and max_seconds {self.max_seconds}; use 0 or more, rising"
            )
        if not 0 < self.max_group_seconds <= self.max_seconds:
            raise ValueError(f"max_group_seconds is {self.max_group_seconds}; use more than 0, up to max_seconds")
        if not self.cut_threshold > 0:
            raise ValueError(f"cut_threshold is {self.cut_threshold}; use more than 0")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels is {self.max_pixels}; use 1 or more")

    @property
    def batch(self) -> int:
        """See `Source`."""
        return 1

    def items(self) -> Sequence[Item]:
        """The files by their relative paths, and files that the table of captions names but that are not there.

        Raises:
            ValueError: a line of a caption file is wrong; the message names file and line.
            OSError: the folder cannot be read.
        """
        folder = Path(self.path)
        table = captions.read_table(folder)
        items = []
        for name in sorted({*_files(folder), *table}):
            of_table = table.get(name, Captions())
            beside = captions.read_beside(folder / name)
            texts = of_table.texts if beside is None else beside
            # A name may hold bytes that are no Unicode.
            shown = name.encode(errors="backslashreplace").decode()
            shares = (("train", 1 - self.test_share), ("test", self.test_share))
            # The size is there to tell a file that was replaced: equal items must mean equal clips.
            what = (name, _size(folder / name), Captions(texts, of_table.licence))
            items.append(Item(split_by_hash(shown, shares), shown, what))
        return items

    def record(self, items: Sequence[Item]) -> Iterator[tuple[Item, Clip | Record | Rejected]]:
        """See `Source`; a file that cannot be read ends as a rejection, never as an error.

        Raises:
            ImportError: PySceneDetect is not installed and `cuts` is set.
        """
        if self.cuts and importlib.util.find_spec("scenedetect") is None:
            raise ImportError("finding cuts needs PySceneDetect: pip install 'pixr1-jax[videos]', or set cuts to False")
        for item in items:
            results = self._record_file(item)
            while True:
                try:
                    result = next(results, None)
                # Whatever a strange file makes a decoder raise, the other files are worth recording.
                except Exception as error:
                    yield item, Rejected(item.name, media.reason(error))
                    break
                if result is None:
                    break
                yield item, result

    def _record_file(self, item: Item) -> Iterator[Record | Rejected]:
        name, _, described = item.what
        path = _checked(Path(self.path), name)
        found = survey(
            path,
            max_pixels=self.max_pixels,
            cut_threshold=self.cut_threshold if self.cuts else None,
            flash=fractions.Fraction(self.min_seconds),
            checksums=self.copy,
        )
        limits = Limits(
            fractions.Fraction(self.max_seconds),
            fractions.Fraction(self.min_seconds),
            fractions.Fraction(self.max_group_seconds),
            self.copy,
        )
        kept, dropped = plan(found, limits)
        facts = Captions(described.texts, described.licence or self.licence)
        with contextlib.ExitStack() as stack:
            recorder = Recorder(stack, path, item.name, found, facts, self.max_pixels)
            for number, piece in enumerate(kept):
                yield recorder.record(number, piece)
            for why in (*_losses(found, dropped, self.min_seconds), *recorder.problems()):
                yield Rejected(item.name, why)


def _files(folder: Path) -> Iterator[str]:
    """Yields relative paths of all that is no folder and not hidden, and of links to folders."""
    for parent, folders, files in os.walk(folder, onerror=_raise):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        folders[:] = [name for name in folders if not name.startswith(".") and name not in links]
        for name in (*files, *links):
            if not name.startswith(".") and not name.lower().endswith(captions.SIDE_SUFFIXES):
                yield Path(parent, name).relative_to(folder).as_posix()


def _raise(error: OSError) -> None:
    raise error


def _checked(folder: Path, name: str) -> Path:
    """Returns the path of a file that is there and in the folder.

    Raises:
        MediaError: it is not.
    """
    path = folder / name
    if not os.path.lexists(path):
        raise media.MediaError("the table of captions names it, but it is not there")
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise media.MediaError("a link that leads nowhere") from error
    if not real.is_relative_to(folder.resolve()):
        raise media.MediaError("a link that leaves the folder")
    if real.is_dir():
        raise media.MediaError("a link to a folder, which is not followed")
    return path


def _losses(found: Survey, dropped: list[Piece], shortest: float) -> Iterator[str]:
    """Yields what of a file is not in its records, and why."""
    if found.damage:
        yield f"damaged after frame {len(found.ticks) - 1}: {found.damage}"
    if found.dropped:
        yield f"frames dropped because their timestamps do not rise: {found.dropped}"
    if dropped:
        frames = sum(piece.stop - piece.start for piece in dropped)
        yield f"pieces dropped because they are shorter than {shortest:g} s: {len(dropped)}, of {frames} frames in all"


def _size(path: Path) -> int:
    """Bytes of a file; -1 for what is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
