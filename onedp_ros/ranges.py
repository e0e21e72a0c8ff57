"""Settings that are dataclasses: each field has its plausible values and the reason for them, checked in one place.

A value outside is most often a slip of a unit or a digit, and then switches a protection off; so it is an error that names the
field, the value, what is expected and why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from onedp_ros.config import shown

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


def within(expected: Range | Choice, **options: Any) -> Any:
    """A field of a settings dataclass with its plausible values; ``options`` as of :func:`dataclasses.field`."""
    return dataclasses.field(metadata={"expected": expected}, **options)


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


def from_mapping(kind: type[Settings], section: str, data: Any) -> Settings:
    """Plain data -> settings. ValueError names a missing, unknown or senseless field."""
    names = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(data, Mapping):
        raise ValueError(f"section {section} is {shown(data)}, expected the fields {', '.join(sorted(names))}")
    if missing := sorted(names - set(data)):
        raise ValueError(f"section {section} lacks {', '.join(missing)}; every field is to be given")
    if unknown := sorted(map(shown, set(data) - names)):
        raise ValueError(f"section {section} holds {', '.join(unknown[:9])}, which is none of {', '.join(sorted(names))}")
    return kind(**data)
