"""Records that cannot be read: left out, named once, and too many of them an error."""

import itertools
import logging
import threading

from data_pipelines.clip import one_line

_NAMED = 5  # bad records that an error names

_log = logging.getLogger(__name__)


class BadRecordsError(ValueError):
    """More records than the limit cannot be read; the message names some."""


class BadRecords:
    """Counts the distinct clips that could not be read; safe to share between threads.

    What is left out depends on the bytes of a record alone, so all hosts leave out the same.
    """

    def __init__(self, clips: int, limit: float):
        """Args: clips, how many there are; limit, the share of them that may be bad."""
        self._clips, self._limit = clips, limit
        self._reasons: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._reasons)

    @property
    def reasons(self) -> dict[tuple[str, str], str]:
        """Why each bad clip could not be read, by dataset and episode."""
        with self._lock:
            return dict(self._reasons)

    def add(self, dataset: str, episode: str, error: Exception) -> None:
        """Notes a bad clip.

        Raises:
          BadRecordsError: That makes too many.
        """
        reason = one_line(error)
        with self._lock:
            known = (dataset, episode) in self._reasons
            self._reasons[dataset, episode] = reason
            bad = len(self._reasons)
            named = list(itertools.islice(self._reasons.items(), _NAMED))
        if not known:
            _log.warning("left out a bad record: %s: %s", _name(dataset, episode), reason)
        if bad > self._limit * self._clips:
            texts = "; ".join(f"{_name(*key)}: {why}" for key, why in named)
            raise BadRecordsError(
                f"{bad} of {self._clips} clips cannot be read (max_bad={self._limit}): {texts}; rebuild the dataset or "
                "raise max_bad"
            )

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._lock = threading.Lock()


def _name(dataset: str, episode: str) -> str:
    return f"{dataset}: {episode}" if dataset else episode
