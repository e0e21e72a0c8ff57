"""Replays a recording through observation_node and policy_node themselves."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import rclpy
import yaml

from onedp_ros.evaluation.replayed import Outputs, Recorded, Replayed, stamps_of_windows
from onedp_ros.graph.processes import free_domain, graph_environment, replay_graph
from onedp_ros.graph.supervisor import Supervisor
from onedp_ros.nodes.player_node import PlayerNode


def replay_in_graph(
    bag: Path, recording: Recorded, *, real_time: bool = False, logs: Path | None = None, **policy: Any
) -> Replayed:
    """Play a bag through both nodes, as processes in a separate ROS domain, so that no arm follows the recording.

    The clock is the recording's, and waits for the chunk of each set; with ``real_time`` it does not. ``policy``: method, engine,
    model, seed, threads, as for ``graph.task_graph``.

    Raises:
        NodeDiedError: a node exited.
        RuntimeError: no chunk came.
        BagError: the bag is unfinished, or lacks a topic.
    """
    contract, domain = recording.outputs.contract, free_domain()
    with tempfile.TemporaryDirectory(prefix="onedp_replay_") as folder:
        task = Path(folder, f"{contract.task}.yaml")  # the contract that it was recorded under, whatever config/tasks holds now
        task.write_text(yaml.safe_dump(contract.to_dict(), sort_keys=False), encoding="utf-8")
        return _replay(bag, recording, str(task), domain, real_time, logs, policy)


def _replay(
    bag: Path, recording: Recorded, task: str, domain: int, real_time: bool, logs: Path | None, policy: dict[str, Any]
) -> Replayed:
    contract = recording.outputs.contract
    processes = replay_graph(task, image_transport=recording.transport, **policy)
    if not real_time:  # it waits for the chunk of every set, however late that set came live
        processes[1] = dataclasses.replace(processes[1], parameters={**processes[1].parameters, "max_observation_age": 10.0})
    os.environ.update(graph_environment(os.environ, "localhost"))
    outputs = Outputs(contract)
    with Supervisor(processes, logs, {"ROS_DOMAIN_ID": str(domain)}) as supervisor:
        given = {"task": task, "bag": str(bag), "image_transport": recording.transport, "real_time": real_time}
        overrides = [rclpy.parameter.Parameter(name, value=value) for name, value in given.items()]
        context = rclpy.Context()
        rclpy.init(args=[], context=context, domain_id=domain)
        player = PlayerNode(outputs.add, supervisor.check, context=context, parameter_overrides=overrides)
        try:
            player.connect()
            player.play()
        finally:
            player.destroy_node()
            rclpy.shutdown(context=context)
    # In real time the policy may skip the first sets, which its history then lacks.
    window_stamps = stamps_of_windows(contract, sorted(outputs.sets), outputs.chunks, whole=not real_time)
    return Replayed(outputs.sets, outputs.chunks, window_stamps, {"sets without a chunk in time": player.late})
