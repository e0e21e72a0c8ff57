"""The launch files, where launch_ros imports: they start what ``onedp run`` starts."""

import importlib.util

import pytest

from onedp_ros.graph.processes import record_graph, task_graph
from onedp_ros.resources import resource

pytest.importorskip("launch_ros", reason="launch_ros is not in the wheels; it comes with a ROS 2 distribution")

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, LogInfo, SetEnvironmentVariable
from launch.utilities import perform_substitutions
from launch_ros.actions import Node
from launch_ros.utilities import evaluate_parameters

from launch import LaunchContext, LaunchDescription

pytestmark = pytest.mark.concurrent


def description(name):
    spec = importlib.util.spec_from_file_location(name.replace(".", "_"), resource("launch", name))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate_launch_description()


def expand(entity, context):
    """All that a description comes down to, with its arguments' defaults or what the context says."""
    found = []
    for child in (
        entity.entities
        if isinstance(entity, LaunchDescription)
        else [entity]
        if isinstance(entity, Node)
        else entity.visit(context) or []
    ):
        found.append(child)
        if isinstance(child, DeclareLaunchArgument | SetEnvironmentVariable):
            child.visit(context)
        elif not isinstance(child, Node):
            found += expand(child, context)
    return found


@pytest.mark.parametrize("robot", ["franka", "crisp"])
def test_real_robots_wait_to_be_enabled(robot, tmp_path):
    context = LaunchContext()
    context.launch_configurations.update({"task": "pnp_milk", "model": str(tmp_path), "speed": "0.1"})
    context.launch_configurations.update({"robot": robot, "robot_ip": "172.16.0.2"})
    nodes = [e for e in expand(description("task.launch.py"), context) if isinstance(e, Node)]
    expected = task_graph("pnp_milk", robot=robot, model=tmp_path, franka={"robot_ip": "x"})
    assert [n.node_executable for n in nodes] == [p.executable for p in expected]
    assert not expected[-1].parameters["enabled"]
    given = {n.node_executable: evaluate_parameters(context, n._Node__parameters)[0] for n in nodes}
    assert {name for name, parameters in given.items() if parameters.get("speed") == 0.1} == {
        *(["franka_node"] if robot == "franka" else []),
        "action_node",
    }


@pytest.mark.parametrize("name", ["task.launch.py", "pnp_milk.launch.py", "coffee.launch.py"])
def test_starts_what_onedp_run_starts(name, tmp_path, monkeypatch):
    monkeypatch.delenv("FASTRTPS_DEFAULT_PROFILES_FILE", raising=False)
    monkeypatch.delenv("FASTDDS_DEFAULT_PROFILES_FILE", raising=False)
    context = LaunchContext()
    given = {"model": str(tmp_path), "method": "onedp_d", "enabled": "false"}
    task = "pnp_milk" if name == "task.launch.py" else name.removesuffix(".launch.py")
    context.launch_configurations.update(given | ({"task": task} if name == "task.launch.py" else {}))
    found = expand(description(name), context)
    nodes = [e for e in found if isinstance(e, Node)]
    expected = task_graph(task, robot="twin", method="onedp_d", model=tmp_path, enabled=False)
    assert [n.node_executable for n in nodes] == [p.executable for p in expected]
    assert [n._Node__node_name for n in nodes] == [p.name for p in expected]
    assert [n._ExecuteLocal__respawn for n in nodes] == [p.respawn for p in expected]
    assert context.environment["FASTRTPS_DEFAULT_PROFILES_FILE"].endswith("localhost.xml")
    assert context.environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert any(isinstance(e, IncludeLaunchDescription) for e in found) == (name != "task.launch.py")


def test_recording_starts_what_onedp_record_starts():
    context = LaunchContext()
    context.launch_configurations.update({"task": "pnp_milk", "device": "spacenav", "operator": "Ada", "port": "9443"})
    nodes = [e for e in expand(description("record.launch.py"), context) if isinstance(e, Node)]
    expected = record_graph("pnp_milk", device="spacenav")
    assert [n.node_executable for n in nodes] == [p.executable for p in expected]


def test_nodes_are_placed_and_get_the_time_that_launch_gives(tmp_path):
    (tmp_path / "mine.yaml").write_text("/**:\n  ros__parameters:\n    target_rate: 77.0\n")
    context = LaunchContext()
    given = {
        "task": "pnp_milk",
        "namespace": "left",
        "params_file": str(tmp_path / "mine.yaml"),
        "log_level": "warn",
        "lead": "0.1",
        "network": "subnet",
    }
    context.launch_configurations.update({"model": str(tmp_path), **given})
    found = expand(description("task.launch.py"), context)
    nodes = [e for e in found if isinstance(e, Node)]
    assert {n._Node__node_namespace for n in nodes} == {"/left"}
    leads = []
    for node in nodes:
        assert perform_substitutions(context, node.sigterm_timeout) == "5", "which nodes that hold an arm need"
        file, parameters = evaluate_parameters(context, node._Node__parameters)
        assert str(file) == str(tmp_path / "mine.yaml"), "before the parameters that arguments set, so these win"
        if node.node_executable == "action_node":
            leads.append(parameters["lead"])
    assert leads == [0.1]
    assert context.environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "SUBNET"
    assert any("open to the network" in perform_substitutions(context, e.msg) for e in found if isinstance(e, LogInfo))


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("pnp_milk.launch.py", {"task": "coffee"}, "task is 'coffee', but this file is for pnp_milk"),
        ("task.launch.py", {"enabled": "yes"}, "enabled is 'yes', expected true or false"),
        ("task.launch.py", {"seed": "abc"}, "seed is 'abc'"),
        ("record.launch.py", {"port": "https"}, "port is 'https'"),
        ("replay.launch.py", {"use_sim_time": "1"}, "use_sim_time is '1'"),
        ("task.launch.py", {"robot_model": "true"}, "sudo apt install ros-jazzy-franka-description"),
    ],
)
def test_what_an_argument_may_not_be_is_named(name, given, words, tmp_path, monkeypatch):
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    context = LaunchContext()
    context.launch_configurations.update({"task": "pnp_milk", "model": str(tmp_path), **given})
    with pytest.raises(ValueError, match=words):
        expand(description(name), context)


def test_an_argument_that_nobody_reads_is_refused_at_the_command_line(tmp_path, monkeypatch):
    def start():
        context = LaunchContext(argv=["sped:=0.1"])
        context.launch_configurations.update({"task": "pnp_milk", "model": str(tmp_path), "sped": "0.1"})
        expand(description("task.launch.py"), context)

    start()  # included by a file that has such an argument
    monkeypatch.setattr("sys.argv", ["ros2", "launch", "onedp_ros", "task.launch.py", "sped:=0.1"])
    with pytest.raises(ValueError, match="unknown launch argument sped, expected task, "):
        start()
