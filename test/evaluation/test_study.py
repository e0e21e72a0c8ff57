"""The study's folder, starts, tables and pictures, from rounds that are made up; the graph's part is in test/graph."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from onedp_ros.cli import main
from onedp_ros.config import ConfigError
from onedp_ros.contract import Contract, Normalizer, task_contract
from onedp_ros.evaluation.study import folder as folder_module
from onedp_ros.evaluation.study import live, run
from onedp_ros.evaluation.study.folder import StudyFolder, program, read_rounds
from onedp_ros.evaluation.study.plan import METHODS, plan, settings
from onedp_ros.evaluation.study.series import Series, latency_mode
from onedp_ros.evaluation.study.starts import FIRST_SEED, Grid, Start, find_starts
from onedp_ros.evaluation.study.tables import difference, figures, wilson
from onedp_ros.policy.checkpoint import save_policy
from onedp_ros.policy.networks import NetworkConfig
from onedp_ros.policy.policies import Policy
from onedp_ros.tasks import TASKS
from onedp_ros.tasks.base import Task
from onedp_ros.twin.cell import Cell

MACHINE = {"name": "abacus", "cores": 2, "instructions": ["avx2"]}
CONTRACT = task_contract("pnp_milk")
LABELS = ("x (m)", "y (m)")
GRID = Grid(2, 2, ((0.4, 0.6), (0.0, 0.2)), LABELS, LABELS, tuple(Start(i, FIRST_SEED + i, (0.4, 0.1)) for i in range(4)))


def series(method: str = "onedp_s", mode: str = "real_time", rounds: int = 4) -> Series:
    grid = dataclasses.replace(GRID, starts=GRID.starts[:rounds])
    return Series(mode, "pnp_milk", CONTRACT, method, Path("models"), f"digests of {method}", grid, 20.0)


def record(of: Series, number: int, success: bool, time: float, **others: Any) -> dict[str, Any]:
    speed = {"encoding_ms_p50": 4.0, "inference_ms_p50": 10.0, "inference_ms_p99": 15.0, "chunk_latency_ms_p50": 20.0}
    rates = {"policy_hz": 60.0, "target_hz": 60.0, "holds": 1, "time_lost_s": 0.5, "jump_mm": 2.0 + number, "turn_deg": 0.5}
    known = {"engine": "torch", "network": "compact", "nfe": 1, "failure": "" if success else "never grasped"}
    return {**of.begin_record(number), "success": success, "time_s": time, **known, **speed, **rates, **others}


def made(path: Path, *of: Series, machine: dict[str, Any] = MACHINE, engine: str = "auto") -> StudyFolder:
    return StudyFolder(path, settings(of or [series()], machine, engine))


def untrained(path: Path, contract: Contract) -> Path:
    """A policy that leads the hand to the middle of the area, high above it."""
    torch.manual_seed(0)
    offset, scale = [0.5, 0, 0.3, 1, 0, 0, 0, -1, 0, 0.04], [*[0.01] * 3, *[0.05] * 6, 0.01]
    normalizer = Normalizer(*(np.array(v, np.float32) for v in (np.zeros(9), np.ones(9), offset, scale)))
    save_policy(path, Policy(contract, NetworkConfig(16, (16, 32)), normalizer, "onedp_s"), {})
    return path


def test_starts_lie_in_the_middle_of_their_cells_and_no_demonstration_used_them() -> None:
    task = TASKS.get("pnp_milk")
    grid = find_starts(task)
    assert (grid.rows, grid.columns, grid.labels) == (4, 5, ("x (m)", "y (m)"))
    assert [s.cell for s in grid.starts[:40]] == [*range(20), *range(20)] and len({s.seed for s in grid.starts}) == 2000
    assert min(s.seed for s in grid.starts) >= task.evaluation_seeds
    (left, right), (bottom, top) = grid.bounds
    for start in grid.starts[:20]:
        row, column = divmod(start.cell, 5)
        assert start.place[0] == pytest.approx(left + (column + 0.5) * (right - left) / 5, abs=0.01)
        assert start.place[1] == pytest.approx(bottom + (row + 0.5) * (top - bottom) / 4, abs=0.01)
    assert task.scene is not None
    cell = Cell(task.scene(task.choose({})))
    cell.reset(np.random.default_rng(grid.starts[7].seed))
    assert cell.scene.start(cell) == grid.starts[7].place, "the seed gives the start"


def test_a_task_may_number_its_starts_and_one_without_a_scene_has_none() -> None:
    task = TASKS.get("pnp_milk")

    class Numbered(type(task.scene(task.choose({})))):  # type: ignore[misc]
        def start(self, cell: Cell) -> tuple[float, ...]:
            x, y, _ = super().start(cell)
            return (x, y, float(round(1000 * x) % 3))

    grid = find_starts(
        dataclasses.replace(task, scene=Numbered, start_labels=("x (m)", "y (m)", "trajectory"), study_by="trajectory")
    )
    assert (grid.rows, grid.columns, grid.bounds, grid.labels) == (1, 3, (), ("trajectory",))
    assert [s.place[2] for s in grid.starts[:6]] == [0, 1, 2, 0, 1, 2]
    with pytest.raises(ValueError, match="no scene in the twin's cell; measure it with onedp evaluate"):
        find_starts(Task(environment=lambda contract, options: None))


def test_a_folder_goes_on_where_it_was_left(tmp_path: Path) -> None:
    (tmp_path / ".study.json.0123.partial").touch()  # killed before its first file was there
    first = made(tmp_path)
    first.write(record(series(), 0, True, 4.0))
    with pytest.raises(ConfigError, match="another onedp study is running in it; wait for its end, or give another --out"):
        made(tmp_path)
    first.close()
    again = made(tmp_path, series("onedp_d"))
    assert again.done("real_time", "pnp_milk", "onedp_s")[0]["time_s"] == 4.0
    assert again.done("real_time", "pnp_milk", "onedp_d") == {}
    known = json.loads((tmp_path / "study.json").read_text())
    assert set(known["policies"]) == {"pnp_milk onedp_s", "pnp_milk onedp_d"}
    again.close()
    (tmp_path / "rounds" / "real_time" / "pnp_milk" / "onedp_s" / "001.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"001\.json has no mode, so it is not a round of a study; remove it"):
        read_rounds(tmp_path)


def test_a_folder_made_with_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path).close()
    retrained = dataclasses.replace(series(), digests="others")
    slower = dataclasses.replace(series(), max_time=30.0)
    for arguments, told in (
        ({"machine": {**MACHINE, "cores": 8}}, "machine.cores was 2, is 8"),
        ({"engine": "torch"}, "engine was 'auto', is 'torch'"),
    ):
        with pytest.raises(ConfigError, match=rf"must not be mixed with new ones: {told}; start again with another --out"):
            made(tmp_path, **arguments)
    for other, told in ((retrained, "policies.pnp_milk onedp_s was"), (slower, "tasks.pnp_milk.max_time_s was 20.0, is 30.0")):
        with pytest.raises(ConfigError, match=told):
            made(tmp_path, other)
    monkeypatch.setattr(folder_module, "_version", lambda package: "99")
    with pytest.raises(ConfigError, match=r"packages\.mujoco was '.*', is '99'"):
        made(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"is neither empty nor a study's folder: it has no study\.json; give another --out"):
        made(tmp_path / "other")


def test_the_program_is_told_by_what_decides_a_round() -> None:
    assert program() == program()
    root = Path(folder_module.__file__).parents[2]
    assert all((root / part).exists() for part in folder_module.PARTS)


def test_a_round_that_falls_apart_is_run_again_and_never_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[list[int]] = []

    def rounds(of: Series, numbers: list[int], **_: Any) -> Iterator[dict[str, Any]]:
        calls.append(list(numbers))
        for number in numbers:
            if number == 2 and len(calls) == 1:
                raise RuntimeError("policy_node was killed by SIGKILL")
            yield record(of, number, True, 5.0)

    monkeypatch.setattr(live, "live_rounds", rounds)
    study = made(tmp_path)
    study.write(record(series(), 1, True, 4.0))
    run.run(study, [series()], "auto")
    assert calls == [[0, 2, 3], [2, 3]]
    assert [r["time_s"] for r in study.done("real_time", "pnp_milk", "onedp_s").values()] == [5.0, 4.0, 5.0, 5.0]
    printed = capsys.readouterr()
    assert "round 3, is run again: policy_node was killed" in printed.err
    assert "1 of 4 rounds are already done" in printed.out and "[4/4] pnp_milk onedp_s, round 4: success after 5.0 s" in printed.out

    def broken(of: Series, numbers: list[int], **_: Any) -> Iterator[dict[str, Any]]:
        raise RuntimeError("no OpenGL")
        yield

    monkeypatch.setattr(live, "live_rounds", broken)
    with pytest.raises(RuntimeError, match="onedp_d, round 1, failed 3 times: no OpenGL"):
        run.run(study, [series("onedp_d")], "auto")

    def faster(of: Series, numbers: list[int], **_: Any) -> Iterator[dict[str, Any]]:
        yield record(of, numbers[0], True, 1.0, engine="openvino")

    monkeypatch.setattr(live, "live_rounds", faster)
    longer = series()
    longer = dataclasses.replace(longer, grid=dataclasses.replace(GRID, starts=(*GRID.starts, GRID.starts[0])))
    with pytest.raises(ConfigError, match=r"now runs on engine openvino, its rounds in .* ran on torch"):
        run.run(study, [longer], "auto")
    assert len(study.done("real_time", "pnp_milk", "onedp_s")) == 4


def test_intervals_are_wilsons_and_newcombes() -> None:
    assert wilson(20, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    assert difference((56, 70), (48, 80)) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4), "Newcombe (1998), table II"


def test_tables_and_pictures_from_the_files_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher, ours = series("dp_ddim10"), series("onedp_s")
    slow = [series(m, f"latency_{v}") for m in ("dp_ddim10", "onedp_s") for v in ("0.000", "0.300")]
    study = made(tmp_path, teacher, ours, *slow)
    for number, (a, b) in enumerate([(True, True), (True, False), (False, True), (True, True)]):
        study.write(record(teacher, number, a, 10.0 + number))
        study.write(record(ours, number, b, 5.0 + number))
        for of in slow:
            study.write(record(of, number, of.latency == 0.0 or number < 2, 9.0))
    study.close()
    assert main(["study", "--tables", str(tmp_path)]) == 0
    page = (tmp_path / "tables.md").read_text()
    assert page in capsys.readouterr().out
    low, high = wilson(3, 4)
    assert f"| onedp_s | 3 of 4: 0.75 ({low:.2f} to {high:.2f}) |" in page
    assert "| dp_ddim10 | 11.50 s (2 rounds) |" in page and "| onedp_s | 6.50 s, 0.57 x (2 rounds) |" in page
    assert "| pnp_milk | onedp_s | torch | compact | 1 | 4.0 | 6.0 | 10.0 | 15.0 | 20.0 | 60.0 | 60.0 |" in page
    assert " | 60.0 | 4 | 2.0 | 5.0 | 0.5 |\n" in page
    assert "| pnp_milk | onedp_s | never grasped | 1 |" in page
    low, high = wilson(2, 4)
    assert f"| 300 | 2 of 4: 0.50 ({low:.2f} to {high:.2f}) | 2 of 4: 0.50 ({low:.2f} to {high:.2f}) |" in page
    found = json.loads((tmp_path / "tables.json").read_text())
    assert found["real_time"]["pnp_milk"]["onedp_s"]["time_ratio"] == pytest.approx(6.5 / 11.5)
    assert found == json.loads(json.dumps(figures(read_rounds(tmp_path))))
    red = np.abs(plt.imread(tmp_path / "figure7.png")[..., :3] - [139 / 255, 0, 0]).max(axis=-1) < 0.01
    assert 0.01 < red.mean() < 0.5, "the failures"
    assert "(figure7.png)" in page and "(latency.png)" in page and (tmp_path / "latency.png").stat().st_size > 5000


def test_tables_of_another_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--tables", str(tmp_path)]) == 1
    assert f"{tmp_path} is not a study's folder: it has no study.json" in capsys.readouterr().err
    (tmp_path / "study.json").write_text('{"format": 0}')
    assert main(["study", "--tables", str(tmp_path)]) == 1
    assert "has the format 0, expected 1; run the study again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--task", "tea"], "tea.yaml is not in config/tasks, which has"),
        (["--method", "onedp"], "unknown method 'onedp', expected one of"),
        (["--method", "dp_ddim"], "unknown method 'dp_ddim', expected dp_ddimN"),
        (["--engine", "steam"], "unknown engine 'steam', expected one of"),
        (["--latency", "0.1,slow"], "--latency is 'slow', expected measured or v100, or seconds from 0 to 10"),
        (["--jobs", "2"], "--jobs needs --latency; in real time one round runs after the other"),
    ],
)
def test_what_cannot_be_studied_is_a_usage_error(arguments: list[str], told: str, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["study", "--out", str(tmp_path / "study"), *arguments])
    assert told in capsys.readouterr().err and not (tmp_path / "study").exists()


def test_policies_are_checked_before_anything_runs(tmp_path: Path) -> None:
    found = plan([], METHODS, ["real_time"], 2)
    assert {s.task for s in found} >= {"pnp_milk"} and {s.method for s in found} == set(METHODS)
    assert all(len(s.grid.starts) == 2 for s in found)
    with pytest.raises(ValueError, match="the model x is for one task and one method; give one --task and one --method with it"):
        plan(["pnp_milk"], [], ["real_time"], model=Path("x"))
    with pytest.raises(ValueError, match="2001 rounds of pnp_milk: expected from 1 to 2000"):
        plan(["pnp_milk"], ["onedp_s"], ["real_time"], 2001)
    untrained(tmp_path, dataclasses.replace(CONTRACT, task="pnp_tea"))
    with pytest.raises(ValueError, match="pnp_tea"):
        plan(["pnp_milk"], ["onedp_s"], ["real_time"], model=tmp_path)


def test_with_a_latency_the_simulated_world_goes_on(tmp_path: Path) -> None:
    model = untrained(tmp_path / "model", CONTRACT)
    (slow,) = plan(["pnp_milk"], ["onedp_s"], [latency_mode("0.3")], 2, model)
    slow = dataclasses.replace(slow, max_time=0.7)
    assert slow.mode == "latency_0.300" and slow.latency == 0.3 and latency_mode("v100") == "latency_v100"
    study = made(tmp_path / "study", slow)
    run.run(study, [slow], "torch", jobs=1)
    first, second = study.done("latency_0.300", "pnp_milk", "onedp_s").values()
    for number, record in enumerate((first, second)):
        assert not record["success"] and record["failure"] == "never grasped" and record["time_s"] >= 0.7
        assert record["seed"] == slow.grid.starts[number].seed and record["latency_s"] == 0.3
        assert record["engine"] == "torch" and record["inference_ms_p50"] > 0
        assert study.file("latency_0.300", "pnp_milk", "onedp_s", number).with_suffix(".mp4").stat().st_size > 2000
    run.run(study, [slow], "torch", jobs=1)
    assert study.done("latency_0.300", "pnp_milk", "onedp_s")[0] == first, "it was not run again"
