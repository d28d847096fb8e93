"""Control gain where its answer is known."""

import numpy as np
import pytest

from pixr1_jax.evaluation import control


def test_gain_of_known_differences():
    shuffled = np.full((3, 64), 20.0)
    true = shuffled + np.array([1.0, 2.0, 3.0])[:, None]
    true[:, 7] += 10
    scores = control.gain(true, shuffled, np.array([0.5, 1.0, 0.0]), seed=0)
    assert scores["over_horizons"]["mean"] == pytest.approx(2 + 10 / 4)
    assert scores["at_8"]["mean"] == pytest.approx(12)
    assert scores["at_8"]["low"] >= 11 and scores["at_8"]["high"] <= 13
    assert scores["at_horizons"]["64"]["mean"] == pytest.approx(2)
    assert scores["changed"] == 0.5


def test_ignored_actions_have_no_gain():
    psnr = np.random.default_rng(0).uniform(10, 40, (5, 8))
    scores = control.gain(psnr, psnr.copy(), np.ones(5), seed=0)
    assert scores["over_horizons"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "clips": 5}


def test_donors_are_a_rotation():
    donors = [control.donor(index, 4) for index in range(4)]
    assert sorted(donors) == [0, 1, 2, 3] and all(donors[index] != index for index in range(4))
    with pytest.raises(ValueError, match="2 clips or more"):
        control.donor(0, 1)


def test_changed_share():
    own = np.array([[0, 1], [1, 1], [0, 0], [1, 0]], np.float32)
    assert control.changed_share(own, own) == 0
    assert control.changed_share(own, own[::-1]) == 1
    assert control.changed_share(np.zeros((4, 0)), np.zeros((4, 0))) == 0


def test_short_dreams_are_refused():
    with pytest.raises(ValueError, match="at least 8 frames"):
        control.gain(np.zeros((2, 4)), np.zeros((2, 4)), np.ones(2), seed=0)
