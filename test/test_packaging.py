"""What is installed: nodes, launch files, configuration and models, as colcon does it."""

import importlib
import re
import runpy
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "onedp_ros"
NODES = tuple(p.stem for p in sorted((ROOT / PACKAGE / "nodes").glob("*_node.py")))


def test_one_version_everywhere() -> None:
    version = ElementTree.parse(ROOT / "package.xml").getroot().findtext("version")
    assert f'version="{version}"' in (ROOT / "setup.py").read_text()


def test_every_node_is_a_script_and_every_script_calls_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    given: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", lambda **arguments: given.update(arguments))
    runpy.run_path("setup.py")
    scripts = dict(re.split(r"\s*=\s*", script) for script in given["entry_points"]["console_scripts"])
    assert scripts.keys() == {"onedp", *NODES}
    for target in scripts.values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function, None)), target


def test_every_dependency_is_pinned() -> None:
    """Names in setup.py, without their versions and extras, each have exact versions in constraints.txt."""

    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    pins = {normal(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    setup = (ROOT / "setup.py").read_text()
    dependencies = re.findall(
        r'"([A-Za-z][\w.-]*)(?:\[\w+\])?(?:[<>=][^"]*)?"', setup[setup.index("install_requires") : setup.index("entry_points")]
    )
    assert {"torch", "mujoco", "pytest"} <= set(dependencies)
    assert {normal(name) for name in dependencies} - pins - {"ros", "rerun", "cluster", "test"} == set()


def test_messages_that_are_imported_are_declared() -> None:
    declared = {tag.text for tag in ElementTree.parse(ROOT / "package.xml").getroot().iter("exec_depend")}
    imported: set[str] = set()
    for file in [*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "launch").rglob("*.py")]:
        imported |= set(
            re.findall(
                r"^\s*(?:from|import) (\w+_(?:msgs|srvs|interfaces)|rclpy|cv_bridge|launch(?:_ros)?|message_filters)\b",
                file.read_text(),
                re.MULTILINE,
            )
        )
    assert {"rclpy", "sensor_msgs"} <= imported
    assert imported - declared == {"franka_msgs"}, "franka_ros2's, used only where it is installed"


@pytest.mark.skipif(not shutil.which("colcon", path=str(Path(sys.executable).parent)), reason="colcon is not installed")
def test_colcon_installs_nodes_launch_files_configuration_and_models(tmp_path: Path) -> None:
    colcon = Path(sys.executable).parent / "colcon"
    places = ["--base-paths", ROOT, "--build-base", tmp_path / "build", "--install-base", tmp_path / "install"]
    built = subprocess.run(
        [colcon, "--log-base", tmp_path / "log", "build", *places], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    prefix = tmp_path / "install" / PACKAGE
    assert (prefix / "share/ament_index/resource_index/packages" / PACKAGE).is_file()
    share = prefix / "share" / PACKAGE
    for folder in ("launch", "config", "models"):
        files = [p.relative_to(ROOT) for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        missing = [str(file) for file in files if not (share / file).is_file()]
        assert not missing
    assert (share / "config/tasks/pnp_milk.yaml").is_file()
    for name in ("onedp", *NODES):
        assert (prefix / "lib" / PACKAGE / name).stat().st_mode & 0o111
    site = next((prefix / "lib").glob("python*/site-packages"))
    assert {p.name for p in (ROOT / PACKAGE / "teleop" / "devices" / "phone" / "page").iterdir()} == {
        p.name for p in (site / PACKAGE / "teleop" / "devices" / "phone" / "page").iterdir()
    }
    found = subprocess.run(
        [sys.executable, "-c", "from onedp_ros import resources; print(resources.__file__, resources.resource('config', 'dds'))"],
        env={"PYTHONPATH": str(site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == [str(site / PACKAGE / "resources.py"), str(share / "config/dds")]


def test_a_build_for_a_python_without_the_dependencies_says_so(tmp_path: Path) -> None:
    """As colcon outside the environment would make it: the nodes' scripts would run with that Python."""
    shutil.copytree(ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns(".*", "models", "test"))
    for lacking, said in (("torch", True), ("none_of_ours", False)):
        script = f"import sys, runpy; sys.modules['{lacking}'] = None; sys.argv[0] = 'setup.py'; runpy.run_path('setup.py')"
        # as colcon does, but without doing it
        command = [sys.executable, "-c", script, "--dry-run", "install", "--prefix", str(tmp_path / lacking)]
        done = subprocess.run(command, cwd=tmp_path / "copy", capture_output=True, text=True, check=False)
        assert (".venv/bin/colcon build" in done.stderr) == said, done.stderr


def test_pytest_runs_beside_the_plugins_of_ros(tmp_path: Path) -> None:
    """launch_testing and launch_testing_ros, found wherever ROS is sourced, have hooks that today's pytest refuses."""
    for distribution, name in (("launch_testing", "launch_testing"), ("launch_testing_ros", "launch_ros")):
        (tmp_path / f"{distribution}_hooks.py").write_text("def pytest_pycollect_makemodule(path, parent): pass\n")
        info = tmp_path / f"{distribution}-3.4.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 3.4.3\n")
        (info / "entry_points.txt").write_text(f"[pytest11]\n{name} = {distribution}_hooks\n")
    test = [sys.executable, "-m", "pytest", "-q", f"{__file__}::test_one_version_everywhere", "-p", "no:cacheprovider"]
    done = subprocess.run(test, cwd=ROOT, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
