"""`pixr1 evaluate`: how a stream's dreams compare with recordings that it has not seen.

Every chosen test clip is shown to the stream for some chunks, then dreamed on under its own texts and actions, with
each number of denoising steps; once more with another clip's actions, for the control gain.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.console
from absl import flags

from data_pipelines.clip import Clip
from data_pipelines.index import ClipInfo
from data_pipelines.shards import Dataset, open_dataset
from pixr1_jax.core import cli_errors, progress
from pixr1_jax.engine import runner
from pixr1_jax.evaluation import control, fidelity, report, rollout, sound
from pixr1_jax.evaluation.figure import Strip

SPLIT = "test"
_CONTROL_STEPS = 2
_STRIPS = 3


def evaluate(
    artifact_dir: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    clips: int,
    context_chunks: int,
    frames: int,
    steps: Sequence[int] = (1, 2, 4),
    guidance: float,
    seed: int,
) -> dict[str, Any]:
    """Scores an artifact on the test split of a dataset, and writes scores.json and scores.png.

    Args:
        artifact_dir: the exported stream.
        data_dir: the dataset.
        out_dir: where the report goes; made if missing.
        clips: how many clips, spread evenly over those that fit; all, if there are fewer. At least 2.
        context_chunks: chunks of the recording that are shown first.
        frames: how many frames are dreamed, at least 8, whole chunks.
        steps: numbers of denoising steps to score. Control is scored with 2 if it is among them, else the first.
        guidance: guidance strength.
        seed: of the streams and of the bootstrap.

    Returns:
        What scores.json holds: "settings", "artifact" (id and manifest), "episodes", "horizons", "fidelity" (by steps,
        and "copy_last"), "control", "sound" (by steps, and "silence"; None without sound).

    Raises:
        ValueError: an argument is out of range, or the dataset has too few clips that fit the artifact.
    """
    artifact = runner.Artifact.load(artifact_dir)
    _check(artifact.manifest, frames, steps, seed)
    dataset = open_dataset(data_dir)
    infos = choose(artifact.manifest, dataset, clips, context_chunks, frames)
    settings = {
        "data": os.fspath(data_dir),
        "split": SPLIT,
        "clips": len(infos),
        "context_chunks": context_chunks,
        "frames": frames,
        "steps": list(steps),
        "strip_steps": _CONTROL_STEPS if _CONTROL_STEPS in steps else steps[0],
        "guidance": guidance,
        "seed": seed,
    }
    evaluation = _Evaluation(artifact, settings)
    with progress.track(len(infos) * (len(steps) + 1), "dreaming") as tracker:
        for index, info in enumerate(infos):
            first = context_chunks * artifact.manifest["chunk_frames"]
            clip = rollout.fitted(artifact.manifest, dataset.read(info, 0, first + frames))
            other = dataset.read(infos[control.donor(index, len(infos))], first, first + frames)
            evaluation.add(clip, rollout.fitted(artifact.manifest, other).actions, tracker)
    scores = evaluation.scores()
    report.write(out_dir, scores, evaluation.strips)
    report.show(scores, rich.console.Console())
    return scores


def choose(
    manifest: Mapping[str, Any], dataset: Dataset, clips: int, context_chunks: int, frames: int
) -> list[ClipInfo]:
    """Returns up to `clips` test clips that fit the artifact and are long enough, spread evenly.

    Raises:
        ValueError: fewer than two are asked for or fit; the message says why the first one does not.
    """
    # Asking for too few is an error here as there, before any work.
    control.donor(0, clips)
    fitting, reason = [], f"the split {SPLIT!r} has no others"
    for info in dataset.clips(SPLIT):
        try:
            rollout.check_window(manifest, info, context_chunks, frames)
            fitting.append(info)
        except ValueError as error:
            reason = str(error)
    if len(fitting) < 2:
        raise ValueError(f"{dataset.directory}: {len(fitting)} test clips can be used, 2 are needed: {reason}")
    picks = np.unique(np.linspace(0, len(fitting) - 1, min(clips, len(fitting))).round().astype(int))
    return [fitting[pick] for pick in picks]


class _Evaluation:
    """The scores of the clips seen so far."""

    def __init__(self, artifact: Any, settings: dict[str, Any]) -> None:
        self._artifact, self._settings = artifact, settings
        self._names = [str(count) for count in settings["steps"]]
        self._psnr: dict[str, list[np.ndarray]] = {name: [] for name in (*self._names, "copy_last", "shuffled")}
        self._ssim: dict[str, list[np.ndarray]] = {name: [] for name in (*self._names, "copy_last")}
        self._distance: dict[str, list[float]] = {name: [] for name in (*self._names, "silence")}
        self._matches: dict[str, dict[float, list[sound.Matches]]] = {
            name: {tolerance: [] for tolerance in sound.TOLERANCES} for name in self._names
        }
        self._changed: list[float] = []
        self._episodes: list[str] = []
        self.strips: list[Strip] = []

    def add(self, clip: Clip, other_actions: np.ndarray, tracker: progress.Tracker) -> None:
        """Dreams and scores a clip.

        Args:
            clip: the context and the frames to dream.
            other_actions: another clip's actions over those frames, `[frames, actions]`.
            tracker: told after each dream.
        """
        frames = self._settings["frames"]
        context, truth = clip.video[:-frames], clip.video[-frames:]
        self._add_pictures("copy_last", truth, fidelity.copy_last(context, frames))
        true_sound = rollout.true_sound(
            self._artifact.manifest, clip, context_chunks=self._settings["context_chunks"], frames=frames
        )
        self._distance["silence"].append(sound.log_spectral_distance(true_sound, np.zeros_like(true_sound)))
        for steps in self._settings["steps"]:
            pictures, heard = self._dream(clip, steps, None)
            self._add_pictures(str(steps), truth, pictures)
            self._add_sound(str(steps), clip.sample_rate, true_sound, heard)
            if steps == self._settings["strip_steps"] and len(self.strips) < _STRIPS:
                self.strips.append(Strip(clip.episode, context[-1], truth, pictures))
            tracker.advance(clip=clip.episode)
        shuffled, _ = self._dream(clip, self._settings["strip_steps"], other_actions)
        self._psnr["shuffled"].append(fidelity.psnr(truth, shuffled))
        self._changed.append(control.changed_share(clip.actions[-frames:], other_actions))
        self._episodes.append(clip.episode)
        tracker.advance(clip=clip.episode)

    def scores(self) -> dict[str, Any]:
        """Returns the scores over all clips added; see `evaluate`."""
        seed, manifest = self._settings["seed"], self._artifact.manifest
        psnr = {name: np.stack(values) for name, values in self._psnr.items()}
        ssim = {name: np.stack(values) for name, values in self._ssim.items()}
        steps = self._settings["strip_steps"]
        gain = control.gain(psnr[str(steps)], psnr["shuffled"], np.array(self._changed), seed=seed)
        return {
            "settings": self._settings,
            "artifact": {"id": report.artifact_id(manifest), "manifest": dict(manifest)},
            "episodes": self._episodes,
            "horizons": list(fidelity.horizons(self._settings["frames"])),
            "fidelity": {name: fidelity.summarise(psnr[name], ssim[name], seed=seed) for name in ssim},
            "control": {"steps": steps, **gain},
            "sound": self._sound_scores(seed) if manifest["channels"] and manifest["chunk_samples"] else None,
        }

    def _dream(self, clip: Clip, steps: int, actions: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        # The seed depends on the clip alone, so what differs between two dreams of it is only what was asked to.
        return rollout.dream(
            self._artifact,
            clip,
            context_chunks=self._settings["context_chunks"],
            frames=self._settings["frames"],
            actions=actions,
            steps=steps,
            guidance=self._settings["guidance"],
            seed=(self._settings["seed"] + len(self._episodes)) % 2**32,
        )

    def _add_pictures(self, name: str, truth: np.ndarray, pictures: np.ndarray) -> None:
        self._psnr[name].append(fidelity.psnr(truth, pictures))
        self._ssim[name].append(fidelity.ssim(truth, pictures))

    def _add_sound(self, name: str, sample_rate: int, truth: np.ndarray, heard: np.ndarray) -> None:
        self._distance[name].append(sound.log_spectral_distance(truth, heard))
        for tolerance, matches in self._matches[name].items():
            matches.append(sound.match_onsets(truth, heard, sample_rate, tolerance))

    def _sound_scores(self, seed: int) -> dict[str, Any]:
        return {
            name: sound.summarise(distances, self._matches.get(name, {}), seed=seed)
            for name, distances in self._distance.items()
        }


def _check(manifest: Mapping[str, Any], frames: int, steps: Sequence[int], seed: int) -> None:
    if frames < control.SHORT:
        raise ValueError(f"frames is {frames}; dream at least {control.SHORT}")
    if not steps or len(set(steps)) != len(steps):
        raise ValueError(f"steps is {list(steps)}; name one or more, each once")
    for count in steps:
        rollout.check_sampling(manifest, count, seed)


def define_flags() -> None:
    """Defines the flags of the verb."""
    flags.DEFINE_string("artifact", None, "directory of the exported stream", required=True)
    flags.DEFINE_string("data", None, "directory of the dataset", required=True)
    flags.DEFINE_string("out", None, "directory of the report", required=True)
    flags.DEFINE_integer("clips", 32, "number of test clips", lower_bound=2)
    flags.DEFINE_integer("context_chunks", 8, "chunks of each recording that are shown first", lower_bound=1)
    flags.DEFINE_integer("frames", 64, "frames to dream after them", lower_bound=control.SHORT)
    flags.DEFINE_list("steps", ["1", "2", "4"], "numbers of denoising steps, separated by commas")
    flags.DEFINE_float("guidance", 1.0, "guidance strength; 1 is none")
    flags.DEFINE_integer("seed", 0, "seed of the streams and of the bootstrap", lower_bound=0)


def main(argv: Sequence[str]) -> None:
    """Runs the verb with absl's flags."""
    if len(argv) > 1:
        raise ValueError(f"unknown argument {argv[1]!r}; give flags only, see --help")
    values = flags.FLAGS
    if not all(part.strip().isdigit() for part in values.steps):
        raise ValueError(f"--steps is {','.join(values.steps)!r}; give numbers, as in --steps=1,2,4")
    evaluate(
        values.artifact,
        values.data,
        values.out,
        clips=values.clips,
        context_chunks=values.context_chunks,
        frames=values.frames,
        steps=tuple(int(part) for part in values.steps),
        guidance=values.guidance,
        seed=values.seed,
    )


if __name__ == "__main__":
    define_flags()
    cli_errors.run(main)
