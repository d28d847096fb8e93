"""`pixr1 stream`: runs an exported stream under an action script, and writes what it makes as a film with sound."""

from __future__ import annotations

import fractions
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from data_pipelines.clip import Clip
from data_pipelines.shards import open_dataset
from pixr1_jax.core import cli_errors, progress
from pixr1_jax.engine import film as film_lib
from pixr1_jax.engine import runner
from pixr1_jax.engine import script as script_lib
from pixr1_jax.engine.caption import Caption
from pixr1_jax.evaluation import rollout

_SPLIT = "test"


def stream(
    artifact_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    script: str | os.PathLike[str] | None,
    seconds: float,
    seed: int,
    steps: int,
    guidance: float,
    context_clip: Clip | None = None,
    context_seconds: float = 1.0,
) -> dict[str, Any]:
    """Streams for some seconds and writes a film.

    Args:
        artifact_dir: the exported stream.
        out: the mp4 file.
        script: an action script, see engine/script.py; its time 0 is the first dreamed frame. None holds no keys.
        seconds: how much to dream, rounded up to whole chunks.
        seed: of the stream.
        steps: denoising steps a chunk.
        guidance: guidance strength.
        context_clip: a recording to begin with, in the film too; None begins with nothing.
        context_seconds: how much of it is shown, rounded to whole chunks, at least one.

    Returns:
        "out", "chunks", "frames", "seconds" (dreamed); "ms_p50" and "ms_p95" a chunk, "frames_per_second" and
        "real_time_factor" (1 is just in time), of all chunks but the first, which warms up ("warm_up_ms").

    Raises:
        ValueError: an argument is out of range, or script or clip do not fit the artifact.
        FileNotFoundError: no such script.
    """
    artifact = runner.Artifact.load(artifact_dir)
    manifest = artifact.manifest
    rollout.check_sampling(manifest, steps, seed)
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds is {seconds}; stream for more than 0")
    names = tuple(manifest["action_names"])
    plan = script_lib.Script(names) if script is None else script_lib.parse(script, names)
    chunk_rate = fractions.Fraction(manifest["frame_rate"]) / manifest["chunk_frames"]
    # Decimal seconds: 0.1 means a tenth, not the nearest binary number, which may be a little more.
    chunks = math.ceil(fractions.Fraction(str(seconds)) * chunk_rate)
    context = _context_chunks(manifest, context_clip, context_seconds)
    live = artifact.start(seed)
    milliseconds: list[float] = []
    with (
        _open_film(out, manifest) as film,
        progress.track(chunks, f"streaming to {os.fspath(out)}") as tracker,
    ):
        sound = _Sound(film, manifest)
        text = ""
        if context_clip is not None:
            context_clip = rollout.fitted(manifest, context_clip)
            text = _show_context(live, manifest, context_clip, context, film, sound)
        for actions, prompt in _schedule(plan, manifest, chunks):
            if prompt is not None:
                live.prompt(prompt)
                text = prompt
            start = time.perf_counter()
            frames, heard = live.step(actions, steps=steps, guidance=guidance)
            milliseconds.append(1000 * (time.perf_counter() - start))
            for frame, held in zip(frames, actions, strict=True):
                film.write(frame, _caption(names, held, text, "dream" if context else ""))
            sound.write(heard)
            tracker.advance(ms=milliseconds[-1])
        if manifest["hop"]:
            # The last hop of sound comes out with the chunk after the last.
            _, heard = live.step(actions[-1:].repeat(len(actions), axis=0), steps=steps, guidance=guidance)
            sound.write(heard[: manifest["hop"]])
    summary = {"out": os.fspath(out), **_timing(manifest, milliseconds)}
    print(describe(summary))
    return summary


def describe(summary: Mapping[str, Any]) -> str:
    """Returns the summary of a stream as a line to read."""
    return (
        f"{summary['out']}: {summary['seconds']:.2f} s, {summary['frames']} frames; ms per chunk p50 "
        f"{summary['ms_p50']:.1f}, p95 {summary['ms_p95']:.1f} (first {summary['warm_up_ms']:.0f}); "
        f"{summary['frames_per_second']:.1f} frames/s, {summary['real_time_factor']:.2f} x real time"
    )


class _Sound:
    """Puts the stream's sound, which is one hop late, in step with its frames."""

    def __init__(self, film: film_lib.Film, manifest: Mapping[str, Any]) -> None:
        self._film, self._late, self._channels = film, manifest["hop"], _channels(manifest)

    def write(self, heard: np.ndarray) -> None:
        cut = min(self._late, len(heard))
        self._late -= cut
        self._film.write_sound(heard[cut:, : self._channels])


def _channels(manifest: Mapping[str, Any]) -> int:
    return manifest["channels"] if manifest["chunk_samples"] else 0


def _open_film(out: str | os.PathLike[str], manifest: Mapping[str, Any]) -> Any:
    frame_rate = fractions.Fraction(manifest["frame_rate"])
    return film_lib.film(out, frame_rate, channels=_channels(manifest), sample_rate=manifest["sample_rate"])


def _context_chunks(manifest: Mapping[str, Any], clip: Clip | None, seconds: float) -> int:
    if clip is None:
        return 0
    problem = rollout.misfit(manifest, clip)
    if problem:
        raise ValueError(f"{clip.episode} does not fit the artifact: {problem}")
    size = manifest["chunk_frames"]
    chunks = max(1, round(fractions.Fraction(seconds) * clip.frame_rate / size))
    if chunks * size > clip.frames:
        longest = float(clip.frames // size * size / clip.frame_rate)
        raise ValueError(f"context_seconds is {seconds}; {clip.episode} has whole chunks for {longest:g}")
    return chunks


def _show_context(
    live: Any, manifest: Mapping[str, Any], clip: Clip, chunks: int, film: film_lib.Film, sound: _Sound
) -> str:
    """Shows the stream a recording, and the film too; returns the text then in force."""
    heard = rollout.observe(live, manifest, clip, chunks)
    texts = rollout.prompts_by_chunk(clip.events, manifest["chunk_frames"])
    text = ""
    for index in range(chunks * manifest["chunk_frames"]):
        text = texts.get(index // manifest["chunk_frames"], text)
        film.write(clip.video[index], _caption(clip.action_names, clip.actions[index], text, "recorded"))
    sound.write(heard)
    return text


def _schedule(
    plan: script_lib.Script, manifest: Mapping[str, Any], chunks: int
) -> Iterator[tuple[np.ndarray, str | None]]:
    """Yields for each chunk its actions `[chunk_frames, actions]` and the prompt that begins with it, if any."""
    frame_rate, size = fractions.Fraction(manifest["frame_rate"]), manifest["chunk_frames"]
    actions = plan.actions(chunks * size, frame_rate)
    prompts = plan.prompts_by_chunk(size, frame_rate)
    for chunk in range(chunks):
        yield actions[chunk * size : (chunk + 1) * size], prompts.get(chunk)


def _caption(names: Sequence[str], held: np.ndarray, text: str, note: str) -> Caption:
    return Caption(tuple(zip(names, held.tolist(), strict=True)), text, note)


def _timing(manifest: Mapping[str, Any], milliseconds: list[float]) -> dict[str, Any]:
    size, frame_rate = manifest["chunk_frames"], fractions.Fraction(manifest["frame_rate"])
    # A stream of one chunk has no other to time.
    steady = milliseconds[1:] or milliseconds
    frames_per_second = 1000 * size / float(np.mean(steady))
    return {
        "chunks": len(milliseconds),
        "frames": len(milliseconds) * size,
        "seconds": float(len(milliseconds) * size / frame_rate),
        "warm_up_ms": milliseconds[0],
        "ms_p50": float(np.percentile(steady, 50)),
        "ms_p95": float(np.percentile(steady, 95)),
        "frames_per_second": frames_per_second,
        "real_time_factor": frames_per_second / float(frame_rate),
    }


def _read_clip(data: str, index: int) -> Clip:
    dataset = open_dataset(data)
    infos = dataset.clips(_SPLIT)
    if not 0 <= index < len(infos):
        raise ValueError(f"--clip is {index}; {data} has {_SPLIT} clips 0 to {len(infos) - 1}")
    return dataset.read(infos[index])


def define_flags() -> None:
    """Defines the flags of the verb."""
    flags.DEFINE_string("artifact", None, "directory of the exported stream", required=True)
    flags.DEFINE_string("out", None, "mp4 file to write", required=True)
    flags.DEFINE_string("script", None, "action script: lines such as '1.5 right+jump' or '3.0 prompt: night'")
    flags.DEFINE_float("seconds", 10.0, "seconds to dream")
    flags.DEFINE_integer("seed", 0, "seed of the stream", lower_bound=0)
    flags.DEFINE_integer("steps", 2, "denoising steps a chunk", lower_bound=1)
    flags.DEFINE_float("guidance", 1.0, "guidance strength; 1 is none")
    flags.DEFINE_string("data", None, "dataset with a recording to begin with; begins with nothing if not given")
    flags.DEFINE_integer("clip", 0, "which test clip of the dataset", lower_bound=0)
    flags.DEFINE_float("context_seconds", 1.0, "how much of the recording is shown first", lower_bound=0.0)


def main(argv: Sequence[str]) -> None:
    """Runs the verb with absl's flags."""
    if len(argv) > 1:
        raise ValueError(f"unknown argument {argv[1]!r}; give flags only, see --help")
    values = flags.FLAGS
    stream(
        values.artifact,
        values.out,
        script=values.script,
        seconds=values.seconds,
        seed=values.seed,
        steps=values.steps,
        guidance=values.guidance,
        context_clip=None if values.data is None else _read_clip(values.data, values.clip),
        context_seconds=values.context_seconds,
    )


if __name__ == "__main__":
    define_flags()
    cli_errors.run(main)
