"""``onedp record`` on a real graph, without a person: the twin's expert, the live recorder, and what is converted from it."""

import numpy as np
import pytest

from onedp_ros.cli.record import main
from onedp_ros.contract import task_contract
from onedp_ros.data.bags.reader import read_metadata
from onedp_ros.data.episodes import read_episodes
from onedp_ros.graph.processes import record_graph
from onedp_ros.tasks.pick_and_place import BOX

SEED = 3


def test_the_experts_demonstration_goes_through_the_live_recorder_and_converts(tmp_path, monkeypatch, domain, capfd):
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
    arguments = ["pnp_milk", "--device", "expert", "--episodes", "1", "--twin-seed", str(SEED), "--out", str(tmp_path / "bags")]
    assert main(arguments) == 0
    assert "episode 1/1: success" in capfd.readouterr().out
    (bag,) = (tmp_path / "bags").iterdir()
    metadata = read_metadata(bag)
    assert metadata["success"] is True and metadata["operator"] == "scripted expert" and metadata["robot"] == "twin"
    contract = task_contract("pnp_milk")
    episodes, _ = read_episodes(bag, contract)
    steps = max(episodes, key=lambda e: len(e.stamps))
    assert sum(len(e.stamps) for e in episodes) > 40
    np.testing.assert_allclose(np.diff(steps.stamps) * 1e-9, contract.dt, atol=contract.dt / 2)
    last = episodes[-1]
    assert np.linalg.norm(last.state[-1, :2] - BOX) < 0.05, "the arm ends over the box"
    assert np.stack(list(last.images["wrist"])).std() > 10, "the pictures show something"


def test_the_graph_of_a_recording_names_what_cannot_be():
    names = [p.name for p in record_graph("pnp_milk", robot="franka", device="spacenav", franka={"robot_ip": "172.16.0.2"})]
    assert names == ["franka_node", "recorder_node", "teleop_node"]
    assert [p.name for p in record_graph("pnp_milk", device="expert")] == ["twin_node", "recorder_node"]
    assert [p.terminal for p in record_graph("pnp_milk", device="keyboard")] == [False, False, True], "teleop_node may read it"
    assert [p.name for p in record_graph("pnp_milk", device="none")] == ["twin_node", "recorder_node"]
    with pytest.raises(ValueError, match="unknown device 'wheel'"):
        record_graph("pnp_milk", device="wheel")
    with pytest.raises(ValueError, match="expert drives the twin only"):
        record_graph("pnp_milk", robot="crisp", device="expert")
    with pytest.raises(ValueError, match="robot_ip"):
        record_graph("pnp_milk", robot="franka")
