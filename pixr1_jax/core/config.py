"""Configurations: from the command line, into frozen dataclasses, and to and from JSON.

A configuration is a Python file with `get_config() -> ConfigDict`, or `get_config(argument)` for
`--config=file.py:argument`. `--config.section.field=value` overrides a field. What uses a section takes plain
arguments or a frozen dataclass, made with `freeze`. Sequences in a configuration are tuples.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import difflib
import hashlib
import json
import os
import pathlib
import runpy
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import ml_collections
from absl import app, flags
from ml_collections import config_flags

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration is missing, or a field of it is unknown, missing or of the wrong type."""


def define_flags() -> None:
    """Defines --config and --workdir; call it from a verb's `define_flags`."""
    config_flags.DEFINE_config_file(
        "config", None, "The configuration, FILE.py or FILE.py:ARGUMENT; --config.FIELD=VALUE overrides a field."
    )
    flags.DEFINE_string("workdir", None, "Folder of the run; everything it makes goes there.")
    # Else the verb's --help would leave them out, since they are defined in this module and not in the main one.
    for name in ("config", "workdir"):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags; for `absl.app.run(main, flags_parser=parse_flags)`.

    As absl's own parser, but an override that names no field ends the process with one line.

    Args:
        argv: the whole command line, the program's name first.

    Returns:
        The arguments that are no flags, the program's name first.
    """
    try:
        return app.parse_flags_with_usage(list(argv))
    except (AttributeError, KeyError) as error:
        # ml_collections gives the repr of another message: the field in quotes, and below it a near name if any.
        lines = str(error).replace("\\'", "'").split("\\n")
        message = "; ".join(line.strip("'\" ") for line in lines)
        print(f"error: --config or an override of it cannot be used: {message}", file=sys.stderr)
        raise SystemExit(1) from error


def flag_config() -> ml_collections.ConfigDict:
    """Returns the configuration of the flags, locked.

    Raises:
        ConfigError: --config is missing or its file cannot be loaded.
    """
    config = flags.FLAGS.config
    if config is None:
        raise ConfigError("--config is missing; give a configuration file, as in --config=configs/quickstart.py")
    try:
        config.to_dict()
    except OSError as error:
        raise ConfigError(f"--config cannot be loaded: {error.__cause__ or error}; give FILE.py:ARGUMENT") from error
    return config


def flag_source() -> tuple[str, dict[str, Any]]:
    """Returns what the configuration of the flags was made from: FILE.py:ARGUMENT, and the values that override it.

    The values are by the path of their field, without "config.".

    Raises:
        ConfigError: --config is missing.
    """
    flag_config()
    flag = flags.FLAGS["config"]
    return config_flags.get_config_filename(flag), dict(config_flags.get_override_values(flag))


def flag_workdir() -> pathlib.Path:
    """Returns the folder given by --workdir.

    Raises:
        ConfigError: the flag is missing.
    """
    if not flags.FLAGS.workdir:
        raise ConfigError("--workdir is missing; give a folder for what the run makes, as in --workdir=runs/first")
    return pathlib.Path(flags.FLAGS.workdir)


def to_plain(config: Any) -> Any:
    """Returns a ConfigDict or a part of one as JSON-able dicts, lists, strings, numbers, booleans and None.

    Raises:
        ConfigError: a value is none of these; the message names its field.
    """
    return _plain(config, "config")


def _plain(value: Any, path: str) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if value - value != 0:
            raise ConfigError(f"{path} is {value}, which JSON has no word for; use a finite number")
        return value
    if isinstance(value, ml_collections.ConfigDict | Mapping):
        return {str(name): _plain(one, f"{path}.{name}") for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, f"{path}[{index}]") for index, one in enumerate(value)]
    raise ConfigError(f"{path} is a {type(value).__name__}; use numbers, strings, booleans, tuples and sections")


def beside(file: str, name: str) -> ml_collections.ConfigDict:
    """Returns what another configuration file in the folder of `file` gives, for one that changes little of it.

    Configurations are files and no package, so they cannot import one another from wherever they are used.

    Args:
        file: `__file__` of the caller.
        name: the other file, `FILE.py` or `FILE.py:ARGUMENT`.
    """
    name, _, argument = name.partition(":")
    found = runpy.run_path(str(pathlib.Path(file).with_name(name)))["get_config"]
    return found(argument) if argument else found()


def fingerprint(config: Any) -> str:
    """Returns 16 hex digits that depend on every name and value of a configuration, not on their order."""
    canonical = json.dumps(to_plain(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def save_config(config: ml_collections.ConfigDict, path: str | os.PathLike[str]) -> None:
    """Writes a configuration as JSON, under a temporary name first.

    Raises:
        ConfigError: a value has no JSON form.
    """
    text = json.dumps(to_plain(config), indent=2) + "\n"
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def load_config(path: str | os.PathLike[str]) -> ml_collections.ConfigDict:
    """Returns the configuration that `save_config` wrote, its sequences as tuples, locked.

    Raises:
        ConfigError: the file is missing or holds no configuration.
    """
    try:
        found = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; give the folder of a run that was started") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no configuration ({error}); write it again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is no configuration but a {type(found).__name__}; write it again")
    return ml_collections.ConfigDict(_with_tuples(found)).lock()


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_tuples(one) for name, one in value.items()}
    return tuple(_with_tuples(one) for one in value) if isinstance(value, list) else value


def freeze(dataclass_type: type[T], section: Any, path: str, **given: Any) -> T:
    """Builds a frozen dataclass from a section of a configuration, and so on for fields that are dataclasses.

    Fields may be annotated with bool, int, float, str, None, unions of them, Literal, tuple, Mapping, Any and
    dataclasses. An integer is taken for a float; nothing else is converted but lists to tuples.

    Args:
        dataclass_type: what to build.
        section: a ConfigDict or mapping with one entry a field; fields with a default may be left out.
        path: where the section is, as in "config.data"; begins every message.
        **given: fields that are not in the section but passed as they are.

    Raises:
        ConfigError: a field is unknown, missing or of another type, or the dataclass refuses its value.
    """
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, dataclass_type)) if field.init}
    known = {name: field for name, field in fields.items() if name not in given}
    names = ", ".join(known) or "no fields"
    if not isinstance(section, ml_collections.ConfigDict | Mapping):
        raise ConfigError(f"{path} is {section!r}; make it a section with {names}")
    for name in section:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{path}.{name} is unknown; {path} has {names}{hint}")
    missing = [name for name, field in known.items() if name not in section and _required(field)]
    if missing:
        raise ConfigError(f"{path}.{missing[0]} is missing; {path} has {names}")
    hints = typing.get_type_hints(dataclass_type)
    values = {name: _convert(hints[name], section[name], f"{path}.{name}") for name in known if name in section}
    try:
        return dataclass_type(**values, **given)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, path: str) -> Any:
    """Returns the value as the annotation wants it, or raises ConfigError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return freeze(typing.cast(type, hint), value, path)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, path)
    if origin is typing.Literal:
        if any(type(value) is type(one) and value == one for one in arguments):
            return value
        raise ConfigError(f"{path} is {value!r}; use one of {', '.join(map(repr, arguments))}")
    if hint is tuple or origin is tuple:
        return _convert_tuple(arguments, value, path)
    if hint in (dict, Mapping) or origin in (dict, collections.abc.Mapping):
        return _convert_mapping(arguments, value, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = type(None) if hint is None else hint
    # A boolean is an int in Python, and never what a configuration means by one.
    if isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)):
        return value
    raise _wrong_type(path, value, "None" if wanted is type(None) else wanted.__name__)


def _convert_union(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    """Takes the first choice that fits; one that fits without conversion comes before."""
    exact = [choice for choice in choices if isinstance(choice, type) and type(value) is choice]
    others = [choice for choice in choices if choice not in exact and choice is not type(None)]
    errors = []
    for choice in exact + others:
        try:
            return _convert(choice, value, path)
        except ConfigError as error:
            errors.append(error)
    # With one choice beside None its own message is the clearest.
    if len(errors) == 1:
        raise errors[0]
    raise _wrong_type(path, value, " or ".join(getattr(choice, "__name__", str(choice)) for choice in choices))


def _convert_tuple(items: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong_type(path, value, "tuple")
    if not items:
        return tuple(value)
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise ConfigError(f"{path} has {len(value)} items; give {len(items)}")
    return tuple(_convert(item, one, f"{path}[{i}]") for i, (item, one) in enumerate(zip(items, value, strict=True)))


def _convert_mapping(arguments: tuple[Any, ...], value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, ml_collections.ConfigDict | Mapping):
        raise _wrong_type(path, value, "section")
    hint = arguments[1] if arguments else Any
    return {str(name): _convert(hint, one, f"{path}.{name}") for name, one in value.items()}


def _wrong_type(path: str, value: Any, wanted: str) -> ConfigError:
    return ConfigError(f"{path} is {value!r} ({type(value).__name__}); give a value of type {wanted}")
