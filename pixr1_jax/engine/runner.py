"""Runs an artifact: an endless stream from files alone, with no model code (decision D17).

This file imports nothing but jax and numpy. Every artifact carries a copy of it, so that

    import runner
    stream = runner.Artifact.load(".").start(seed=0)
    stream.prompt("day")
    frames, sound = stream.step(actions)

is all that a server needs.
"""

import json
import pathlib
import zipfile

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

FORMAT = 1


class ArtifactError(ValueError):
    """An artifact that cannot be run; the message names the file and what to do."""


class Artifact:
    """A loaded artifact: weights on the device and one compiled program for each thing a stream can do.

    Attributes:
      manifest: What the artifact says of itself: sizes, rates, action names, step counts.
    """

    def __init__(self, manifest: dict, weights: dict, programs: dict):
        self.manifest = manifest
        self._weights = weights
        self._programs = programs

    @classmethod
    def load(cls, directory) -> "Artifact":
        """Loads an artifact directory for the default device.

        Raises:
          ArtifactError: A file is missing or damaged, the format is another one, or no program was exported for
            this platform.
        """
        root = pathlib.Path(directory)
        manifest = _read_manifest(root)
        platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        if platform not in manifest["programs"]:
            raise ArtifactError(
                f"{root}/manifest.json: this device is {platform!r} and there are programs for "
                f"{sorted(manifest['programs'])}; export for this platform"
            )
        programs = {name: _load_program(root / file) for name, file in manifest["programs"][platform].items()}
        try:
            with np.load(root / manifest["weights"]) as file:
                weights = {name: jnp.asarray(file[name]) for name in file.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ArtifactError(
                f"{root / manifest['weights']}: weights cannot be read ({error}); export again"
            ) from error
        return cls(manifest, weights, programs)

    def start(self, seed: int) -> "Stream":
        """A new stream. The same seed and the same calls give the same stream."""
        return Stream(self, self._programs["start"](np.uint32(seed)))

    def call(self, name: str, state: dict, *inputs):
        """Calls a program on a stream's state, which it consumes."""
        return self._programs[name](self._weights, state, *inputs)


class Stream:
    """One stream: prompts and actions in, frames and sound out.

    Sound is one hop late: what the k-th call returns covers the samples
    [k * chunk_samples - hop, (k + 1) * chunk_samples - hop) of the stream.
    """

    def __init__(self, artifact: Artifact, state: dict):
        self._artifact = artifact
        self._state = state
        manifest = artifact.manifest
        self._action_shape = (manifest["chunk_frames"], len(manifest["action_names"]))
        self._frame_shape = (manifest["chunk_frames"], manifest["height"], manifest["width"], 3)
        self._sound_shape = (manifest["hop"] + manifest["chunk_samples"], manifest["channels"])

    def prompt(self, text: str) -> None:
        """Puts a text in force from the next chunk on; an empty text leaves none in force."""
        data = text.encode()
        longest = self._artifact.manifest["text_bytes"]
        if len(data) > longest:
            raise ValueError(f"prompt of {len(data)} bytes; the model reads at most {longest}: {text!r}")
        padded = np.zeros(longest, np.uint8)
        padded[: len(data)] = np.frombuffer(data, np.uint8)
        self._state = self._artifact.call("prompt", self._state, padded, np.int32(len(data)))

    def observe(self, frames, sound, actions) -> np.ndarray:
        """Continues with a chunk of the real world.

        Args:
          frames: uint8 [chunk_frames, height, width, 3].
          sound: int16 [hop + chunk_samples, channels], one hop of look-back first.
          actions: float32 [chunk_frames, actions], held during these frames.

        Returns:
          Sound that is now complete, float32 [chunk_samples, channels].
        """
        frames = _checked("frames", frames, np.uint8, self._frame_shape)
        sound = _checked("sound", sound, np.int16, self._sound_shape)
        actions = _checked("actions", actions, np.float32, self._action_shape)
        self._state, heard = self._artifact.call("observe", self._state, frames, sound, actions)
        return np.asarray(heard)

    def step(self, actions, steps: int = 2, guidance: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Makes the next chunk and waits for it.

        Args:
          actions: float32 [chunk_frames, actions], held during this chunk.
          steps: Denoising steps, one of the manifest's `steps`.
          guidance: Guidance strength; 1 is none.

        Returns:
          Frames uint8 [chunk_frames, height, width, 3] and sound float32 [chunk_samples, channels] in [-1, 1].
        """
        if steps not in self._artifact.manifest["steps"]:
            raise ValueError(f"steps={steps} was not exported; the artifact has {self._artifact.manifest['steps']}")
        if not guidance > 0:
            raise ValueError(f"guidance={guidance}; use a number above 0, 1 for none")
        actions = _checked("actions", actions, np.float32, self._action_shape)
        self._state, frames, sound = self._artifact.call(f"step{steps}", self._state, actions, np.float32(guidance))
        return np.asarray(frames), np.asarray(sound)


def _checked(name: str, value, dtype, shape) -> np.ndarray:
    value = np.asarray(value)
    if value.shape != shape or value.dtype != dtype:
        raise ValueError(f"{name}: {value.dtype} {value.shape} given, {np.dtype(dtype)} {shape} needed")
    return value


def _read_manifest(root: pathlib.Path) -> dict:
    path = root / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such file; give the directory that `pixr1 export` wrote") from error
    except ValueError as error:
        raise ArtifactError(f"{path}: not JSON ({error}); export again") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise ArtifactError(f"{path}: format {found}, this runner reads {FORMAT}; export again")
    return manifest


def _load_program(path: pathlib.Path):
    try:
        exported = jax.export.deserialize(bytearray(path.read_bytes()))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: program is missing; export again") from error
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ArtifactError(
            f"{path}: jax {jax.__version__} cannot read this program ({reason}); export again"
        ) from error
    # Donation is recorded in the program but not applied by it; the state is the second argument of all but `start`.
    donated = (1,) if len(exported.in_avals) > 1 else ()
    return jax.jit(exported.call, donate_argnums=donated)
