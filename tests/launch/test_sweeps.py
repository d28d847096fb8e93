import pytest

from launch import sweeps
from launch.sweeps import chain, product, values, zipped


def test_combinators():
    rates, widths = values("rate", 1, 2), values("width", 8, 16, 32)
    assert rates == [{"rate": 1}, {"rate": 2}]
    assert product(rates, widths) == [{"rate": rate, "width": width} for rate in (1, 2) for width in (8, 16, 32)]
    assert zipped(rates, widths[:2]) == [{"rate": 1, "width": 8}, {"rate": 2, "width": 16}]
    assert chain([{}], rates, widths[:1]) == [{}, {"rate": 1}, {"rate": 2}, {"width": 8}]
    assert product(zipped(rates, widths[1:]), values("seed", 0, 1)) == [
        {"rate": rate, "width": width, "seed": seed} for rate, width in ((1, 16), (2, 32)) for seed in (0, 1)
    ]
    # Generators are as good as lists.
    assert product((change for change in rates), iter(widths)) == product(rates, widths)


def test_what_cannot_be_combined_is_said():
    with pytest.raises(ValueError, match="change rate"):
        product(values("rate", 1), values("rate", 2))
    with pytest.raises(ValueError, match="2, 3 changes"):
        zipped(values("rate", 1, 2), values("width", 1, 2, 3))
    with pytest.raises(ValueError, match="gives rate no value"):
        values("rate")


def test_names_are_short_tell_all_apart_and_are_file_names():
    sweep = chain([{}], product(values("train.optimizer.learning_rate", 1e-3, 2e-3), values("model.width", 64)))
    assert sweeps.names(sweep) == ["base", "learning_rate=0.001,width=64", "learning_rate=0.002,width=64"]
    # Both end in the same word.
    sweep = zipped(
        values("train.steps", 10, 20), values("distill.steps", 1, 2), values("export.platforms", ("a/b",), ())
    )
    assert sweeps.names(sweep) == [
        "train.steps=10,distill.steps=1,platforms=a-b",
        "train.steps=20,distill.steps=2,platforms=none",
    ]
    assert sweeps.names(values("export.steps", (1, 2), (4,))) == ["steps=1x2", "steps=4"]
    # A field that ends another one's path needs its whole.
    assert sweeps.names([{"steps": 1, "train.steps": 2}]) == ["steps=1,train.steps=2"]


@pytest.mark.parametrize("choices", [(1, 1), ("a/b", "a:b")])
def test_two_trials_of_one_name_are_refused(choices):
    with pytest.raises(ValueError, match="two trials"):
        sweeps.names(values("name", *choices))
