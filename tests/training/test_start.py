"""Starting again: the step is compiled once, and the next process finds it compiled."""

import shutil

import pytest


@pytest.fixture
def start(tiny, processes, tmp_path):
    """Trains to a number of steps, with the cache that the config names."""
    tiny.write_clips(tmp_path / "clips", clips=4)

    def start(name: str):
        shutil.copytree(tmp_path / "clips" / "shards", tmp_path / name / "shards")
        fields = tiny.EXPERIMENT | {"train.steps": 3, "pack.batch_rows": 2, "compilation_cache": tmp_path / "compiled"}
        command = ["-m", "pixr1_jax.train", "--config=configs/quickstart.py:smoke", f"--workdir={tmp_path / name}"]
        command += [f"--config.{name}={value}" for name, value in fields.items()]
        variables = processes.environment(1, JAX_DEBUG_LOG_MODULES="jax._src.compiler", JAX_COMPILATION_CACHE_DIR="")
        return processes.Job(command, tmp_path / "logs", 1, variables)

    return start


def test_the_step_is_compiled_once_and_found_by_the_next_process(start, tmp_path):
    hit = "Persistent compilation cache hit for 'jit_train_step'"
    with start("first") as job:
        job.finish()
        assert hit not in job.log(0)
    compiled = sorted(path.name for path in (tmp_path / "compiled").glob("jit_train_step-*-cache"))
    assert len(compiled) == 1
    with start("second") as job:
        job.finish()
        assert job.log(0).count(hit) == 1
    assert sorted(path.name for path in (tmp_path / "compiled").glob("jit_train_step-*-cache")) == compiled
