"""The demo's whole path on a real graph, with an untrained policy and one short episode."""

import json
from pathlib import Path

import pytest

from onedp_ros.cli.demo import run, table


def test_demo_writes_its_figures(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, domain: int) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
    summary = run("pnp_milk", tmp_path, model=bundle, engine="torch", episodes=1, max_time=2.0)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["episodes"] == 1 and summary["successes"] == 0
    assert summary["policy_hz"] > 5 and summary["method"] == "onedp_s" and summary["nfe"] == 1
    assert 0 < summary["frames_received"] <= summary["frames_sent"] + 2
    for name in ("episode.mp4", "timeline.png", "logs/policy_node.log"):
        assert (tmp_path / name).exists()
    assert (tmp_path / "episode.mp4").stat().st_size > 5000
    assert "received of" in table(summary)
