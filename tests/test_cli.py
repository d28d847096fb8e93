"""The command pixr1: help, version, mistakes, and how it reaches a verb."""

import ast
import importlib.util
import pathlib
import subprocess
import sys

import pytest

from pixr1_jax import cli

ROOT = pathlib.Path(cli.__file__).resolve().parents[1]

CONFIG = """
from ml_collections import ConfigDict

def get_config(argument=""):
    return ConfigDict({"name": argument or "none", "data": {"frames": 3, "scenarios": ("a", "b")}})
"""

VERB = """
from absl import app, flags
from pixr1_jax.core import config

def main(argv):
    print(config.flag_config().to_json(), config.flag_workdir())

if __name__ == "__main__":
    config.define_flags()
    app.run(main, flags_parser=config.parse_flags)
"""


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["pixr1", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return (ended.value.code, *capsys.readouterr())


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_help_lists_each_verb_on_one_line(monkeypatch, capsys, arguments):
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert code == 0 and err == ""
    for verb, line in cli.VERBS.items():
        assert sum(words.split(None, 1) == [verb, line] for words in out.splitlines()) == 1
    assert max(map(len, out.splitlines())) <= 100


def test_version_is_that_of_the_installed_package(monkeypatch, capsys):
    monkeypatch.setattr("importlib.metadata.version", {"pixr1-jax": "7.8.9"}.get)
    assert run(monkeypatch, capsys, "--version") == (0, "pixr1 7.8.9\n", "")


@pytest.mark.parametrize(("given", "hint"), [("trian", "did you mean train?"), ("xyz", "use one of data, train,")])
def test_unknown_verb_is_one_line(monkeypatch, capsys, given, hint):
    code, out, err = run(monkeypatch, capsys, given)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and repr(given) in err and hint in err


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_is_a_module_of_the_same_form(verb):
    spec = importlib.util.find_spec(f"pixr1_jax.{verb}")
    assert spec is not None and spec.origin is not None, f"pixr1_jax/{verb}.py does not exist"
    body = ast.parse(pathlib.Path(spec.origin).read_text()).body
    assert {"main", "define_flags"} <= {node.name for node in body if isinstance(node, ast.FunctionDef)}
    # Flags are not defined by an import, so that one verb can call the functions of another.
    assert ast.unparse(body[-1]).split("\n    ") == [
        "if __name__ == '__main__':",
        "define_flags()",
        "cli_errors.run(main)",
    ]


def pixr1(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pixr1_jax.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_verb_gets_its_own_arguments():
    done = pixr1("data", "sing", "--verify")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: pixr1 data takes `build` or `inspect DIR`, not sing")


def test_help_of_a_verb_lists_its_flags():
    done = pixr1("data", "--help")
    assert "pixr1 data build" in done.stdout
    for flag in ("--config:", "--workdir:", "--out:", "--png:"):
        assert flag in done.stdout


@pytest.fixture(scope="module")
def verb(tmp_path_factory):
    """Runs a verb that prints its configuration and folder; returns exit code, output and errors."""
    folder = tmp_path_factory.mktemp("verb")
    (folder / "settings.py").write_text(CONFIG)
    (folder / "verb.py").write_text(VERB)

    def call(*arguments: str) -> tuple[int, str, str]:
        command = [sys.executable, str(folder / "verb.py"), *arguments]
        env = {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env, check=False)
        return done.returncode, done.stdout, done.stderr

    return call


def test_overrides_and_argument_of_the_config(verb):
    code, out, err = verb(
        "--config=settings.py:smoke", "--workdir=a", "--config.data.frames=7", "--config.data.scenarios=('c',)"
    )
    assert code == 0, err
    assert '"name": "smoke"' in out and '"frames": 7' in out and '["c"]' in out and out.endswith(" a\n")


def test_the_last_config_and_workdir_count(verb):
    code, out, err = verb("--config=settings.py", "--workdir=a", "--config=settings.py:smoke", "--workdir=b")
    assert code == 0, err
    assert '"name": "smoke"' in out and out.endswith(" b\n")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--config=settings.py", "--config.data.frame=7"), ("frame", 'Did you mean "frames"')),
        (("--config=settings.py", "--config.dta.frames=7"), ("dta", 'Did you mean "data"')),
        (("--config=settings.py", "--config.data.frames=x"), ("config.data.frames=x", "invalid literal")),
        (("--config=absent.py", "--workdir=a"), ("absent.py", "No such file")),
        (("--workdir=a",), ("--config is missing",)),
        (("--config=settings.py",), ("--workdir is missing",)),
    ],
)
def test_mistakes_are_named(verb, arguments, parts):
    code, out, err = verb(*arguments)
    assert code == 1 and out == ""
    assert all(part in err for part in parts), err
