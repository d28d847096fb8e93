"""bench data: rates of reading are counted right, and compared with what a step needs."""

import json
import time

import pytest

from data_pipelines.shards import open_dataset
from pixr1_jax.benchmarks import feed
from pixr1_jax.training import setup


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    tiny.write_clips(workdir)
    return tiny.experiment(), workdir


def test_decoding_by_size(run):
    config, workdir = run
    dataset = open_dataset(setup.shards_directory(workdir))
    spec = setup.model_config(config).tokens
    (one,) = feed.decoding({"": dataset}, spec, window_chunks=2, windows=5)
    info = dataset.clips("train")[0]
    assert (one.size, one.codec, one.windows) == (f"{info.width}x{info.height}", "zstd", 5)
    assert one.frames_per_second == pytest.approx(one.clips_per_second * 2 * spec.chunk_frames)


def test_feeding_counts_rows_over_the_time_they_took():
    times = []

    def batches():
        while True:
            time.sleep(0.02)
            times.append(time.perf_counter())
            yield None

    fed = feed.feeding(batches(), batch_rows=3, row_tokens=100, seconds=0.3)
    rate = 3 * (len(times) - 1) / (times[-1] - times[0])  # the first is not counted
    assert fed["rows_per_second"] == pytest.approx(rate, rel=0.2) and fed["cores"] < 0.9
    assert fed["tokens_per_second"] == pytest.approx(100 * fed["rows_per_second"])


def test_verdicts():
    fed = {"tokens_per_second": 3000.0, "tokens_per_second_per_core": 1500.0}
    assert feed.verdict(fed, 1000.0) == "this host feeds 3x the step: 3,000 of 1,000 tokens/s"
    assert feed.verdict(fed, 10_000.0).endswith("0.3x the step: 3,000 of 10,000 tokens/s; it takes 7 such cores")


def test_a_run_is_measured_against_its_own_training(run, tmp_path, capsys):
    config, workdir = run
    (workdir / "train").mkdir()
    lines = [{"step": 1, "perf/tokens_per_second": 10.0}, {"step": 2, "perf/tokens_per_second": 40.0}, {"step": 3}]
    (workdir / "train" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = feed.run(config, workdir, "test", out=tmp_path, needs=None, quick=True)
    assert json.loads((tmp_path / "data.json").read_text()) == report
    assert report["needed_tokens_per_second"] == 40.0 and "the step" in capsys.readouterr().out
