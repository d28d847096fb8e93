"""How long a run takes to start, with nothing compiled and with everything: `python benchmarks/startup.py`.

Trains configs/quickstart.py:smoke for one step in new processes, by turns with an empty compilation cache and with the
one that such a process has left, and writes benchmarks/results/startup.json. Seconds are of the whole process: imports,
data, model, one step, a checkpoint; of the clock, and of the processor, which a shared machine disturbs less.
"""

import json
import os
import pathlib
import resource
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


def pixr1(*arguments: str) -> tuple[float, float]:
    """Runs a verb; seconds of the clock and of the processor."""
    start, before = time.perf_counter(), processor_seconds()
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-m", "pixr1_jax.cli", *arguments]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start, processor_seconds() - before


def processor_seconds() -> float:
    """Of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measures and writes."""
    seconds: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": []}
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
    table = results.provenance("python benchmarks/startup.py")
    for place, name in enumerate(("seconds", "processor_seconds")):
        columns = {kind: [round(pair[place], 2) for pair in pairs] for kind, pairs in seconds.items()}
        warm, cold = (statistics.median(columns[kind]) for kind in ("warm", "cold"))
        table[name] = columns | {"warm_over_cold": round(warm / cold, 3)}
    text = json.dumps(table, indent=1) + "\n"
    path = ROOT / "benchmarks" / "results" / "startup.json"
    path.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
