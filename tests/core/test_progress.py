"""Progress: a line now and then where there is no terminal, and nothing where it is not wanted."""

import io

import pytest

from pixr1_jax.core.progress import track


@pytest.mark.parametrize("shown", [True, False])
def test_lines_are_written_unless_nothing_is_to_be_shown(shown):
    file = io.StringIO()
    with track(3, "work", file=file, interval=0.0, shown=shown) as progress:
        for _ in range(3):
            progress.advance(loss=0.5)
    lines = file.getvalue().splitlines()
    if not shown:
        assert lines == []
        return
    assert len(lines) == 4  # one an item, and one at the end
    assert lines[0].startswith("work: 1/3, ") and lines[-1].startswith("work: 3/3, ") and lines[-1].endswith("loss=0.5")
