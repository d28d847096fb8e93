"""The command `pixr1 VERB ...`: finds the verb's module and runs it as `python -m pixr1_jax.VERB` would.

Nothing but the chosen verb is imported, so help is quick and the flags of two verbs never meet.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import runpy
import sys
from collections.abc import Mapping

VERBS: Mapping[str, str] = {
    "data": "build a dataset, or inspect one: data build, data inspect DIR",
    "train": "train a world model on a dataset",
    "distill": "turn a trained model into one that needs 1 to 4 steps a chunk",
    "export": "write a model as an artifact that runs without its code",
    "stream": "run an artifact and write what it dreams as a film with sound",
    "evaluate": "score an artifact against held-out clips",
    "plan": "what a step needs of a TPU slice: memory, collectives, bounds, with no TPU",
    "bench": "what attention costs: bench kernels, timed here or estimated for a TPU with --aot",
    "launch": "write or start a job: a GKE JobSet, a script for queued resources, or local processes",
    "sweep": "run or write the trials of a config's sweep(), and report on them",
    "quickstart": "do all of this at a small scale: data, train, distill, export, stream, evaluate",
}


def main() -> None:
    """Runs the verb that the command line names; always ends the process."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        raise SystemExit(0)
    verb = arguments[0]
    if verb == "--version":
        print(f"pixr1 {_version()}")
        raise SystemExit(0)
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(VERBS)}"
        print(f"error: pixr1 has no verb {verb!r}; {hint}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv = [f"pixr1 {verb}", *arguments[1:]]
    # As the main module, because absl takes the help text and the flags to list from that one.
    runpy.run_module(f"pixr1_jax.{verb}", run_name="__main__", alter_sys=True)


def usage() -> str:
    """Returns the help text: one line a verb."""
    width = max(map(len, VERBS))
    lines = "\n".join(f"  {verb:<{width}}  {line}" for verb, line in VERBS.items())
    return f"usage: pixr1 VERB [arguments]\n\n{lines}\n\npixr1 VERB --help lists the flags of a verb."


def _version() -> str:
    try:
        return importlib.metadata.version("pixr1-jax")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed; run pip install -e .)"


if __name__ == "__main__":
    main()
