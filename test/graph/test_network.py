"""Who reaches a graph: two hosts, made of network namespaces, each with shared memory of its own."""

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from onedp_ros.graph.processes import enclave, record_graph, task_graph
from onedp_ros.nodes.action_node import ActionNode
from onedp_ros.nodes.franka_node import FrankaNode
from onedp_ros.nodes.observation_node import ObservationNode
from onedp_ros.nodes.recorder_node import RecorderNode
from onedp_ros.nodes.twin_node import TwinNode

ROOT = Path(__file__).resolve().parents[2]
CELL, LAB = "10.77.0.1", "10.77.0.2"
# Everything that would choose a network for the test's processes.
CHOSEN = ("ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_STATIC_PEERS", "ROS_LOCALHOST_ONLY", "FASTRTPS_DEFAULT_PROFILES_FILE")


@pytest.fixture(scope="module")
def hosts() -> Iterator[dict[str, str]]:
    """Name -> network namespace of two hosts, ``cell`` and ``lab``, on one wire."""
    made = {name: f"onedp_{name}_{os.getpid()}" for name in ("cell", "lab")}
    wires = {name: f"{name}{os.getpid()}"[:15] for name in made}

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    if not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("making two hosts needs ip and unshare (packages iproute2 and util-linux)")
    try:
        try:
            for namespace in made.values():
                ip("netns", "add", namespace)
            ends = [("name", wires[n], "netns", made[n]) for n in made]
            ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"making two hosts needs permission to make network namespaces: {error.stderr.strip()}")
        for (name, namespace), address in zip(made.items(), (CELL, LAB), strict=True):
            ip("-n", namespace, "address", "add", f"{address}/24", "dev", wires[name])
            for device in ("lo", wires[name]):
                ip("-n", namespace, "link", "set", device, "up")
        yield made
    finally:
        for namespace in made.values():
            subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)


def on_host(namespace: str, script: str, domain: int, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A Python program with a host's network and an empty /dev/shm of its own, as another machine's."""
    command = 'mount -t tmpfs shm /dev/shm && exec "$0" -c "$@"'
    kept = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    return subprocess.Popen(
        ["ip", "netns", "exec", namespace, "unshare", "--mount", "--ipc", "sh", "-c", command, sys.executable, script, *arguments],
        env={**kept, "ROS_DOMAIN_ID": str(domain), "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# The twin and action_node, as onedp run starts them, and one that watches the arm until told to stop.
GRAPH = """
import json, sys, tempfile, threading
import numpy as np
from geometry_msgs.msg import PoseStamped
from onedp_ros.cli.arguments import graph_parser, place
from onedp_ros.graph.client import GraphWatch
from onedp_ros.graph.processes import task_graph
from onedp_ros.graph.supervisor import Supervisor

args = graph_parser("watch", __doc__).parse_args(["pnp_milk", *sys.argv[1:]])
nodes = task_graph(args.task, enabled=False, model=tempfile.gettempdir())
told = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), told.set()), daemon=True).start()
with Supervisor(place(args, [nodes[0], nodes[-1]])) as supervisor:
    watch = GraphWatch("watch", supervisor.check)
    places = []
    keep = lambda m: places.append([m.pose.position.x, m.pose.position.y, m.pose.position.z])
    watch.node.create_subscription(PoseStamped, "current_pose", keep, 10)
    assert watch.spin_until(lambda: {"action_node", "twin_node"} <= set(watch.history) and len(places) > 200, 60.0)
    print("ready", flush=True)
    start = np.array(places[-1])
    assert watch.spin_until(told.is_set, 60.0)
    moved = 1e3 * np.abs(np.array(places) - start).max()
    watch.close()
print(json.dumps({"moved_mm": moved}))
"""

# Somebody who looks around, enables the arm and publishes chunks, with a fresh installation's settings.
STRANGER = """
import json, os, sys, time
import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped
from std_srvs.srv import SetBool
from trajectory_msgs.msg import MultiDOFJointTrajectory
from onedp_ros.control.chunk import ActionChunk
from onedp_ros.messages.encode import chunk_message

rclpy.init()
node = rclpy.create_node(f"stranger_{os.getpid()}")
heard, answered, future, steps = [], False, None, np.arange(16)
node.create_subscription(PoseStamped, "current_pose", heard.append, 10)
client = node.create_client(SetBool, "action_node/enable")
chunks = node.create_publisher(MultiDOFJointTrajectory, "action/chunk", 1)
quaternion = np.tile([1.0, 0.0, 0.0, 0.0], (16, 1))
end, period = time.monotonic() + float(sys.argv[1]), 0.05
while time.monotonic() < end:
    now = node.get_clock().now().nanoseconds
    last = heard[-1].pose.position if heard else None
    place = np.array([last.x, last.y, last.z] if last else [0.45, 0.0, 0.4])
    positions = place + np.array([0.0, 0.004, 0.0]) * steps[:, None]
    chunk = ActionChunk(now, now + (steps - 1) * 50_000_000, positions, quaternion, np.full(16, 0.04))
    chunks.publish(chunk_message(chunk, "base"))
    begin = time.monotonic()
    while time.monotonic() < begin + period:
        rclpy.spin_once(node, timeout_sec=0.01)
    if future is None and client.service_is_ready():
        future = client.call_async(SetBool.Request(data=True))
    answered = answered or bool(future and future.done())
names = sorted(name for name in node.get_node_names() if not name.startswith("stranger"))
print(json.dumps({"nodes": names, "heard": len(heard), "answered": answered}))
"""


@pytest.mark.parametrize("network", ["", "subnet"])
def test_a_stranger_on_the_network_reaches_an_open_graph_only(hosts, domain, network):
    """One with a fresh installation's settings; and, at the closed graph, another who names its host as a peer."""
    graph = on_host(hosts["cell"], GRAPH, domain, *(["--network", network] if network else []))
    strangers = []
    try:
        assert graph.stdout is not None
        said = graph.stdout.readline()
        assert ("open to the network" if network else "keeps to this host") in said
        assert graph.stdout.readline() == "ready\n", graph.communicate()
        for peers in ["", *([] if network else [CELL])]:
            strangers.append(on_host(hosts["lab"], STRANGER, domain, "3", ROS_STATIC_PEERS=peers))
        found = []
        for stranger in strangers:
            out, error = stranger.communicate(timeout=40)
            assert out, error
            found.append(json.loads(out))
        out, error = graph.communicate("stop\n", timeout=40)
        assert out, error
        moved = json.loads(out)["moved_mm"]
    finally:
        for process in (graph, *strangers):
            process.kill()
            process.wait()
    if network:
        assert {"action_node", "twin_node"} <= set(found[0]["nodes"]) and found[0]["answered"] and found[0]["heard"]
        assert moved > 10.0, "else this test would see nothing of a stranger's doing"
    else:
        assert found == [{"nodes": [], "heard": 0, "answered": False}] * 2
        assert moved < 0.01, f"{moved} mm"


ROWS = [
    (ObservationNode, {}),
    (ActionNode, {}),
    (TwinNode, {}),
    (FrankaNode, {}),
    (RecorderNode, {"out": "bags"}),
]


def test_the_policy_of_security_allows_what_nodes_do(rig, tmp_path, monkeypatch):
    """Else a node would run without keys and fail with them, which cannot be tried with the wheels."""
    monkeypatch.setenv("ROS_DOMAIN_ID", str(rig.domain))  # for the twin's cameras
    policy = ElementTree.parse(ROOT / "config" / "security" / "policy.xml")
    for make, parameters in ROWS:
        rig.add(make, **{key: str(tmp_path / value) for key, value in parameters.items()})
    names = [make.__name__.replace("Node", "_node").lower() for make, _ in ROWS]
    alias = {"twin_cameras": "twin_node"}
    rig.until(lambda: {*names, *alias} <= set(rig.node.get_node_names()), "all nodes")
    rig.until(lambda: rig.node.count_publishers("wrist_camera/color/camera_info"), "the cameras")
    for name in [*names, *alias]:
        profile = policy.find(f".//enclave[@path='/onedp_ros/{alias.get(name, name)}']/profiles/profile")
        assert profile is not None, name
        allowed = {
            (group.tag, verb): [f"/{(item.text or '').replace('~', name)}" for item in group]
            for group in profile
            for verb in group.attrib
        }
        for kind, verb, endpoints in (
            ("topics", "publish", rig.node.get_publisher_names_and_types_by_node(name, "/")),
            ("topics", "subscribe", rig.node.get_subscriber_names_and_types_by_node(name, "/")),
            ("services", "reply", rig.node.get_service_names_and_types_by_node(name, "/")),
            ("services", "request", rig.node.get_client_names_and_types_by_node(name, "/")),
        ):
            patterns = allowed.get((kind, verb), [])
            missing = [e for e, _ in endpoints if not any(fnmatch(e, pattern) for pattern in patterns)]
            assert not missing, (name, kind, verb, missing)


def test_nodes_take_their_own_keys_when_security_is_on():
    on = {"ROS_SECURITY_ENABLE": "true"}
    policy = (ROOT / "config" / "security" / "policy.xml").read_text()
    for process in (*task_graph("pnp_milk", robot="crisp", record="x"), *record_graph("pnp_milk")):
        flag, path = enclave(on, process.executable)
        assert flag == "--enclave" and f'path="{path}"' in policy
    assert not enclave({}, "action_node") and not enclave({**on, "ROS_SECURITY_ENCLAVE_OVERRIDE": "/x"}, "action_node")
