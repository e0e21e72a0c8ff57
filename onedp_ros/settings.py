"""Settings that are dataclasses: each field has its plausible values and the reason for them, checked in one place.

A value outside is most often a slip of a unit or a digit, and then switches a protection off; so it is an error that names the
field, the value, what is expected and why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from onedp_ros.config import read_yaml, shown

Settings = TypeVar("Settings")


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high`` in ``unit``, and ``why`` not beyond. ``count``: a list of so many; 0: one number."""

    low: float
    high: float
    unit: str
    why: str
    count: int = 0

    def check(self, name: str, value: Any) -> Any:
        """The value as float, or as tuple of floats. ValueError names it."""
        values = value if self.count else (value,)
        if not isinstance(values, (list, tuple)) or len(values) != max(self.count, 1) or not all(map(self._holds, values)):
            raise ValueError(f"{name} is {shown(value)}, expected {self}")
        return tuple(map(float, values)) if self.count else float(value)

    def _holds(self, value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and self.low <= value <= self.high  # NaN is not

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        numbers = f"{self.count} numbers, each" if self.count else "a number"
        return f"{numbers} from {self.low:g} to {self.high:g}{unit}: {self.why}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some words, or with ``several`` a list of some of them, and ``why`` no other. Empty words in a list are none: ROS
    needs one to know the type of an empty list."""

    options: tuple[str, ...]
    why: str
    several: bool = False

    def check(self, name: str, value: Any) -> Any:
        """The value, as tuple when several. ValueError names it."""
        values = value if self.several else (value,)
        allowed = {*self.options, ""} if self.several else {*self.options}
        if not isinstance(values, (list, tuple)) or not all(isinstance(v, str) and v in allowed for v in values):
            raise ValueError(f"{name} is {shown(value)}, expected {self}")
        return tuple(value) if self.several else value

    def __str__(self) -> str:
        return f"{'a list of some' if self.several else 'one'} of {', '.join(self.options)}: {self.why}"


def within(expected: Range | Choice, formerly: str | None = None, **options: Any) -> Any:
    """A field of a settings dataclass with its plausible values. ``formerly``: its name in older files; ``options`` as of
    :func:`dataclasses.field`."""
    return dataclasses.field(metadata={"expected": expected, "formerly": formerly}, **options)


def expected_values(settings: Any) -> dict[str, Range | Choice]:
    """Field -> its plausible values, of a settings dataclass or an instance."""
    return {f.name: f.metadata["expected"] for f in dataclasses.fields(settings)}


def values_and_expected(settings: Any, prefix: str = "") -> dict[str, tuple[Any, Range | Choice]]:
    """``prefix`` and field -> its value and its plausible values, of an instance."""
    return {f"{prefix}{name}": (getattr(settings, name), expected) for name, expected in expected_values(settings).items()}


def check_fields(settings: Any, section: str) -> None:
    """For ``__post_init__``: make every field what it is declared to be. ValueError names ``section.field``."""
    for name, expected in expected_values(settings).items():
        object.__setattr__(settings, name, expected.check(f"{section}.{name}", getattr(settings, name)))


def from_mapping(kind: type[Settings], section: str, data: Any, complete: bool = False) -> Settings:
    """Plain data -> settings. A field that is itself settings is a section of its own.

    Args:
        section: what the data are called in messages; empty: a whole file.
        complete: whether fields that have a default are to be given, too. Those with plausible values are in any case: a file shows
            every bound that it sets.

    Raises:
        ValueError: names a field that is missing, unknown, renamed or of another kind than its annotation tells.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    name = f"section {section}" if section else "it"
    if not isinstance(data, Mapping):
        raise ValueError(f"{name} is {shown(data)}, expected the fields {', '.join(sorted(fields))}")
    for field in fields.values():
        if (old := field.metadata.get("formerly")) is not None and old in data:
            raise ValueError(f"{name} holds '{old}', which is called '{field.name}' now; rename it")
    optional = {n for n, f in fields.items() if not (f.default is f.default_factory is dataclasses.MISSING)}
    needed = set(fields) if complete else {n for n, f in fields.items() if "expected" in f.metadata or n not in optional}
    if missing := sorted(needed - set(data)):
        raise ValueError(f"{name} lacks {', '.join(missing)}; give every one of these")
    if unknown := sorted(map(shown, set(data) - set(fields))):
        raise ValueError(f"{name} holds {', '.join(unknown[:9])}, which is none of {', '.join(sorted(fields))}")
    hints, values = get_type_hints(kind), dict(data)
    for key, value in data.items():
        label = f"{section}.{key}" if section else key
        if dataclasses.is_dataclass(hints[key]):
            values[key] = from_mapping(hints[key], label, value, complete)
        elif "expected" not in fields[key].metadata:
            values[key] = _of_kind(hints[key], label, value)
    return kind(**values)


def _of_kind(hint: Any, name: str, value: Any) -> Any:
    """``value``, if it is what an annotation of numbers, text or a tuple of them tells; others are left to the class."""
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if isinstance(value, (list, tuple)):
            kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
            if len(kinds) == len(value):
                return tuple(_of_kind(kind, name, v) for kind, v in zip(kinds, value, strict=True))
        raise ValueError(f"{name} is {shown(value)}, expected a list of {'some' if kinds[-1] is ... else len(kinds)} values")
    allowed = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}.get(hint)
    if allowed is not None and (not isinstance(value, allowed) or (isinstance(value, bool) and hint is not bool)):
        raise ValueError(f"{name} is {shown(value)}, expected a value of type {hint.__name__}")
    return value


def from_file(kind: type[Settings], path: str | Path, section: str, example: str) -> Settings:
    """A section of a YAML file -> settings, or the whole file. ValueError names file and field, and a complete ``example``."""
    try:
        data = read_yaml(path)
        return from_mapping(kind, section, data.get(section) if section else data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; see {example} for a complete one") from error
