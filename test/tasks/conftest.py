from collections.abc import Iterator
from pathlib import Path

import pytest
from reach import TASK, contract_file

from onedp_ros.tasks import TASKS


@pytest.fixture
def reach(tmp_path: Path) -> Iterator[Path]:
    """The task file of a task that is registered for this test."""
    TASKS.add("reach", TASK)
    yield contract_file(tmp_path)
    TASKS.remove("reach")
