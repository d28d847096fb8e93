"""Configurations: frozen dataclasses from sections, fingerprints, JSON files."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from pixr1_jax.core import config as config_lib
from pixr1_jax.core.config import ConfigError, freeze

NAMES = st.from_regex(r"[a-z][a-z_]{2,8}_", fullmatch=True)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text())
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner.filter(lambda one: not isinstance(one, dict)), max_size=3).map(tuple),
        st.dictionaries(NAMES, inner, max_size=3),
    ),
    max_leaves=8,
)
CONFIGS = st.dictionaries(NAMES, VALUES, max_size=4)


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outer:
    steps: int
    inner: Inner
    kind: Literal["a", "b"] = "a"
    size: tuple[int, float] = (1, 2.0)
    scale: float | None = None
    either: int | str = 0
    on: bool = False
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    other: Inner | None = None
    free: Any = None

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError("steps is negative; use 0 or more")


def section(**fields: Any) -> ConfigDict:
    return ConfigDict({"steps": 3, "inner": {"rate": 0.5}, **fields}).lock()


def test_a_configuration_begins_with_another_of_its_folder(tmp_path, monkeypatch):
    (tmp_path / "first.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(variant='none'):\n    return ConfigDict({'a': 1, 'variant': variant})\n"
    )
    (tmp_path / "second.py").write_text(
        "from pixr1_jax.core.config import beside\n"
        "def get_config():\n    config = beside(__file__, 'first.py:x')\n    config.a = 2\n    return config\n"
    )
    monkeypatch.chdir(tmp_path.parent)  # wherever the command is given
    file = str(tmp_path / "second.py")
    assert config_lib.beside(file, "second.py").to_dict() == {"a": 2, "variant": "x"}
    assert config_lib.beside(file, "first.py").to_dict() == {"a": 1, "variant": "none"}


def test_freeze_builds_nested_dataclasses_with_defaults():
    built = freeze(Outer, section(inner={"rate": 2, "names": ["x", "y"]}, size=(4, 5), shares={"x": 1}), "config")
    assert built == Outer(3, Inner(2.0, ("x", "y")), size=(4, 5.0), shares={"x": 1.0})
    assert type(built.inner.rate) is float and type(built.size[1]) is float and type(built.shares["x"]) is float


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"scale": None}, None),
        ({"scale": 2}, 2.0),
        ({"either": 7}, 7),
        ({"either": "seven"}, "seven"),
        ({"on": True}, True),
        ({"kind": "b"}, "b"),
        ({"other": {"rate": 1.0}}, Inner(1.0)),
        ({"other": None}, None),
        ({"free": (1, "x")}, (1, "x")),
    ],
)
def test_freeze_takes(fields, expected):
    (name,) = fields
    found = getattr(freeze(Outer, section(**fields), "config"), name)
    assert found == expected and type(found) is type(expected)


def test_freeze_passes_given_fields_as_they_are():
    inner = Inner(1.0)
    assert freeze(Outer, {"steps": 1}, "config", inner=inner).inner is inner
    with pytest.raises(ConfigError, match="config.inner is unknown"):
        freeze(Outer, section(), "config", inner=inner)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"step": 3}, "config.train.step is unknown; config.train has steps, inner, .*; did you mean steps?"),
        ({"inner": {"rat": 3}}, "config.train.inner.rat is unknown; .* has rate, names; did you mean rate?"),
        ({"inner": {}}, "config.train.inner.rate is missing; config.train.inner has rate, names"),
        ({"inner": 3}, "config.train.inner is 3; make it a section with rate, names"),
        ({"steps": "3"}, "config.train.steps is '3' (str); give a value of type int"),
        ({"steps": 3.0}, "config.train.steps is 3.0 (float); give a value of type int"),
        ({"steps": True}, "config.train.steps is True (bool); give a value of type int"),
        ({"on": 1}, "config.train.on is 1 (int); give a value of type bool"),
        ({"scale": "x"}, "config.train.scale is 'x' (str); give a value of type float"),
        ({"either": 1.5}, "config.train.either is 1.5 (float); give a value of type int or str"),
        ({"kind": "c"}, "config.train.kind is 'c'; use one of 'a', 'b'"),
        ({"size": (1, 2, 3)}, "config.train.size has 3 items; give 2"),
        ({"size": (1, "x")}, "config.train.size[1] is 'x' (str); give a value of type float"),
        ({"inner": {"rate": 1.0, "names": "xy"}}, "config.train.inner.names is 'xy' (str); give a value of type tuple"),
        ({"shares": {"x": "y"}}, "config.train.shares.x is 'y' (str); give a value of type float"),
        ({"steps": -1}, "config.train: steps is negative; use 0 or more"),
    ],
)
def test_freeze_names_the_field(fields, message):
    pattern = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(ConfigError, match=f"^{pattern}$"):
        freeze(Outer, ConfigDict({"steps": 3, "inner": {"rate": 0.5}} | fields), "config.train")


def test_freeze_names_a_missing_field_before_the_dataclass_sees_it():
    with pytest.raises(ConfigError, match="^config.inner is missing; config has steps, inner, "):
        freeze(Outer, {"steps": 1}, "config")


@given(CONFIGS)
def test_saved_configs_load_equal(tmp_path_factory, fields):
    path = tmp_path_factory.mktemp("config") / "new" / "config.json"
    config = ConfigDict(fields)
    config_lib.save_config(config, path)
    loaded = config_lib.load_config(path)
    assert loaded.to_dict() == config.to_dict() and loaded.is_locked
    assert config_lib.fingerprint(loaded) == config_lib.fingerprint(config)
    assert [one.name for one in path.parent.iterdir()] == ["config.json"]


@given(CONFIGS, CONFIGS)
def test_fingerprint_is_that_of_the_values(one, other):
    def canonical(fields: dict[str, Any]) -> str:
        return json.dumps(fields, sort_keys=True)

    backwards = ConfigDict(dict(reversed(one.items())))
    assert config_lib.fingerprint(ConfigDict(one)) == config_lib.fingerprint(backwards)
    same = config_lib.fingerprint(ConfigDict(one)) == config_lib.fingerprint(ConfigDict(other))
    assert same == (canonical(one) == canonical(other))


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "config.a.b[1] is nan"), ({1}, "config.a.b[1] is a set; use numbers")]
)
def test_what_json_cannot_hold_is_named(tmp_path, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        config_lib.save_config(ConfigDict({"a": {"b": (1, value)}}), tmp_path / "config.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is no configuration (Exp"), ("[1]", "no configuration but a list")]
)
def test_damaged_config_files_are_named(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        config_lib.load_config(tmp_path / "config.json")


def test_missing_config_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="absent.json does not exist"):
        config_lib.load_config(tmp_path / "absent.json")
