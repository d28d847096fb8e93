"""The ledger of a run adds up to its time, and knows what was lost to kills."""

import json

import jax
import pytest

from pixr1_jax.training.goodput import Goodput, LedgerError, read_account


class Clock:
    """One clock for durations and dates, moved by hand."""

    def __init__(self):
        self.time = 1000.0

    def __call__(self):
        return self.time


@pytest.fixture
def clock():
    return Clock()


def start(directory, clock, step):
    ledger = Goodput(directory, clock=clock, now=clock)
    clock.time += 5.0  # init
    ledger.resume(step)
    return ledger


def train(ledger, clock, steps, *, step_seconds=1.0, log_every=5):
    """Trains steps (first, last], each with 0.25 s of waiting for data, and a line every `log_every` steps."""
    first, last = steps
    for step in range(first + 1, last + 1):
        ledger.enter("data_wait")
        clock.time += 0.25
        ledger.enter("compile" if step == first + 1 else "step")
        clock.time += 3.0 if step == first + 1 else step_seconds
        ledger.enter("idle")
        if step % log_every == 0:
            ledger.write(step)


def test_time_is_divided_without_a_rest(tmp_path, clock):
    ledger = start(tmp_path, clock, 0)
    train(ledger, clock, (0, 10))
    ledger.enter("save")
    clock.time += 2.0
    ledger.close(10, finished=True)
    account = read_account(tmp_path)
    seconds = {"init": 5.0, "compile": 3.0, "data_wait": 2.5, "step": 9.0, "save": 2.0, "idle": 0.0}
    assert account.seconds == pytest.approx(seconds)
    assert account.total == pytest.approx(clock.time - 1000.0)
    assert account.goodput == pytest.approx(9.0 / 21.5)
    assert (account.down, account.lost, account.lost_steps, account.starts, account.step) == (0, 0, 0, 1, 10)
    assert ledger.account == account


def test_a_kill_loses_the_steps_since_the_checkpoint_and_the_time_until_the_restart(tmp_path, clock):
    ledger = start(tmp_path, clock, 0)
    train(ledger, clock, (0, 23))  # killed here: the last line is that of step 20
    clock.time += 100.0
    ledger = start(tmp_path, clock, 12)
    lines = [json.loads(line) for line in (tmp_path / "goodput.jsonl").read_text().splitlines()]
    lost = lines[-1]
    # Lines end at steps 5, 10, 15 and 20: of the third, 3 of 5 steps are run again, and all of the fourth.
    assert (lost["lost_steps"], lost["lost_seconds"]) == (8, pytest.approx(8.0))
    train(ledger, clock, (12, 20))
    ledger.close(20, finished=True)
    account = read_account(tmp_path)
    # Three steps without a line and 100 s without a process.
    assert account.down == pytest.approx(3 * 1.25 + 100.0)
    assert account.total == pytest.approx(clock.time - 1000.0)
    assert account.lost == pytest.approx(8.0) and account.lost_steps == 8 and account.starts == 2
    assert account.goodput == pytest.approx((19.0 + 7.0 - 8.0) / account.total)
    table = {line.split()[0]: line.split()[1:] for line in account.table().splitlines()}
    assert table["goodput"] == ["11.8%", "of", "152.8", "s"]
    assert table["lost"] == ["8.0", "s", "5.2%", "steps", "run", "again:", "8"]
    assert table["down"] == ["103.8", "s", "67.9%", "restarts:", "1"]
    assert "save" not in table


def test_what_was_lost_once_is_not_lost_again(tmp_path, clock):
    train(start(tmp_path, clock, 0), clock, (0, 10))
    train(start(tmp_path, clock, 5), clock, (5, 10))
    ledger = start(tmp_path, clock, 8)
    assert ledger.account.lost_steps == 5 + 2
    # The line of steps 6 to 10 had 4 s of steps beside the compilation.
    assert ledger.account.lost == pytest.approx(5.0 + 2 / 5 * 4.0)


def test_time_after_a_finished_run_is_no_loss(tmp_path, clock):
    for finished, down in ((False, 50.0), (True, 0.0)):
        folder = tmp_path / str(finished)
        ledger = start(folder, clock, 0)
        ledger.close(0, finished=finished)
        clock.time += 50.0
        start(folder, clock, 0)
        assert read_account(folder).down == pytest.approx(down)


def test_a_torn_last_line_goes_and_damage_is_named(tmp_path, clock):
    train(start(tmp_path, clock, 0), clock, (0, 5))
    path = tmp_path / "goodput.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"event": "spe')
    assert read_account(tmp_path).step == 5
    start(tmp_path, clock, 5)
    assert path.read_text().startswith(whole + '{"event": "start"')
    for line in ("???", '{"event": "spent", "time": 1, "step": 2, "seconds": {"sleep": 1}}', "[]", "{}"):
        path.write_text(line + "\n" + whole)
        with pytest.raises(LedgerError, match=r"goodput\.jsonl: line 1 is no record"):
            Goodput(tmp_path)
        assert path.read_text() == line + "\n" + whole


def test_mistakes_are_clear(tmp_path, clock):
    ledger = start(tmp_path / "run", clock, 0)
    with pytest.raises(KeyError):
        ledger.enter("lunch")
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be written"):
        Goodput(tmp_path / "file" / "run")
    with pytest.raises(LedgerError, match="no such file"):
        read_account(tmp_path)


def test_only_the_first_process_writes_and_all_measure(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    ledger = start(tmp_path / "run", clock, 0)
    ledger.enter("step")
    clock.time += 2.0
    assert ledger.write(1)["step"] == 2.0
    ledger.close(1, finished=True)
    assert not (tmp_path / "run").exists()
