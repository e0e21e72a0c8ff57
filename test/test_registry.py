"""One file a member: names without imports, members on request, errors that tell what there is."""

import importlib
import sys
from pathlib import Path

import pytest

from onedp_ros.registry import Registry, UnknownNameError


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[int]:
    folder = tmp_path / "shapes_for_test"
    folder.mkdir()
    for name, text in {"__init__": "", "square": "CORNERS = 4", "base": "", "broken": "raise ImportError('no')"}.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("shapes_for_test")
    return Registry("shape", "shapes_for_test", "CORNERS", ("base",))


def test_names_are_those_of_files_which_are_not_imported(shapes: Registry[int]) -> None:
    assert shapes.names() == ["broken", "square"]
    assert "shapes_for_test.square" not in sys.modules
    assert shapes.get("square") == 4
    assert "square" in shapes and "base" not in shapes


def test_an_unknown_name_is_told_what_there_is_and_how_to_add_one(shapes: Registry[int]) -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown shape 'circle', expected one of broken, square; .*for_test/circle\.py.*CORNERS"
    ):
        shapes.get("circle")


def test_members_are_added_and_removed_but_not_replaced(shapes: Registry[int]) -> None:
    shapes.add("triangle", 3)
    assert shapes.names() == ["broken", "square", "triangle"] and shapes.get("triangle") == 3
    with pytest.raises(ValueError, match="'square' already"):
        shapes.add("square", 5)
    shapes.remove("triangle")
    assert "triangle" not in shapes
