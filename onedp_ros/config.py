"""Files that people write or that come from elsewhere, read so that none can hurt: YAML, JSON, and the names in them.

Reading builds plain data (dictionaries, lists, text, numbers), and costs at most a second and 200 MB whatever the file holds.
Only the standard library and yaml are imported here: launch files read task files with the system's Python.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import reprlib
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

MAX_BYTES = 4 * 2**20  # of a file; the metadata of a long bag has a few hundred thousand
MAX_NODES = 100_000  # values in a file, those of repeated aliases counted each time
MAX_JSON_NODES = 2_000_000  # values in JSON, which is read a hundred times as fast
MAX_DEPTH = 30
MAX_NAME = 64  # characters
_MAX_NUMBER = 100  # characters: reading longer ones takes time that grows with their square
_MAX_INTEGER = 2**63
_NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_-]{{0,{MAX_NAME - 1}}}")
_TOPIC = re.compile(r"/?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*")
_MAX_TOPIC = 200
_DEEP = f"values lie more than {MAX_DEPTH} deep in one another; that is no file of settings, give another"


class ConfigError(ValueError):
    """A file that cannot be used; the message names the file, the line where there is one, and the remedy."""


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80


def shown(value: object) -> str:
    """``value`` for a message: its repr, shortened when it is long."""
    return _short.repr(value)


def check_name(kind: str, value: object) -> str:
    """``value``, if it is a name that may become part of a path: 1 to 64 of the letters a to z, digits, ``_`` and ``-``.

    Args:
        kind: what is named, for the message: ``task``, ``camera``, …

    Raises:
        ValueError: it is not; names kind, value and what is allowed.
    """
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    raise ValueError(
        f"{kind} name {shown(value)} cannot become part of a path: use 1 to {MAX_NAME} letters a to z, digits, '_' and '-', "
        f"not '-' first, such as {_suggestion(kind, value)}"
    )


def _suggestion(kind: str, value: object) -> str:
    words = re.findall(r"[A-Za-z0-9_]+", str(value)[: 2 * MAX_NAME]) if isinstance(value, str) else []
    return f"'{'_'.join(words)[:MAX_NAME] or kind}'"


def check_topic(kind: str, value: object) -> str:
    """``value``, if it is the name of a ROS topic.

    Raises:
        ValueError: it is not; names kind, value and what is allowed.
    """
    if isinstance(value, str) and len(value) <= _MAX_TOPIC and _TOPIC.fullmatch(value):
        return value
    raise ValueError(
        f"{kind} {shown(value)} is no name of a ROS topic: use letters a to z, digits and '_', parts separated by '/', no part "
        f"beginning with a digit, {_MAX_TOPIC} characters at most"
    )


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Keys are text even where they look like numbers or truth values; merge keys (``<<``) are merged.

    Raises:
        ConfigError: not such a file, larger than :data:`MAX_BYTES`, :data:`MAX_NODES` or :data:`MAX_DEPTH`, or a key given twice.
        OSError: it cannot be opened.
    """
    return parse_yaml(_read_text(Path(path)), str(path))


def read_json(path: str | Path, finite: bool = True) -> dict[str, Any]:
    """The object in a JSON file; with ``finite`` NaN and infinity are refused. Errors as of :func:`read_yaml`."""
    return parse_json(_read_text(Path(path)), str(path), finite)


def read_bytes(path: Path, limit: int) -> bytes:
    """A file that may come from elsewhere: a regular one, of at most ``limit`` bytes.

    Raises:
        ConfigError: it is another kind of file, or larger.
        OSError: it cannot be opened.
    """
    # Opened without waiting for the other end of a pipe, and read as far as the limit: a size may be a lie.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConfigError(f"{path} is not a regular file; give the path of one")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise ConfigError(f"{path} has more than {limit} bytes; that is no file of its kind, give another")
    return data


def _read_text(path: Path) -> str:
    try:
        return read_bytes(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8 (byte {error.start}); save it as UTF-8") from error


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain data only. Reads 1e-4 as the number that it is in YAML 1.2 and in JSON, which PyYAML takes for text."""

    def construct_integer(self, node: Any) -> int:
        value = int(self.construct_yaml_int(node))
        if abs(value) >= _MAX_INTEGER:
            raise yaml.constructor.ConstructorError(None, None, f"{value} is too large a number", node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)
_TAGS = ("null", "bool", "int", "float", "str", "seq", "map", "merge")
_TEXT = ("timestamp", "value")  # what YAML 1.1 takes for a date, and a lone "="


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """As :func:`read_yaml`, of the file's text; ``name`` is the file's in messages."""
    try:
        _bound(yaml.parse(text, Loader=_Loader), name)
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if not isinstance(root, yaml.MappingNode):
                found = {yaml.SequenceNode: "a list", yaml.ScalarNode: f"only {shown(getattr(root, 'value', None))}"}
                raise ConfigError(f"{name} holds {found.get(type(root), 'nothing')}, expected lines of the form 'name: value'")
            _check_nodes(root, name)
            return dict(loader.construct_document(root))
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f", line {min(mark.line, text.rstrip().count(chr(10))) + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{name}{where} is not valid YAML: {problem}; correct it there") from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # !!int of what is none
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{name} holds what cannot be read ({shown(str(error))}); put quotes around what is text") from error


def _refuse(name: str, mark: Any, what: str) -> NoReturn:
    raise ConfigError(f"{name}, line {mark.line + 1}: {what}")


def _bound(events: Iterator[Any], name: str) -> None:
    """ConfigError when a document is too deep or too large, with what its aliases stand for: nothing has been built of it yet."""
    sizes: dict[str, int] = {}  # of what an anchor names, when it is complete
    begun: list[tuple[str | None, int]] = []  # anchors of what encloses the event, and how many values came before each
    count = 0
    for event in events:
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                _refuse(name, mark, f"'*{shown(event.anchor)[1:-1]}' names nothing that is complete before it; write the value out")
            count += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            begun.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = begun.pop()
            if anchor:
                sizes[anchor] = count - before
        if len(begun) > MAX_DEPTH:
            _refuse(name, mark, _DEEP)
        if count > MAX_NODES:
            _refuse(name, mark, f"there are more than {MAX_NODES} values up to here, aliases counted; write out what is needed")


def _check_nodes(root: yaml.MappingNode, name: str) -> None:
    """Every key becomes text. ConfigError for a key that is twice in a mapping or no text, for long numbers, for other tags."""
    waiting: list[yaml.Node] = [root]
    done: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in done:
            continue
        done.add(id(node))
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        if tag in _TEXT and isinstance(node, yaml.ScalarNode):
            tag, node.tag = "str", "tag:yaml.org,2002:str"
        if tag not in _TAGS:
            _refuse(name, node.start_mark, f"'!{shown(tag)[1:-1]}' is no plain value; remove the tag")
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    _refuse(name, key.start_mark, "a key is a list or a mapping, expected a name")
                if key.value in lines:
                    _refuse(name, key.start_mark, f"{shown(key.value)} is in line {lines[key.value]} already; keep one of them")
                lines[key.value] = key.start_mark.line + 1
                if key.tag != "tag:yaml.org,2002:merge":
                    key.tag = "tag:yaml.org,2002:str"
                waiting.append(value)
        elif tag != "str" and len(node.value) > _MAX_NUMBER:
            _refuse(name, node.start_mark, f"{shown(node.value)} is too long for a number; put quotes around what is text")


def parse_json(text: str, name: str, finite: bool = True) -> dict[str, Any]:
    """As :func:`read_json`, of the file's text; ``name`` is the file's in messages."""
    data = parse_json_value(text, name, finite)
    if not isinstance(data, dict):
        raise ConfigError(f"{name} holds {shown(data)}, expected an object in braces")
    return data


def parse_json_value(text: str, name: str, finite: bool = True) -> Any:
    """As :func:`parse_json`, of any value."""

    def constant(value: str) -> float:
        if finite:
            raise ConfigError(f"{name} holds {value}, expected finite numbers")
        return float(value)

    def integer(digits: str) -> int:
        if len(digits) > 20 or abs(int(digits)) >= _MAX_INTEGER:
            raise ConfigError(f"{name} holds {shown(digits)[1:-1]}, which is too large a number")
        return int(digits)

    def number(digits: str) -> float:
        if math.isinf(value := float(digits)):
            raise ConfigError(f"{name} holds {shown(digits)[1:-1]}, which is too large a number")
        return value

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise ConfigError(f"{name}: {shown(twice)} is there twice; keep one of them")
        return values

    if sum(map(text.count, ",[{")) > MAX_JSON_NODES:
        raise ConfigError(f"{name} holds more than {MAX_JSON_NODES} values; write or fetch it again")
    try:
        data = json.loads(text, parse_constant=constant, parse_int=integer, parse_float=number, object_pairs_hook=mapping)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}, line {error.lineno} is not valid JSON: {error.msg}; write or fetch it again") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: {_DEEP}") from error
    _check_json(data, name)
    return data


def _check_json(data: Any, name: str) -> None:
    """ConfigError for objects that lie too deep in one another, and for text that cannot be written again."""
    waiting: list[Iterator[Any]] = [iter((data,))]
    while waiting:
        value = next(waiting[-1], waiting)
        if value is waiting:
            waiting.pop()
        elif isinstance(value, (dict, list)):
            waiting.append(itertools.chain(value.keys(), value.values()) if isinstance(value, dict) else iter(value))
            if len(waiting) > MAX_DEPTH + 1:
                raise ConfigError(f"{name}: {_DEEP}")
        elif isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise ConfigError(f"{name} holds {shown(value)}, which is no text; write or fetch it again") from error
