"""A round of a study on a real graph, with an untrained policy."""

import dataclasses
from pathlib import Path

import pytest

from onedp_ros.evaluation.study.live import live_rounds
from onedp_ros.evaluation.study.plan import plan


def test_a_round_begins_at_its_start_and_tells_how_it_went(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, domain: int
) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
    (series,) = plan(["pnp_milk"], ["onedp_s"], ["real_time"], model=bundle)
    series = dataclasses.replace(series, max_time=1.5)
    first, second = live_rounds(series, [3, 1], engine="torch", logs=tmp_path / "logs", videos=tmp_path)
    assert (first["round"], first["seed"], first["cell"]) == (3, series.grid.starts[3].seed, 3)
    assert (second["round"], second["seed"]) == (1, series.grid.starts[1].seed)
    for record in (first, second):
        assert not record["success"] and record["failure"] in ("never grasped", "missed grasp") and record["time_s"] > 1.5
        assert "twin_node reports" in record["reports"]
        assert (record["engine"], record["nfe"]) == ("torch", 1)
        assert 0 < record["encoding_ms_p50"] < record["inference_ms_p50"] <= record["inference_ms_p99"]
        assert record["policy_hz"] > 5 and record["target_hz"] > 5 and record["chunk_latency_ms_p50"] > 0
        assert (tmp_path / f"{record['round']:03}.mp4").stat().st_size > 2000
