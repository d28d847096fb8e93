"""Compiles for TPU generations with no TPU, and reads the compiler's estimate of what a kernel costs.

The estimate is libtpu's static profile of the compiled instructions. It counts loops whose trips depend on data as not
taken, so kernels are estimated with static loops; it lets fetches run beside each other without a cap on HBM bandwidth,
so a time is the larger of the estimate and of the bytes over the bandwidth; and nobody has checked it against silicon
here. It ranks and guards, no more.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from pixr1_jax.core.chips import CHIPS, Chip


class CompileError(ValueError):
    """A program could not be compiled or estimated for a chip: refused, aborted or too slow."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one program costs on one chip, by the compiler's account.

    Attributes:
      cycles: Estimated cycles.
      hbm: Bytes read and written in HBM.
      vmem: Bytes of VMEM that the largest kernel holds.
    """

    cycles: float
    hbm: float
    vmem: int

    def at(self, chip: Chip, flops: float) -> dict[str, Any]:
        """Returns times in microseconds for each head and the share of the peak in percent, as numbers for a report.

        Args:
          chip: The chip that it was estimated for; the program has as many heads as that has cores.
          flops: Useful operations of one head.
        """
        estimate, roofline = (
            1e6 * amount / rate / chip.cores for amount, rate in ((self.cycles, chip.clock), (self.hbm, chip.bandwidth))
        )
        time = max(estimate, roofline)
        return {
            "cycles": round(self.cycles),
            "vmem_bytes": self.vmem,
            "hbm_bytes": round(self.hbm),
            "estimate_us": round(estimate, 3),
            "hbm_us": round(roofline, 3),
            "us": round(time, 3),
            "bound": "compute" if estimate >= roofline else "hbm",
            "mxu_percent": round(mxu_percent(chip, flops, chip.clock * time * 1e-6), 2),
        }


def mxu_percent(chip: Chip, flops: float, cycles: float) -> float:
    """Share of the chip's bf16 peak, in percent, of operations that take so many cycles."""
    return 100 * flops / (cycles * chip.flops_per_cycle)


def libtpu_version() -> str | None:
    """The installed version of libtpu, None where it is missing."""
    if importlib.util.find_spec("libtpu") is None:
        return None
    return importlib.metadata.version("libtpu")


def check_chips(names: str) -> list[str]:
    """Parses comma-separated chip names.

    Raises:
      ValueError: A name is unknown, or there is no libtpu to compile with.
    """
    chips = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in chips if name not in CHIPS]
    if unknown or not chips:
        raise ValueError(f"--aot={names}: take some of {','.join(CHIPS)}")
    if libtpu_version() is None:
        raise ValueError("--aot needs libtpu: pip install 'pixr1-jax[tpu]' (a TPU is not needed)")
    return chips


class Compiler(contextlib.AbstractContextManager):
    """Compiles programs in a process of its own, which is started again when it aborts or takes too long.

    Args:
      timeout: Seconds that one program may take.
    """

    def __init__(self, timeout: float = 300.0):
        self._timeout = timeout
        self._process: subprocess.Popen[str] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._profiled = False
        self._known: dict[str, dict[str, Any]] = {}

    def __exit__(self, *_) -> None:
        self._stop()

    def cost(self, chip: str, build: str, arguments: Mapping[str, Any]) -> Cost:
        """Estimates a program.

        Args:
          chip: A name of `CHIPS`.
          build: "module:function"; called with `arguments`, it returns (function, its arguments' shapes).
          arguments: Values that JSON knows; `dtype` by name.

        Raises:
          CompileError: It does not compile, the profiler aborts on it, or it takes too long.
        """
        answer = self._ask(chip, build, arguments, cost=True)
        return Cost(answer["cycles"], answer["hbm"], answer["vmem"])

    def check(self, chip: str, build: str, arguments: Mapping[str, Any]) -> int:
        """Compiles a program as it would be shipped; returns the bytes of HBM that it needs beside its arguments.

        Raises:
          CompileError: As in `cost`.
        """
        return self._ask(chip, build, arguments, cost=False)["temporary"]

    def step(self, config: Mapping[str, Any], step: str, **rest: Any) -> dict[str, Any]:
        """Compiles a step of a config, as `planned.compile_step` does.

        Raises:
          CompileError: The step cannot be made or compiled; a lack of memory is an answer and no error.
        """
        return self._remembered({"task": "step", "config": config, "step": step, **rest}, f"the step {step!r}")

    def kernels(self, config: Mapping[str, Any], step: str, chips: Sequence[str]) -> dict[str, Any]:
        """Compiles the kernels of a step of a config, as `planned.compile_kernels` does.

        Raises:
          CompileError: The step cannot be made; kernels that do not compile are in the answer.
        """
        request = {"task": "kernels", "config": config, "step": step, "chips": list(chips)}
        return self._remembered(request, f"kernels of the step {step!r}")

    def _ask(self, chip: str, build: str, arguments: Mapping[str, Any], *, cost: bool) -> dict[str, Any]:
        request = {"task": "program", "chip": chip, "build": build, "arguments": dict(arguments), "cost": cost}
        return self._remembered(request, f"{build} on {chip}", profiled=cost)

    def _remembered(self, request: Mapping[str, Any], what: str, *, profiled: bool = False) -> dict[str, Any]:
        line = json.dumps(request, sort_keys=True)
        if line not in self._known:
            self._known[line] = self._answer(line, profiled=profiled)
        answer = self._known[line]
        if "error" in answer:
            raise CompileError(f"{what}: {answer['error']}")
        return answer

    def _answer(self, request: str, *, profiled: bool) -> dict[str, Any]:
        if self._process is None or self._profiled != profiled:
            self._stop()
            self._start(profiled)
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(request + "\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], self._timeout)
        except BrokenPipeError:
            ready = [process.stdout]
        if not ready:
            self._stop()
            return {"error": f"took more than {self._timeout:g} s"}
        line = process.stdout.readline()
        if line:
            return json.loads(line)
        status = process.wait()
        last = self._last_words()
        self._stop()
        return {"error": f"libtpu ended the process (status {status}): {last}"}

    def _start(self, profiled: bool) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pixr1-aot-")
        given = os.environ.get("LIBTPU_INIT_ARGS", "")
        flag = f" --xla_jf_dump_static_llo_profile_to={self._folder.name}" if profiled else ""
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",  # do not ask a cloud's metadata server what machine this is
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # without it a second process with libtpu aborts
            "LIBTPU_INIT_ARGS": (given + flag).strip(),
        }
        self._profiled = profiled
        with open(os.path.join(self._folder.name, "stderr"), "wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pixr1_jax.benchmarks.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        if self._folder is not None:
            self._folder.cleanup()
        self._process = self._folder = None

    def _last_words(self) -> str:
        """The line of standard error that says why the process ended: the fatal one, or else the last."""
        assert self._folder is not None
        with open(os.path.join(self._folder.name, "stderr"), encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file if line.strip()]
        fatal = [line for line in lines if line.startswith("F") and "]" in line]
        return (fatal or lines or ["it said nothing"])[-1][:400]
