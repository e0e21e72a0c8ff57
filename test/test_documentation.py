"""The documentation: links lead somewhere, commands and files that it names exist."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from onedp_ros.cli import COMMANDS
from onedp_ros.contract import Contract, task_contract
from onedp_ros.contract.features import JOINT_KINDS, POSE_KINDS, Feature
from onedp_ros.graph.options import PLACE, RECORD, ROBOT, RUN
from onedp_ros.policy.engines import ENGINES
from onedp_ros.policy.engines.base import Engine
from onedp_ros.policy.methods import METHODS
from onedp_ros.policy.methods.base import Method
from onedp_ros.registry import Registry
from onedp_ros.robot.settings import SECTIONS
from onedp_ros.settings import expected_values
from onedp_ros.tasks import TASKS
from onedp_ros.tasks.base import Task
from onedp_ros.teleop.devices import DEVICES
from onedp_ros.teleop.devices.base import Device
from onedp_ros.twin.variation import KINDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEW_MEMBERS: dict[str, tuple[Registry[Any], type | None]] = {  # by page, the registry and the base class
    "add-a-device": (DEVICES, Device),
    "add-a-command": (COMMANDS, None),
    "add-a-task": (TASKS, Task),
    "add-a-method": (METHODS, Method),
    "add-an-engine": (ENGINES, Engine),
}
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def without_code(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Those of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def linked(page: Path) -> list[tuple[str, Path, str]]:
    """Of each link that leads to a file of the tree: as it is written, its file, its anchor."""
    found = []
    for link in LINK.findall(without_code(page)):
        if not re.match(r"[a-z]+:", link):
            path, _, anchor = link.partition("#")
            found.append((link, (page.parent / path).resolve() if path else page, anchor))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    broken = [link for link, file, anchor in linked(page) if not file.exists() or (anchor and anchor not in anchors(file))]
    assert not broken


def test_every_page_is_reached_from_the_index() -> None:
    reached, ahead = set(), [ROOT / "docs" / "index.md"]
    while ahead:
        page = ahead.pop()
        if page not in reached:
            reached.add(page)
            ahead += [file for _, file, _ in linked(page) if file.suffix == ".md"]
    assert {*(ROOT / "docs").rglob("*.md")} <= reached


def test_commands_that_are_named_exist() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"\bonedp ([a-z][a-z-]*)", text))
    assert {"record", "replay", "inspect"} <= named <= {*COMMANDS.names(), "seconds"}, "seconds is how-to/add-a-command.md's"


def test_options_that_are_named_exist(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = [block for page in PAGES for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").split("\n")]
    named: dict[str, set[str]] = {}
    for line in lines:
        if found := re.match(r"\s*(?:\.venv/bin/)?onedp ([a-z-]+)(.*?)(?:\s#.*)?$", line):
            named.setdefault(found[1], set()).update(re.findall(r" (--[a-z-]+)", found[2]))
    assert {"record", "convert", "train", "run"} <= set(named)
    for command in named.keys() - {"fake-franka"}:  # its options are the server's
        with pytest.raises(SystemExit):
            COMMANDS.get(command)(["--help"])
        known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        assert named[command] <= known, command


def test_launch_arguments_that_are_named_exist() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    calls = re.findall(r"ros2 launch onedp_ros (\w+)\.launch\.py([^`#\n]*)", text)
    assert {file for file, _ in calls} >= {"task", "record", "replay", "pnp_milk"}
    known = {"task", "enabled", "robot_model", *RUN, *RECORD, *ROBOT, *PLACE}
    for file, rest in calls:
        given = re.findall(r"(\w+):=", rest)
        assert {*given} <= known and ("task" in given or file == "pnp_milk"), f"{file}{rest}"


def test_every_command_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference" / "command-line.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `onedp ([a-z-]+)", text, re.MULTILINE)) == set(COMMANDS.names())


def test_every_setting_of_a_robot_file_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference" / "robot-file.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    for name, kind in SECTIONS.items():
        rows = re.findall(r"^\| (`.*?) \|", sections[name], re.MULTILINE)
        assert set(re.findall(r"`(\w+)`", " ".join(rows))) == set(expected_values(kind)), name


def test_every_kind_of_variation_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference" / "variation.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(KINDS)


def test_pages_that_messages_name_exist() -> None:
    sources = [path for folder in ("onedp_ros", "config", "launch") for path in (ROOT / folder).rglob("*")]
    sources = [path for path in sources if path.is_file() and "__pycache__" not in path.parts]
    named: set[str] = set()
    for path in [*sources, ROOT / "CHANGELOG.rst", ROOT / "Makefile"]:
        named |= set(re.findall(rb"(?<![\w./])docs/[\w./-]+\.md", path.read_bytes()))
    assert {b"docs/how-to/network.md"} <= named
    assert not [name for name in named if not (ROOT / name.decode()).is_file()]


def yaml_blocks(page: str) -> list[dict[str, Any]]:
    """The examples on a how-to page that are a task file, or parts of one."""
    text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text(encoding="utf-8")
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]


def test_examples_of_task_files_are_valid_and_of_one_arm() -> None:
    examples = [block for page in ("your-own-cell", "set-up-cameras") for block in yaml_blocks(page)]
    assert len(examples) >= 6
    for example in examples:
        contract = Contract.from_dict({**task_contract("pnp_milk").to_dict(), **example})
        assert contract.arm.target_topic


def test_every_field_of_a_task_file_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference" / "task-file.md").read_text(encoding="utf-8")
    contract, features = text.split("## Features")
    for part, kind in ((contract, Contract), (features, Feature)):
        rows = re.findall(r"^\| `(\w+)` \|[^|\n]*\|$", part, re.MULTILINE)
        assert sorted(rows) == sorted(field.name for field in dataclasses.fields(kind))
    assert {*POSE_KINDS, *JOINT_KINDS} == set(re.findall(r"^\| `(\w+)` \|(?:[^|\n]*\|){4}$", features, re.MULTILINE))


def modules(page: str) -> list[str]:
    """The examples on a how-to page that are whole files."""
    text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text(encoding="utf-8")
    return [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if code.startswith('"""')]


@pytest.mark.parametrize("page", NEW_MEMBERS)
def test_examples_of_new_members_are_what_their_registry_expects(page: str) -> None:
    registry, base = NEW_MEMBERS[page]
    examples = modules(page)
    assert examples
    for code in examples:
        module: dict[str, Any] = {"__name__": page}
        exec(compile(code, page, "exec"), module)
        member = module[registry.attribute]
        if base is None:
            assert callable(member)
        else:
            assert isinstance(member, base) or (issubclass(member, base) and not getattr(member, "__abstractmethods__", None))
