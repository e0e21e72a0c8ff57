"""Nodes as processes: started together, watched, and stopped without a trace."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from rcl_interfaces.msg import Log
from rcl_interfaces.srv import GetParameters
from rclpy.qos import DurabilityPolicy, QoSProfile

from onedp_ros.cli import main as onedp
from onedp_ros.graph import processes as graph
from onedp_ros.graph import supervisor as runner
from onedp_ros.graph.processes import NodeProcess, graph_environment, placed, record_graph, task_graph
from onedp_ros.graph.supervisor import NodeDiedError, Supervisor
from onedp_ros.resources import task_folder

PROCESSES = [
    NodeProcess("eyes", "observation_node", {"task": "pnp_milk"}),
    NodeProcess("hand", "action_node", {"task": "pnp_milk", "robot": "twin", "target_rate": 50.0, "enabled": False}),
]
GENEROUS = 6.0  # s: these nodes need less than one; the machine may be busy


def supervisor(rig, tmp_path, processes=PROCESSES):
    # the rig's own participant has no shared-memory profile, which does not keep them from talking
    return Supervisor(processes, tmp_path, {"ROS_DOMAIN_ID": str(rig.domain)})


def gone(pids):
    return all(not psutil.pid_exists(p) or psutil.Process(p).status() == psutil.STATUS_ZOMBIE for p in pids)


def wait_until(condition, timeout=20.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_nodes_run_with_their_names_and_parameters_and_stop_together(rig, tmp_path):
    with supervisor(rig, tmp_path) as running:
        pids = [child.pid for child in running.children.values()]
        rig.until(lambda: {"eyes", "hand"} <= set(rig.status), "both nodes")
        running.check()
        profiles = [p for p in Path(f"/proc/{pids[0]}/environ").read_text().split("\0") if "PROFILES_FILE" in p]
        assert profiles == [f"FASTRTPS_DEFAULT_PROFILES_FILE={graph_environment({})['FASTRTPS_DEFAULT_PROFILES_FILE']}"]
        children = [c.pid for p in pids for c in psutil.Process(p).children(recursive=True)]
        begin = time.monotonic()
    assert time.monotonic() - begin < GENEROUS
    assert gone(pids + children)


def test_nodes_end_by_themselves_when_told_to(rig, tmp_path):
    with supervisor(rig, tmp_path) as running:
        rig.until(lambda: {"eyes", "hand"} <= set(rig.status), "both nodes")
        for number, child in zip((signal.SIGINT, signal.SIGTERM), running.children.values(), strict=True):
            child.send_signal(number)
            assert child.wait(GENEROUS) == 0


def test_a_second_interrupt_does_not_cut_the_end_short(rig, tmp_path):
    with supervisor(rig, tmp_path) as running:
        rig.until(lambda: {"eyes", "hand"} <= set(rig.status), "both nodes")
        for child in running.children.values():
            for _ in range(20):  # ros2 launch's and the terminal's, at any distance
                child.send_signal(signal.SIGINT)
                time.sleep(0.01)
            assert child.wait(GENEROUS) == 0
    assert "Traceback" not in "".join(running.log(p.name).read_text() for p in PROCESSES)


def run_node(domain, body, *arguments):
    """A program with one node, whose class body is given; the environment is that of a graph of the test's own."""
    script = f"""
import sys, threading, time
import rclpy
from rclpy.node import Node
from onedp_ros.nodes.lib.process import run_node

class Ends(Node):
{textwrap.indent(textwrap.dedent(body), "    ")}

sys.exit(run_node(Ends))
"""
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_node_that_was_told_to_end_has_time_to_bring_its_arm_to_rest(domain):
    process = run_node(
        domain,
        """
        def __init__(self):
            super().__init__("ends")
            print("started", flush=True)

        def destroy_node(self):
            time.sleep(2.0)  # as long as a loaded machine may make of it
            print("at rest", flush=True)
            super().destroy_node()
        """,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, "at rest\n"), error


def test_a_failure_at_start_names_its_node_and_reaches_rosout(rig):
    heard = []
    lasting = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    rig.node.create_subscription(Log, "/rosout", heard.append, lasting)
    body = """
        def __init__(self):
            super().__init__("ends")
            raise ValueError("speed is 7, expected a fraction up to 1")
        """
    process = run_node(rig.domain, body, "--ros-args", "-r", "__node:=left_hand", "-r", "__ns:=/left")
    try:
        rig.until(lambda: any("speed is 7" in m.msg for m in heard), "the error on rosout")
        _, error = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 1
    assert [m.name for m in heard if "speed is 7" in m.msg] == ["left.left_hand"]
    assert "left_hand" in error and "speed is 7" in error and "Traceback" not in error


def test_graphs_of_two_robots_share_a_domain_by_their_namespaces(rig, tmp_path):
    """Names on /diagnostics tell them apart, and parameters of a file and the level of the log reach their nodes."""
    (tmp_path / "mine.yaml").write_text("/**:\n  ros__parameters:\n    target_rate: 77.0\n    speed: 0.9\n")
    nodes = [dataclasses.replace(PROCESSES[1], parameters={"task": "pnp_milk", "robot": "twin", "speed": 0.5, "enabled": False})]
    graphs = [
        dataclasses.replace(p, name=f"hand_{side}")
        for side in ("left", "right")
        for p in placed(nodes, namespace=side, params_file=tmp_path / "mine.yaml", log_level="debug")
    ]
    with supervisor(rig, tmp_path, graphs) as running:
        rig.until(lambda: running.check() or {"/left/hand_left", "/right/hand_right"} <= set(rig.status), "both nodes")
        assert rig.status["/left/hand_left"].hardware_id
        client = rig.node.create_client(GetParameters, "/left/hand_left/get_parameters")
        rig.until(client.service_is_ready, "the service of parameters")
        future = client.call_async(GetParameters.Request(names=["target_rate", "speed"]))
        values = rig.until(lambda: future.done() and future.result().values, "the parameters")
    assert [v.double_value for v in values] == [77.0, 0.5], "the file's, and the argument's, which wins"


def test_a_node_that_waits_for_the_clock_says_so(rig, tmp_path):
    with supervisor(rig, tmp_path, placed(PROCESSES[1:], use_sim_time=True)) as running:
        rig.until(lambda: running.check() or rig.error("hand", "no /clock arrives"), "the error")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"namespace": "cell 1"}, "namespace is 'cell 1'"),
        ({"log_level": "loud"}, "log_level is 'loud'"),
        ({"params_file": "absent.yaml"}, "params_file absent.yaml does not exist"),
    ],
)
def test_where_nodes_are_placed_is_checked(options, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        placed(PROCESSES, **options)


ENDS = {  # what an end by signal looks like to a callback
    "before rclpy's handler": ("raise KeyboardInterrupt", 0, "told to end"),
    "as an error of a call": ("threading.Timer(0.05, rclpy.shutdown).start(); raise RuntimeError('cut short')", 0, "told to end"),
    "not at all": ("raise RuntimeError('broken')", 1, "failed"),
}


@pytest.mark.parametrize(("act", "status", "said"), ENDS.values(), ids=ENDS)
def test_a_node_sees_whether_it_was_told_to_end(domain, act, status, said):
    process = run_node(
        domain,
        f"""
        def __init__(self):
            super().__init__("ends")
            self.create_timer(0.01, self.act)

        def act(self):
            {act}

        def destroy_node(self):
            print("failed" if self.context.ok() else "told to end", flush=True)
            super().destroy_node()
        """,
    )
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out.strip()) == (status, said), error


def test_a_node_that_dies_is_named_with_its_last_words(rig, tmp_path):
    broken = NodeProcess("hand", "action_node", {"task": "pnp_milk", "robot": "octopus"})
    with supervisor(rig, tmp_path, [PROCESSES[0], broken]) as running:
        pids = [child.pid for child in running.children.values()]
        wait_until(lambda: running.children["hand"].poll() is not None)
        with pytest.raises(NodeDiedError, match=r"hand ended with exit status 1(.|\n)*octopus\.yaml"):
            running.check()
    assert gone(pids)


def test_a_node_that_is_to_be_respawned_is_started_again_unless_it_dies_at_once(rig, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "SHORT_LIFE", 0.5)
    eyes, hand = PROCESSES
    processes = [dataclasses.replace(eyes, respawn=True), hand]
    with supervisor(rig, tmp_path, processes) as running:
        rig.until(lambda: {"eyes", "hand"} <= set(rig.status), "both nodes")
        first = running.children["eyes"].pid
        os.kill(first, signal.SIGKILL)
        rig.until(lambda: running.check() or running.children["eyes"].pid != first, "another process")
        rig.status.clear()
        rig.until(lambda: running.check() or "eyes" in rig.status, "the node, again")
        monkeypatch.setattr(runner, "SHORT_LIFE", 1000.0)
        running.children["eyes"].kill()
        with pytest.raises(NodeDiedError, match="eyes was killed by SIGKILL"):
            rig.until(running.check, "the end")


def test_nothing_is_left_behind_when_the_parent_is_killed(rig, tmp_path):
    script = (
        "import time\nfrom test_runner import PROCESSES, Supervisor\n"
        "with Supervisor(PROCESSES) as s:\n    print(*[c.pid for c in s.children.values()], flush=True)\n    time.sleep(60)"
    )
    environment = {**os.environ, "ROS_DOMAIN_ID": str(rig.domain), "PYTHONPATH": f"{Path(__file__).parent}:{Path.cwd()}"}
    parent = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pids = [int(p) for p in parent.stdout.readline().split()]
        assert len(pids) == 2
        rig.until(lambda: {"eyes", "hand"} <= set(rig.status), "both nodes")
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    wait_until(lambda: gone(pids))


def test_a_supervisor_that_cannot_start_all_leaves_none(tmp_path, monkeypatch):
    started = []

    def command(process):
        if process.name == "hand":
            raise FileNotFoundError("no python")
        return ["sleep", "60"]

    original = subprocess.Popen

    def record(*args, **kwargs):
        started.append(original(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(runner, "command", command)
    monkeypatch.setattr(runner.subprocess, "Popen", record)
    with pytest.raises(FileNotFoundError), Supervisor(PROCESSES, tmp_path):
        pass
    assert len(started) == 1
    assert started[0].poll() is not None


def run_command(rig, *arguments):
    script = f"import sys; from onedp_ros.cli.run import main; sys.exit(main({list(arguments)!r}))"
    environment = {**os.environ, "ROS_DOMAIN_ID": str(rig.domain), "PYTHONPATH": str(Path.cwd())}
    return subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_ctrl_c_stops_onedp_run_and_nothing_is_left_behind(rig, tmp_path):
    """With a model that is none: policy_node still loads when Ctrl-C comes, or has just failed; either way all ends."""
    process = run_command(rig, "pnp_milk", "--robot", "twin", "--model", str(tmp_path))
    try:
        assert process.stdout is not None
        said = [process.stdout.readline()]
        while said[-1] and not said[-1].startswith("running"):  # before that, who can reach the graph
            said.append(process.stdout.readline())
        assert "keeps to this host" in said[0] and "running twin_node, observation_node, policy_node, action_node" in said[-1]
        children = [c.pid for c in psutil.Process(process.pid).children(recursive=True)]
        assert len(children) >= 4
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(GENEROUS) == 0
        assert time.monotonic() - begin < GENEROUS
        assert gone(children)
    finally:
        process.kill()
        process.communicate()


def test_the_graph_of_a_task_names_what_it_lacks(tmp_path):
    processes = task_graph("pnp_milk", model=tmp_path, method="dp_ddim10", seed=3)
    assert [p.name for p in processes] == ["twin_node", "observation_node", "policy_node", "action_node"]
    policy = processes[2].parameters
    assert (policy["model"], policy["method"], policy["seed"], policy["autostart"]) == (str(tmp_path), "dp_ddim10", 3, True)
    with pytest.raises(ValueError, match="octopus"):
        task_graph("pnp_milk", robot="octopus", model=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"juggle\.yaml"):
        task_graph("juggle", model=tmp_path)


def test_each_robot_has_its_node_and_real_ones_wait_to_be_enabled(tmp_path):
    def graph_of(robot, **options):
        return {p.name: p for p in task_graph("pnp_milk", robot=robot, model=tmp_path, **options)}

    assert graph_of("twin")["action_node"].parameters == {"task": "pnp_milk", "robot": "twin", "speed": 1.0, "enabled": True}
    franka = graph_of("franka", franka={"robot_ip": "172.16.0.2"}, speed=0.1)
    assert franka["action_node"].parameters == {"task": "pnp_milk", "robot": "franka", "speed": 0.1, "enabled": False}
    assert franka["franka_node"].parameters["robot_ip"] == "172.16.0.2" and franka["franka_node"].parameters["speed"] == 0.1
    assert [name for name, process in franka.items() if process.respawn] == ["franka_node", "policy_node"]
    assert "crisp_node" in graph_of("crisp") and graph_of("crisp", enabled=True)["action_node"].parameters["enabled"]
    with pytest.raises(ValueError, match="robot_ip"):
        graph_of("franka")


def test_files_of_ones_own_reach_every_node_by_their_full_paths(tmp_path, monkeypatch):
    shutil.copy(graph.resource("config", "tasks", "pnp_milk.yaml"), tmp_path / "mine.yaml")
    shutil.copy(graph.resource("config", "robot", "franka.yaml"), tmp_path / "cell.yaml")
    monkeypatch.chdir(tmp_path)
    options = {"robot": "franka", "robot_file": "cell.yaml", "image_transport": "compressed", "franka": {"robot_ip": "x"}}
    run = task_graph("mine.yaml", model=tmp_path, record=tmp_path, **options)
    for process in (*run, *record_graph("mine.yaml", device="keyboard", **options)):
        assert process.parameters["task"] == str(tmp_path / "mine.yaml"), process.name
        if process.name in ("franka_node", "action_node", "teleop_node"):
            assert process.parameters["robot"] == str(tmp_path / "cell.yaml"), process.name
        if process.name in ("observation_node", "teleop_node", "recorder_node"):
            assert process.parameters["image_transport"] == "compressed", process.name
    assert task_folder("mine.yaml") == Path("out/pnp_milk")
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml does not exist"):
        task_graph("absent.yaml", model=tmp_path)
    with pytest.raises(ValueError, match="speed is 2"):
        task_graph("pnp_milk", model=tmp_path, speed=2.0)
    (tmp_path / "mine.yaml").write_text((tmp_path / "mine.yaml").read_text().replace("pnp_milk", "stack"))
    with pytest.raises(FileNotFoundError, match="no policy is released for stack"):
        task_graph("mine.yaml")


@pytest.mark.parametrize("name", ["FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"])
def test_a_profile_that_the_user_chose_stays(name):
    assert not [key for key in graph_environment({name: "mine.xml"}) if "PROFILES" in key]


RANGE, PROFILE = "ROS_AUTOMATIC_DISCOVERY_RANGE", "FASTRTPS_DEFAULT_PROFILES_FILE"
OWN = str(graph.resource("config", "dds", "shared_memory.xml"))


@pytest.mark.parametrize(
    ("environment", "network", "expected", "profile", "words"),
    [
        ({}, "", {RANGE: "LOCALHOST"}, "localhost", "keeps to this host, sockets on loopback"),
        ({PROFILE: OWN}, "", {RANGE: "LOCALHOST"}, "localhost", "keeps to this host"),
        ({}, "subnet", {RANGE: "SUBNET"}, "shared_memory", "open to the network, ROS_AUTOMATIC_DISCOVERY_RANGE=SUBNET: "),
        ({RANGE: "SUBNET", "ROS_DOMAIN_ID": "7"}, "", {}, "shared_memory", "ROS domain 7"),
        ({RANGE: "SUBNET"}, "localhost", {RANGE: "LOCALHOST"}, "localhost", "keeps to this host"),
        ({RANGE: "LOCALHOST"}, "subnet", {RANGE: "SUBNET"}, "shared_memory", "open to the network"),
        ({"ROS_STATIC_PEERS": "10.0.0.9"}, "", {RANGE: "LOCALHOST"}, "shared_memory", "ROS_STATIC_PEERS=10.0.0.9"),
        ({"ROS_STATIC_PEERS": "x"}, "localhost", {RANGE: "LOCALHOST", "ROS_STATIC_PEERS": ""}, "localhost", "keeps to this host"),
        ({"ROS_LOCALHOST_ONLY": "1"}, "subnet", {RANGE: "SUBNET", "ROS_LOCALHOST_ONLY": "0"}, "shared_memory", "open to"),
        ({"ROS_DISTRO": "humble"}, "", {RANGE: "LOCALHOST", "ROS_LOCALHOST_ONLY": "1"}, "localhost", "keeps to this host"),
    ],
)
def test_a_graph_keeps_to_this_host_unless_asked(environment, network, expected, profile, words):
    added = graph_environment(environment, network)
    assert Path(added.pop(PROFILE)).stem == profile
    assert added == expected
    made = {**environment, **graph_environment(environment, network)}
    assert words in graph.describe_network(made)
    assert {**made, **graph_environment(made)} == made, "the same again for what this process starts"
    with pytest.raises(ValueError, match="network is 'wan'"):
        graph_environment(environment, "wan")


def test_command_lines_carry_values_of_every_type():
    line = runner.command(NodeProcess("x", "policy_node", {"rate": 64.0, "autostart": True, "model": "/a b/c", "seed": 1}))
    assert line[1:] == [
        *("-m", "onedp_ros.nodes.policy_node", "--ros-args", "-r", "__node:=x"),
        *("-p", "rate:=64.0", "-p", "autostart:=true", "-p", 'model:="/a b/c"', "-p", "seed:=1"),
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"robot": "octopus"}, "unknown robot 'octopus', expected one of twin, franka, crisp; to add one, .*processes\\.py"),
        ({"method": "magic"}, r"unknown method 'magic', expected one of .*onedp_s.*; to add one, write .*methods/magic\.py"),
        ({"engine": "steam"}, r"unknown engine 'steam', expected one of .*torch; to add one, write .*engines/steam\.py"),
        ({"image_transport": "pigeon"}, "image_transport is 'pigeon', expected one of raw, compressed"),
    ],
)
def test_onedp_run_lists_what_there_is_for_an_unknown_name(options, words, capsys):
    arguments = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", value)]
    assert onedp(["run", "pnp_milk", *arguments]) == 1
    assert re.search(f"^onedp run: {words}", capsys.readouterr().err)


def test_a_signal_that_comes_before_ros_is_there_ends_a_node_that_rests_first(tmp_path):
    script = """
        import os, signal, sys, rclpy
        from onedp_ros.nodes.lib import process
        from onedp_ros.nodes.action_node import ActionNode
        init = rclpy.init
        def late(**options):
            os.kill(os.getpid(), signal.SIGINT)
            while not told[0].received:
                pass
            init(**options)
        told, make = [], process._StopSignals
        process._StopSignals = lambda: told.append(make()) or told[0]
        rclpy.init = late
        sys.exit(process.run_node(ActionNode, rest=True))
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], timeout=60, cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
