"""The real client against a protocol server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import Cell

from onedp_ros.robot.fake_franka import FakeFranka


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cell]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # for the mark of an arm under control
    with FakeFranka("--object", "0.05", log=tmp_path / "robot.log") as fake:
        made = Cell(fake, tmp_path / "robot.log")
        yield made
        for franka in made.frankas:
            franka.close()
