"""How long a run takes to start, with nothing compiled and with everything: `python benchmarks/startup.py`.

Trains configs/quickstart.py:smoke for one step in new processes, by turns with an empty compilation cache and with the
one that such a process has left, and writes benchmarks/results/startup.json. Seconds are of the whole process: imports,
data, model, one step, a checkpoint.
"""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from pixr1_jax.benchmarks import results

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = "configs/quickstart.py:smoke"
REPEATS = 3


def pixr1(*arguments: str) -> float:
    """Runs a verb; seconds."""
    start = time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-m", "pixr1_jax.cli", *arguments]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Measures and writes."""
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        workdir, cache = pathlib.Path(folder) / "run", pathlib.Path(folder) / "compiled"
        pixr1("data", "build", f"--config={CONFIG}", f"--workdir={workdir}")
        for _ in range(REPEATS):
            shutil.rmtree(cache, ignore_errors=True)
            for kind in seconds:
                shutil.rmtree(workdir / "train", ignore_errors=True)
                seconds[kind].append(
                    pixr1(
                        "train",
                        f"--config={CONFIG}",
                        f"--workdir={workdir}",
                        "--config.train.steps=1",
                        f"--config.compilation_cache={cache}",
                    )
                )
    table = results.provenance("python benchmarks/startup.py") | {
        "seconds": {kind: [round(value, 2) for value in values] for kind, values in seconds.items()},
        "warm_over_cold": round(statistics.median(seconds["warm"]) / statistics.median(seconds["cold"]), 3),
    }
    text = json.dumps(table, indent=1) + "\n"
    path = ROOT / "benchmarks" / "results" / "startup.json"
    path.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
