"""A recipe's configuration from its defaults, a TOML file and flags; and back into TOML. No torch here."""

import difflib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from anysam.errors import OptionError

SECTIONS = ("data", "loop")

_STEPS, _EPOCHS = ("loop", "steps"), ("loop", "epochs")

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True)
class Setting:
    """A number, text or list that a recipe can be told. section: its table in TOML, "" for the recipe's own.
    item: type of its items where it is a list, whose length is `length` if that is fixed."""

    section: str
    name: str
    help: str
    default: Any
    choices: tuple[str, ...]
    kind: type
    item: type | None = None
    length: int | None = None

    @property
    def flag(self) -> str:
        """ "learning_rate" -> "--learning-rate"."""
        return f"--{self.name.replace('_', '-')}"


def settings_of(config: Any) -> list[Setting]:
    """All that a configuration class can be told: the recipe's own, then those of the data and of the run."""
    default = config()
    own = [_setting("", default, field) for field in fields(default) if field.name not in SECTIONS]
    for section in SECTIONS:
        part = getattr(default, section)
        own += [_setting(section, part, field) for field in fields(part)]
    return own


def _setting(section: str, config: Any, field: "Field[Any]") -> Setting:
    hint = get_type_hints(type(config))[field.name]
    kind, item, length = hint, None, None
    if arguments := get_args(hint):  # tuple[float, ...], tuple[float, float]
        kind, item, length = tuple, arguments[0], None if arguments[1] is ... else len(arguments)
    assert kind in (*_KINDS, tuple), f"{field.name} is of a type that neither TOML nor flags have: {hint}"
    value = getattr(config, field.name)
    words, choices = field.metadata["help"], field.metadata["choices"]
    return Setting(section, field.name, words, value, choices, kind, item, length)


def read_config(config: Any, path: Path | None, flags: Mapping[str, Any]) -> Any:
    """A configuration: the defaults of the class `config`, then what the TOML file at `path` says, then `flags`.

    The file has the recipe's own settings on top and the tables [data] and [loop]. flags: values by setting's name;
    None is one that is not given, other names are ignored. A number of steps replaces one of epochs that is a default,
    or for a flag the file's. Raises OptionError, with the file and the key, for a file
    that cannot be read and for a key, type or choice that the configuration does not have.
    """
    known = {(each.section, each.name): each for each in settings_of(config)}
    values: dict[tuple[str, str], Any] = {}
    for key, value in (_from_file(path) if path else {}).items():
        if key not in known:
            raise _unknown(path, key, known)
        where = f"{path}: [{key[0]}] {key[1]}" if key[0] else f"{path}: {key[1]}"
        values[key] = checked(where, value, known[key])
    values = _one_length(values)
    wanted = {
        key: checked(setting.flag, given, setting)
        for key, setting in known.items()
        if (given := flags.get(setting.name)) is not None
    }
    if _STEPS in wanted and wanted.get(_EPOCHS):
        raise OptionError(f"--steps {wanted[_STEPS]} and --epochs {wanted[_EPOCHS]:g} are two lengths; give one.")
    values |= _one_length(wanted)
    default = config()
    changes: dict[str, dict[str, Any]] = {section: {} for section in ("", *SECTIONS)}
    for (section, name), value in values.items():
        changes[section][name] = value
    parts = {section: replace(getattr(default, section), **changes[section]) for section in SECTIONS}
    return replace(default, **changes[""], **parts)


def _one_length(values: dict[tuple[str, str], Any]) -> dict[tuple[str, str], Any]:
    """Where a length in steps is given alone, it holds instead of one in epochs that is only a default."""
    return {_EPOCHS: 0.0} | values if _STEPS in values else values


def _unknown(path: Path | None, key: tuple[str, str], known: Mapping[tuple[str, str], Setting]) -> OptionError:
    section, name = key
    titles = {each: f"{each[1]} in [{each[0]}]" if each[0] else each[1] for each in known}
    same = [title for each, title in titles.items() if each[1] == name]
    near = difflib.get_close_matches(name, [each[1] for each in known], 1)
    near = same[:1] or [title for each, title in titles.items() if each[1] in near][:1]
    own = [each[1] for each in known if each[0] == section] or [f"[{each}]" for each in SECTIONS]
    hint = f"did you mean {near[0]}?" if near else f"known there: {', '.join(own)}."
    return OptionError(f"{path}: {f'[{section}] ' if section else ''}{name} is no setting of this recipe; {hint}")


def _from_file(path: Path) -> dict[tuple[str, str], Any]:
    """The file's values by table and key. Raises OptionError for a file that is not TOML."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"The configuration {path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise OptionError(f"The configuration {path} is not TOML: {' '.join(str(error).split())}.") from error
    flat: dict[tuple[str, str], Any] = {}
    for name, value in document.items():
        if name in SECTIONS and not isinstance(value, dict):
            raise OptionError(f"{path}: {name} must be a table, [{name}], got {_shown(value)}.")
        if isinstance(value, dict):
            flat |= {(name, inner): each for inner, each in value.items()}
        else:
            flat["", name] = value
    return flat


def checked(where: str, value: Any, setting: Setting) -> Any:
    """The value in the setting's type. Raises OptionError, with `where` it stands, for any other, or no choice."""
    if setting.item is not None:
        items = [_number(each, setting.item) for each in value] if isinstance(value, (list, tuple)) else [None]
        found = None if None in items or setting.length not in (None, len(items)) else tuple(items)
    else:
        found = _number(value, setting.kind)
    if found is None:
        raise OptionError(f"{where} must be {_kind(setting)}, got {_shown(value)}.")
    if setting.choices and found not in setting.choices:
        raise OptionError(f"{where} must be one of {', '.join(setting.choices)}, got {_shown(value)}.")
    return found


def _number(value: Any, kind: type) -> Any:
    """The value as one of `kind`, or None if it is of another. Whole numbers are numbers, truth values are not."""
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value


def _kind(setting: Setting) -> str:
    if setting.item is None:
        return _KINDS[setting.kind]
    many = "" if setting.length is None else f"{setting.length} "
    return f"a list of {many}{ {int: 'whole numbers', float: 'numbers', str: 'texts'}[setting.item] }"


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def write_config(config: Any) -> str:
    """A configuration as TOML, which `read_config` reads back."""
    lines = []
    for section in ("", *SECTIONS):
        part = getattr(config, section) if section else config
        lines += ["", f"[{section}]"] if section else []
        lines += [f"{f.name} = {_toml(getattr(part, f.name))}" for f in fields(part) if f.name not in SECTIONS]
    return "\n".join(lines) + "\n"


def flat(config: Any) -> dict[str, str]:
    """The recipe's own settings and those of its data, as TOML would have them: {"teacher": ..., "data.limit": ...}."""
    own = {f.name: _toml(getattr(config, f.name)) for f in fields(config) if f.name not in SECTIONS}
    return own | {f"data.{f.name}": _toml(getattr(config.data, f.name)) for f in fields(config.data)}


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_toml(each) for each in value)}]"
    if isinstance(value, str):  # as in JSON, but for one more letter that must be written as its code
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
