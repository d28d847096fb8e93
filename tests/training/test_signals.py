"""The first signal asks, the second one insists, and the former handlers come back."""

import os
import signal
import threading

import pytest

from pixr1_jax.training.signals import stop_on_signal


@pytest.fixture(autouse=True)
def former_handlers():
    """Installs known handlers around each test and puts the runner's own back."""
    received = []
    own = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in own:
        signal.signal(number, lambda number, frame: received.append(number))
    yield received
    for number, handler in own.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_sets_the_flag_only(number, former_handlers):
    with stop_on_signal() as stop:
        assert not stop.requested
        assert not stop.requested_anywhere(3)
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.requested_anywhere(3)
    assert former_handlers == []


@pytest.mark.parametrize(
    ("first", "second", "error"),
    [
        (signal.SIGTERM, signal.SIGINT, KeyboardInterrupt),
        (signal.SIGINT, signal.SIGTERM, SystemExit),
        (signal.SIGTERM, signal.SIGTERM, SystemExit),
    ],
)
def test_the_second_signal_raises(first, second, error):
    with pytest.raises(error) as raised, stop_on_signal():
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), second)
    if error is SystemExit:
        assert raised.value.code == 143


def test_former_handlers_come_back_after_an_error(former_handlers):
    with pytest.raises(RuntimeError), stop_on_signal():
        raise RuntimeError
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    assert former_handlers == [signal.SIGTERM, signal.SIGINT]


def test_outside_the_main_thread_it_says_so():
    errors = []

    def enter():
        try:
            with stop_on_signal():
                pass
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert "main thread" in errors[0]
