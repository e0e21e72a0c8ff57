"""The processes of a task's graph, shared by ``ros2 launch`` and ``onedp run``.

Launch files import this module, on the system's Python: it needs only the standard library and YAML.
"""

from __future__ import annotations

import dataclasses
import random
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from onedp_ros.graph.shm import PROFILES
from onedp_ros.policy.engines import AUTO, ENGINES
from onedp_ros.policy.methods import split_name
from onedp_ros.resources import named_file, policy_task, read_task, resource
from onedp_ros.robot import MODES
from onedp_ros.teleop.devices import DEVICES

NO_DEVICE = ("expert", "none")  # instead of a device: something else moves the arm
PACKAGE = "onedp_ros"
NETWORKS = ("localhost", "subnet")
RANGE = "ROS_AUTOMATIC_DISCOVERY_RANGE"
PEERS = ("ROS_STATIC_PEERS", "ROS_DISCOVERY_SERVER")
LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")
TRANSPORTS = ("raw", "compressed")  # of images
REALTIME = ("enforce", "ignore")
DEFAULT_METHOD, DEFAULT_DEVICE = "onedp_s", "phone"


@dataclasses.dataclass(frozen=True)
class NodeProcess:
    """One node in its own process: ``executable`` of this package, also the module's name in ``onedp_ros.nodes``. With ``respawn``
    a node that exits is restarted; without, its exit ends the graph. ``terminal``: it may read from the terminal. ``namespace``,
    ``params_file``, ``log_level``: see :func:`placed`; empty: none, and ROS's default level."""

    name: str
    executable: str
    parameters: Mapping[str, Any]
    respawn: bool = False
    terminal: bool = False
    namespace: str = ""
    params_file: str = ""
    log_level: str = ""


@dataclasses.dataclass(frozen=True)
class Robot:
    """A robot: its node, ``config/robot/<file>.yaml``, and whether it is ``real``: then it waits to be enabled.

    ``parameters``: makes the node's parameters from those common to all nodes that move something, the twin's seed and the options
    of a Franka.
    """

    node: str
    file: str
    parameters: Callable[[Mapping[str, Any], int, Mapping[str, Any]], dict[str, Any]]
    real: bool = True
    respawn: bool = False


def _task_and_robot(common: Mapping[str, Any]) -> dict[str, Any]:
    return {"task": common["task"], "robot": common["robot"]}


def _franka_parameters(common: Mapping[str, Any], _twin_seed: int, franka: Mapping[str, Any]) -> dict[str, Any]:
    if not franka.get("robot_ip"):
        raise ValueError("robot franka needs robot_ip, its address, such as 172.16.0.2; onedp fake-franka serves one at 127.0.0.1")
    return {**common, "autostart": True, **franka}


ROBOTS = {
    "twin": Robot("twin_node", "twin", lambda common, seed, _: {**_task_and_robot(common), "seed": seed}, real=False),
    "franka": Robot("franka_node", "franka", _franka_parameters, respawn=True),
    "crisp": Robot("crisp_node", "franka", lambda common, *_: _task_and_robot(common)),
}


def task_graph(
    task: str,
    *,
    robot: str = "twin",
    robot_file: str = "",
    speed: float = 1.0,
    image_transport: str = "raw",
    method: str = DEFAULT_METHOD,
    engine: str = AUTO,
    model: str | Path = "",
    seed: int = 0,
    twin_seed: int = 100_000,
    enabled: bool | None = None,
    lead: float | None = None,
    threads: int = 0,
    franka: Mapping[str, Any] | None = None,
    record: str | Path | None = None,
) -> list[NodeProcess]:
    """The processes that run a policy on a task, in starting order.

    Args:
        task: name of a file in ``config/tasks``, or path of a task file.
        robot: one of :data:`ROBOTS`.
        robot_file: name of a file in ``config/robot``, or path of one; default: the robot's own.
        speed: fraction of the robot file's speeds.
        image_transport: raw or compressed, as the cameras publish.
        method: sampler or generator, one of ``policy.methods.METHODS``.
        engine: inference engine, one of ``policy.engines.ENGINES``, or auto.
        model: directory of the policy; default: the released one of the method, which policy_node finds.
        seed: of the policy's noise.
        twin_seed: of the twin's first episode.
        enabled: whether the arm may move from the start, or waits for action_node's ``~/enable``; default: only the twin's may.
        lead: how far ahead of the clock action_node samples chunks, s; default: action_node's own.
        threads: CPU threads of the engine; 0: its own choice.
        franka: further parameters of franka_node, ``robot_ip`` among them.
        record: folder to record the run to, including the policy's observations and chunks.

    Raises:
        ValueError: an unknown robot, method or engine, or a Franka without an address.
        FileNotFoundError: no such task, or no released policy for it.
    """
    split_name(method)
    if engine != AUTO:
        ENGINES.check(engine)
    common = _common(task, robot, robot_file, speed, image_transport)
    arm = _arm_process(common, robot, twin_seed, franka or {})
    task = common["task"]
    if not model:
        _check_released(task)
    real = ROBOTS[robot].real
    policy = {
        "task": task,
        "model": str(Path(model).resolve()) if model else "",
        "method": method,
        "engine": engine,
        "threads": threads,
        "seed": seed,
        "autostart": True,
    }
    action = {**common, "enabled": not real if enabled is None else enabled, **({} if lead is None else {"lead": lead})}
    cameras = {"image_transport": image_transport}
    nodes = [
        arm,
        NodeProcess("observation_node", "observation_node", {"task": task, **cameras}),
        NodeProcess("policy_node", "policy_node", policy, respawn=real),
        NodeProcess("action_node", "action_node", action),
    ]
    if record is not None:
        seen = [f"observation/{camera}/image" for camera in read_task(task)["cameras"]]
        recorder = {
            "task": task,
            "robot": robot,
            "operator": method,
            "out": str(Path(record).resolve()),
            "extra_topics": [*seen, "observation/state", "action/chunk", "/diagnostics"],
            "autostart": True,
            **cameras,
        }
        nodes.append(NodeProcess("recorder_node", "recorder_node", recorder))
    return nodes


def replay_graph(task: str, *, image_transport: str = "raw", with_action: bool = False, **policy: Any) -> list[NodeProcess]:
    """The nodes that process a recording's messages, in the time of ``/clock``; ``policy``: see :func:`task_graph`.

    ``with_action``: also action_node, disabled.
    """
    _, observation, *others = task_graph(task, enabled=False, **policy)
    # A recording's clock lags behind its messages by up to one tick, and is far ahead of them at the start.
    times = {"future_tolerance": 1.0, "max_observation_age": 1000.0}
    parameters = {**observation.parameters, "image_transport": image_transport, **times}
    nodes = [dataclasses.replace(observation, parameters=parameters), *(others if with_action else others[:1])]
    return [dataclasses.replace(n, parameters={**n.parameters, "use_sim_time": True}) for n in nodes]


def record_graph(
    task: str,
    *,
    robot: str = "twin",
    robot_file: str = "",
    speed: float = 1.0,
    image_transport: str = "raw",
    device: str = DEFAULT_DEVICE,
    operator: str = "",
    out: str | Path = "",
    host: str = "127.0.0.1",
    port: int = 8443,
    teleop: str | Path = "",
    twin_seed: int = 0,
    franka: Mapping[str, Any] | None = None,
) -> list[NodeProcess]:
    """The processes that record demonstrations, in starting order.

    Args:
        task, robot, robot_file, speed, image_transport, twin_seed, franka: see :func:`task_graph`.
        device: the operator's device, one of ``teleop.devices.DEVICES``; ``expert``: the twin's scripted expert drives; ``none``: a
            teleop_node, or another publisher of targets, is started elsewhere.
        operator: the operator's name, stored in the bags.
        out: folder of the bags; default: the recorder's.
        host, port: address at which a phone reaches this machine.
        teleop: a file like ``config/teleop.yaml``; default: that one.

    Raises:
        ValueError: see :func:`task_graph`; also an unknown device, or an expert without a twin.
        FileNotFoundError: no such task.
    """
    if device not in NO_DEVICE:
        DEVICES.check(device)
    if device == "expert" and robot != "twin":
        raise ValueError(f"the scripted expert drives the twin only, not '{robot}'; choose a device")
    common = _common(task, robot, robot_file, speed, image_transport)
    arm = _arm_process(common, robot, twin_seed, franka or {})
    teleop_parameters = {
        **common,
        "device": device,
        "teleop": str(Path(teleop).resolve()) if teleop else "",
        "host": host,
        "port": port,
        "image_transport": image_transport,
    }
    recorder = {
        "task": common["task"],
        "robot": robot,
        "operator": operator or ("scripted expert" if device == "expert" else ""),
        "out": str(out),
        "image_transport": image_transport,
    }
    return [
        arm,
        NodeProcess("recorder_node", "recorder_node", recorder),
        *([] if device in NO_DEVICE else [NodeProcess("teleop_node", "teleop_node", teleop_parameters, terminal=True)]),
    ]


def placed(
    processes: Sequence[NodeProcess],
    *,
    namespace: str = "",
    use_sim_time: bool = False,
    params_file: str | Path = "",
    log_level: str = "",
) -> list[NodeProcess]:
    """The same nodes with a namespace and common settings.

    Args:
        namespace: of all nodes, topics and services, so that several robots can share a ROS domain.
        use_sim_time: whether the nodes use the time of ``/clock``.
        params_file: YAML file of parameters, as for ``--params-file``. Parameters given to the nodes by name override it.
        log_level: one of :data:`LOG_LEVELS`.

    Raises:
        ValueError: an invalid namespace or an unknown level.
        FileNotFoundError: no such file.
    """
    if not re.fullmatch(r"(/?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*)?", namespace):
        raise ValueError(f"namespace is '{namespace}', expected names of letters, digits and _, such as left or cell/left")
    _check_choice("log_level", log_level, ("", *LOG_LEVELS))
    if params_file and not Path(params_file).is_file():
        raise FileNotFoundError(f"params_file {params_file} does not exist; give the path of a YAML file of parameters")
    common: dict[str, Any] = {
        "namespace": f"/{namespace.strip('/')}" if namespace else "",
        "params_file": str(Path(params_file).resolve()) if params_file else "",
        "log_level": log_level,
    }
    time = {"use_sim_time": True} if use_sim_time else {}
    return [dataclasses.replace(p, parameters={**p.parameters, **time}, **common) for p in processes]


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is '{value}', expected one of {', '.join(filter(None, allowed))}")


def _common(task: str, robot: str, robot_file: str, speed: float, image_transport: str) -> dict[str, Any]:
    """The parameters common to all nodes that move something. Errors of :func:`task_graph`."""
    if robot not in ROBOTS:
        raise ValueError(
            f"unknown robot '{robot}', expected one of {', '.join(ROBOTS)}; to add one, write its node and a row of ROBOTS in "
            f"onedp_ros/graph/processes.py"
        )
    if not 0 < speed <= 1:
        raise ValueError(f"speed is {speed}, expected a fraction above 0 and up to 1")
    _check_choice("image_transport", image_transport, TRANSPORTS)
    files = {"tasks": task, "robot": robot_file or ROBOTS[robot].file}
    for folder, name in files.items():
        path = named_file(folder, name)
        files[folder] = str(path) if name.endswith(path.suffix) else name
    return {"task": files["tasks"], "robot": files["robot"], "speed": speed}


def _arm_process(common: Mapping[str, Any], robot: str, twin_seed: int, franka: Mapping[str, Any]) -> NodeProcess:
    """The robot's node. Errors of :func:`task_graph`."""
    _check_choice("mode", franka.get("mode", ""), ("", *MODES))
    _check_choice("realtime", franka.get("realtime", REALTIME[0]), REALTIME)
    row = ROBOTS[robot]
    return NodeProcess(row.node, row.node, row.parameters(common, twin_seed, franka), respawn=row.respawn)


def _check_released(task: str) -> None:
    name = policy_task(task)
    try:
        resource("models", name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no policy is released for {name}: give the directory of yours as model") from error


def graph_environment(environment: Mapping[str, str], network: str = "") -> dict[str, str]:
    """Environment variables that the nodes need besides ``environment``: discovery range, and shared memory large enough for
    images.

    Args:
        environment: like ``os.environ``.
        network: ``localhost``: this host only; ``subnet``: all hosts on the network; empty: ``ROS_AUTOMATIC_DISCOVERY_RANGE``, or
            localhost if that is not set. Hosts in ``ROS_STATIC_PEERS`` and a server in ``ROS_DISCOVERY_SERVER`` stay reachable
            unless ``localhost`` is requested. A Fast DDS profile chosen by the user is kept.

    Raises:
        ValueError: an unknown network.
    """
    _check_choice("network", network, ("", *NETWORKS))
    added = {}
    if network or not environment.get(RANGE):
        added[RANGE] = (network or "localhost").upper()
        only = "1" if network != "subnet" else "0"
        if environment.get("ROS_LOCALHOST_ONLY", "0") != only and (only == "0" or environment.get("ROS_DISTRO") == "humble"):
            added["ROS_LOCALHOST_ONLY"] = only  # the only variable in Humble; later distributions respect it, too
    if network == "localhost":
        added |= {name: "" for name in PEERS if environment.get(name)}
    chosen = next((environment[name] for name in PROFILES if environment.get(name)), "")
    if not chosen or Path(chosen).parent == resource("config", "dds"):
        added[PROFILES[0]] = str(
            resource("config", "dds", "localhost.xml" if _closed({**environment, **added}) else "shared_memory.xml")
        )
    return added


def _closed(environment: Mapping[str, str]) -> bool:
    """Whether nodes with this environment discover others on this host only."""
    local = environment.get(RANGE, "").upper() in ("LOCALHOST", "OFF") or environment.get("ROS_LOCALHOST_ONLY", "0") == "1"
    return local and not any(environment.get(name) for name in PEERS)


def enclave(environment: Mapping[str, str], name: str) -> list[str]:
    """ROS arguments that give a node its SROS 2 enclave, as in ``config/security/policy.xml``; none without security.

    ``name``: a node's executable, or ``operator`` for a program that monitors the graph.
    """
    if environment.get("ROS_SECURITY_ENABLE") != "true" or environment.get("ROS_SECURITY_ENCLAVE_OVERRIDE"):
        return []
    return ["--enclave", f"/{PACKAGE}/{'robot' if name == 'crisp_node' else name}"]


def describe_network(environment: Mapping[str, str]) -> str:
    """One sentence on who can reach nodes with this environment."""
    domain = environment.get("ROS_DOMAIN_ID") or "0"
    if _closed(environment):
        loopback = environment.get(PROFILES[0], "") == str(resource("config", "dds", "localhost.xml"))
        sockets = ", sockets on loopback" if loopback and "fastrtps" in environment.get("RMW_IMPLEMENTATION", "fastrtps") else ""
        return f"the graph keeps to this host{sockets}; network subnet opens it to others (docs/how-to/network.md)"
    why = [f"{name}={environment[name]}" for name in (RANGE, *PEERS) if environment.get(name)]
    return (
        f"the graph is open to the network, {', '.join(why)}: whoever is in ROS domain {domain} there can see and move it "
        f"(docs/how-to/network.md)"
    )


def own_domain() -> dict[str, str]:
    """Environment variables for processes that talk to each other only."""
    return {"ROS_DOMAIN_ID": str(free_domain()), RANGE: "LOCALHOST"}


def free_domain() -> int:
    """A ROS domain that is not in use on this machine."""
    for domain in random.SystemRandom().sample(range(1, 100), 99):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            probe.bind(("", 7400 + 250 * domain + 10))  # the port of a domain's first participant
            return domain
    raise RuntimeError("all ROS domains from 1 to 99 are in use on this machine")
