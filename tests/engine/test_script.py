"""Action scripts: what is held when, and errors that say which line."""

import fractions

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixr1_jax.engine import script as script_lib

NAMES = ("left", "right", "jump")


def _parse(tmp_path, text, names=NAMES):
    path = tmp_path / "keys.txt"
    path.write_text(text, encoding="utf-8")
    return script_lib.parse(path, names)


def test_holds_last_until_the_next_line(tmp_path):
    script = _parse(tmp_path, "# demo\n\n0.5 right\n1.0 right+jump\n1.5 -\n")
    actions = script.actions(8, fractions.Fraction(4))
    expected = [[0, 0, 0]] * 2 + [[0, 1, 0]] * 2 + [[0, 1, 1]] * 2 + [[0, 0, 0]] * 2
    assert actions.dtype == np.float32
    np.testing.assert_array_equal(actions, expected)


def test_prompts_do_not_change_the_keys(tmp_path):
    script = _parse(tmp_path, "0 left\n0.3 prompt: night rain\n0.9 prompt:  day \n")
    assert script.prompts == (
        (fractions.Fraction(3, 10), "night rain"),
        (fractions.Fraction(9, 10), "day"),
    )
    assert script.actions(5, fractions.Fraction(10))[:, 0].all()
    # Chunks of 4 frames at 10 Hz start at 0, 0.4, 0.8 and 1.2 s.
    assert script.prompts_by_chunk(4, fractions.Fraction(10)) == {1: "night rain", 3: "day"}


def test_axes_take_values(tmp_path):
    script = _parse(tmp_path, "0 turn=-0.5+go\n", ("go", "turn"))
    np.testing.assert_array_equal(script.actions(1, fractions.Fraction(30)), [[1, -0.5]])


@given(tenths=st.integers(0, 400), rate=st.sampled_from([10, 12, 24, 30, 60]))
def test_times_are_exact(tenths, rate):
    script = script_lib.Script(("go",), ((fractions.Fraction(f"{tenths // 10}.{tenths % 10}"), (1.0,)),))
    held = script.actions(3000, fractions.Fraction(rate))[:, 0]
    expected = [10 * frame >= tenths * rate for frame in range(3000)]
    np.testing.assert_array_equal(held, expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 right\n1 fly", r"keys.txt line 2: unknown key 'fly'; use left, right, jump"),
        ("soon right", r"line 1: 'soon' is no time"),
        ("-1 right", r"line 1: '-1' is no time"),
        ("1/0 right", r"line 1: '1/0' is no time"),
        ("2 right\n1 left", r"line 2: time 1 is before"),
        ("1", r"line 1: nothing after the time"),
        ("1 right+right", r"line 1: key 'right' occurs twice"),
        ("1 right=fast", r"line 1: right=fast is no number"),
        ("1 right=nan", r"line 1: right=nan is no number"),
    ],
)
def test_errors_name_file_and_line(tmp_path, text, message):
    with pytest.raises(script_lib.ScriptError, match=message):
        _parse(tmp_path, text)


def test_binary_file(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(script_lib.ScriptError, match="no UTF-8 text"):
        script_lib.parse(path, NAMES)
