"""The launch files in an interpreter that has, besides launch, the standard library and YAML only, as the system's Python may."""

import importlib.util
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from onedp_ros.graph.processes import ROBOTS
from onedp_ros.policy.engines import ENGINES
from onedp_ros.policy.methods import METHODS
from onedp_ros.teleop.devices import DEVICES

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.name for path in (ROOT / "launch").glob("*.launch.py"))

# launch and launch_ros are imported where they are installed; else these few stand for them. Then nothing else may be imported
# than the standard library, YAML and this package.
PRELUDE = """
import importlib, importlib.abc, json, runpy, sys, types

sys.path[:0] = PATHS
try:
    import ament_index_python.packages, launch.actions, launch.launch_description_sources, launch.substitutions
    import launch_ros.actions, launch_ros.parameter_descriptions
except ImportError:
    class Thing:
        def __init__(self, *args, **kwargs):
            self.args, self.given = args, kwargs

    NAMES = {
        "launch": "LaunchContext LaunchDescription",
        "launch.actions": "DeclareLaunchArgument ExecuteProcess GroupAction IncludeLaunchDescription LogInfo OpaqueFunction "
        "SetEnvironmentVariable Shutdown",
        "launch.launch_description_sources": "PythonLaunchDescriptionSource",
        "launch.substitutions": "Command LaunchConfiguration",
        "launch_ros": "",
        "launch_ros.actions": "Node",
        "launch_ros.parameter_descriptions": "ParameterValue",
        "ament_index_python": "",
        "ament_index_python.packages": "get_package_share_directory",
    }
    for module, names in NAMES.items():
        sys.modules[module] = types.ModuleType(module)
        for name in names.split():
            setattr(sys.modules[module], name, type(name, (Thing,), {}))
    sys.modules["ament_index_python.packages"].PackageNotFoundError = KeyError

class Guard(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {*sys.stdlib_module_names, "yaml", "onedp_ros"}:
            raise ModuleNotFoundError(f"No module named '{name}', which a bare Python has not")

for name in [n for n in sys.modules if n.split(".")[0] in ("numpy", "cv2", "rclpy")]:
    del sys.modules[name]  # launch_ros brings them, but a launch file must not lean on that
sys.meta_path.insert(0, Guard())
"""


def bare(script: str) -> subprocess.CompletedProcess[str]:
    """Run after the prelude, without anything that the guard forbids."""
    paths = [str(ROOT), *(sys.path if importlib.util.find_spec("launch_ros") else [str(Path(yaml.__file__).parents[1])])]
    text = f"PATHS = {paths!r}\n{PRELUDE}\n{textwrap.dedent(script)}"
    return subprocess.run([sys.executable, "-I", "-S", "-c", text], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", FILES)
def test_a_launch_file_needs_no_more_than_a_bare_python(name: str) -> None:
    done = bare(f"runpy.run_path({str(ROOT / 'launch' / name)!r})['generate_launch_description']()")
    assert done.returncode == 0, done.stderr


def test_so_do_the_graphs_that_launch_files_start(tmp_path: Path) -> None:
    done = bare(f"""
        from onedp_ros.graph.processes import placed, record_graph, replay_graph, task_graph
        graphs = {{
            "task": task_graph("pnp_milk", robot="franka", franka={{"robot_ip": "x"}}, record={str(tmp_path)!r}),
            "record": record_graph("pnp_milk"),
            "replay": replay_graph("pnp_milk", with_action=True),
        }}
        print(json.dumps({{name: [p.name for p in placed(nodes, namespace="left")] for name, nodes in graphs.items()}}))
        """)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "task": ["franka_node", "observation_node", "policy_node", "action_node", "recorder_node"],
        "record": ["twin_node", "recorder_node", "teleop_node"],
        "replay": ["observation_node", "policy_node", "action_node"],
    }


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("parse('enabled', 'yes', Option(None, '', bool))", "launch argument enabled is 'yes', expected true or false"),
        ("parse('seed', 'abc', Option(0, ''))", "launch argument seed is 'abc', expected a whole number"),
        ("parse('speed', 'fast', Option(1.0, ''))", "launch argument speed is 'fast', expected a number"),
        ("parse('lead', 'inf', Option(None, '', float))", "launch argument lead is 'inf', expected a number"),
    ],
)
def test_an_argument_of_another_kind_is_named(call: str, words: str) -> None:
    done = bare(f"from onedp_ros.graph.launching import Option, parse\n{call}")
    assert done.returncode == 1
    assert done.stderr.strip().endswith(f"ValueError: {words}")


def test_truth_values_are_true_or_false() -> None:
    texts = ["true", "True", "FALSE", ""]
    script = f"option = Option(None, '', bool)\nprint([parse('x', text, option) for text in {texts}])"
    done = bare(f"from onedp_ros.graph.launching import Option, parse\n{script}")
    assert done.stdout.strip() == str([True, True, False, None]), done.stderr


def test_launch_offers_what_there_is() -> None:
    done = bare("""
        from onedp_ros.graph.options import POLICY, RECORD, ROBOT
        print(json.dumps([option.text for option in (POLICY["method"], POLICY["engine"], RECORD["device"], ROBOT["robot"])]))
        """)
    assert done.returncode == 0, done.stderr
    offered = json.loads(done.stdout)
    for text, names in zip(offered, (METHODS.names(), ENGINES.names(), DEVICES.names(), ROBOTS), strict=True):
        assert all(name in text for name in names), text
