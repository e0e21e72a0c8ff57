"""``onedp bench --servo``: timing and lost commands of the arm's 1 kHz loop: alone, with a moving hand and with a busy policy.

The targets are one minute of a released policy's, at 60 Hz; the robot is the fake one, or the one at ``--robot-ip``, in which case
the arm MOVES.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from onedp_ros.bench.machine import processor
from onedp_ros.contract import MAX_OPENING
from onedp_ros.data.bags.reader import read_bag
from onedp_ros.graph.processes import DEFAULT_METHOD
from onedp_ros.messages.decode import pose_arrays
from onedp_ros.policy.checkpoint import find_released
from onedp_ros.resources import child_environment, default_task, resource
from onedp_ros.robot.arm import percentile
from onedp_ros.robot.fake_franka import FakeFranka
from onedp_ros.robot.franka import Franka
from onedp_ros.robot.settings import MODES, RobotSettings

LOADS = ("quiet", "hand", "policy")
LOOK = 0.01  # s between samples of the arm's state
FIRST_TARGETS = 20  # targets at the arm's pose, at the beginning
HAND_PERIOD = 1.5  # s between opening and closing

TimedTarget = tuple[float, NDArray[np.float64], NDArray[np.float64], float]


def policy_targets(task: str) -> list[TimedTarget]:
    """A minute of the released policy's targets: time (s), position (3,) m, quaternion (4,) xyzw, opening (m)."""
    opening, targets, begin = MAX_OPENING, [], None
    for topic, stamp, message in read_bag(resource("models", task, "targets"), ("target_pose", "gripper_target")):
        if topic == "gripper_target":
            opening = float(message.position[0])
            continue
        begin = stamp if begin is None else begin
        targets.append((1e-9 * (stamp - begin), *pose_arrays(message.pose), opening))
    return targets


@contextlib.contextmanager
def busy_policy(task: str) -> Iterator[None]:
    """Run the released policy as fast as it can, on all cores, in a separate process."""
    command = [sys.executable, "-m", "onedp_ros.bench.servo", str(find_released(task, DEFAULT_METHOD))]
    process = subprocess.Popen(command, env=child_environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "predicting":
            raise RuntimeError("the policy that loads the cores did not start; see its output above")
        yield
    finally:
        process.kill()
        process.wait()


def keep_predicting(model: str) -> None:
    """Keep all cores busy with a policy."""
    from onedp_ros.contract import Observation
    from onedp_ros.policy.predictor import load_predictor

    predictor = load_predictor(model)
    contract, rng = predictor.contract, np.random.default_rng(0)
    announced = False
    while True:
        images = {n: rng.integers(0, 255, (c.height, c.width, 3), dtype=np.uint8) for n, c in contract.cameras.items()}
        observation = Observation(time.time_ns(), images, dict.fromkeys(images, 0), np.zeros(contract.state_dim, np.float32))
        predictor.predict([[observation] * contract.n_obs_steps])
        if not announced:
            print("predicting", flush=True)
            announced = True


def follow(franka: Franka, targets: list[TimedTarget], seconds: float, load: str, bar: Any = None) -> dict[str, Any]:
    """Send targets for ``seconds`` and return the loop's statistics. Fault if the arm stopped."""
    here = franka.arm.state().copy()
    for _ in range(FIRST_TARGETS):  # the arm starts following near its pose only, and the first target may be anywhere
        franka.target(here["position"], here["quaternion"])
        time.sleep(LOOK)
    work, gap = (franka.arm.memory.arrays[name] for name in ("work", "gap"))
    work_before, gap_before, before = work.copy(), gap.copy(), franka.arm.state().copy()
    begin = time.monotonic()
    at, goal = 0, None
    looks, rates, behind, off = 0, [], [], []
    while (now := time.monotonic() - begin) < seconds:
        while at < len(targets) and targets[at][0] <= now:
            _, position, quaternion, opening = targets[at]
            franka.target(position, quaternion)
            goal, at = position, at + 1
            if load == "hand":
                opening = 0.0 if now % (2 * HAND_PERIOD) < HAND_PERIOD else MAX_OPENING
            franka.opening(opening)
        franka.watch()
        if franka.fault is not None:
            raise franka.fault
        looks += 1
        state = franka.arm.state()
        if franka.arm.phase == "following" and now > 0.5 and goal is not None:
            rates.append(float(state["success_rate"]))
            behind.append(float(np.linalg.norm(state["position"] - state["reference_position"])))
            off.append(float(np.linalg.norm(state["position"] - goal)))
        if bar is not None:
            bar.update(min(now - bar.n, seconds - bar.n))
        next_at = targets[at][0] if at < len(targets) else seconds
        time.sleep(max(min(LOOK, next_at - (time.monotonic() - begin)), 0.0))
    took, after = time.monotonic() - begin, franka.arm.state().copy()
    work, gap = work - work_before, gap - gap_before
    cycles = int(after["cycles"] - before["cycles"])
    hand = franka.hand.state()
    return {
        "mode": franka.mode,
        "load": load,
        "seconds": round(took, 1),
        "loop_hz": round(cycles / took, 1),
        "cycles": cycles,
        "lost": int(after["lost"] - before["lost"]),
        "success_rate_p1": round(float(np.percentile(rates, 1)), 3) if rates else None,
        "work_us": {"p50": percentile(work, 0.5), "p99": percentile(work, 0.99), "max": percentile(work, 1.0)},
        "gap_ms": {name: percentile(gap, fraction) / 100 for name, fraction in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))},
        "following": round(len(rates) / max(looks, 1), 2),
        "tracking_mm_p95": round(1e3 * float(np.percentile(behind, 95)), 2) if behind else None,
        "to_target_mm_p50": round(1e3 * float(np.median(off)), 1) if off else None,
        "hand_commands": int(hand["done"]),
        "gap_histogram": gap.tolist(),
        "work_histogram": work.tolist(),
    }


def run(seconds: float, address: str = "", enforce: bool = False) -> dict[str, Any]:
    """Measure every mode under every load, one after the other. Fault if the robot stops."""
    targets = policy_targets(default_task())
    path = resource("config", "robot", "franka.yaml")
    settings = RobotSettings.from_yaml(path)
    last = max(os.sched_getaffinity(0))
    separate = len(os.sched_getaffinity(0)) > 1
    rows, fake = [], not address
    with contextlib.ExitStack() as stack:
        if fake:
            # a real robot has its own computer: keep the fake one off the loop's core
            robot = FakeFranka("--object", "0.05", *(["--cpu", str(min(os.sched_getaffinity(0)))] if separate else []))
            address = stack.enter_context(robot).address
        for mode in MODES:
            franka = Franka(address, settings.replaced({"arm.mode": mode}), enforce, last if separate else -1)
            with contextlib.closing(franka):
                franka.connect()
                franka.activate()
                if franka.fault is not None and fake:  # such as the mark of a killed run; on a real arm it must be reported
                    franka.recover()
                if franka.fault is not None:
                    raise franka.fault
                for load in LOADS:
                    franka.opening(settings.gripper.width)
                    bar = tqdm(total=seconds, desc=f"{mode}, {load}", bar_format="{desc} {bar} {n:.0f}/{total:.0f} s")
                    with bar, busy_policy(default_task()) if load == "policy" else contextlib.nullcontext():
                        rows.append(follow(franka, targets, seconds, load, bar))
                realtime = franka.arm.notes[0]
    return {"processor": processor(), "realtime": realtime, "robot": address, "rows": rows}


def table(result: dict[str, Any]) -> str:
    cpu = result["processor"]
    lines = [f"{cpu['name']}, {cpu['cores']} cores; real-time: {result['realtime']}; robot {result['robot']}", ""]
    lines.append(
        f"{'mode':20} {'load':7} {'loop Hz':>8} {'lost':>5} {'success p1':>10}  {'work us p50/p99/max':>20}"
        f"  {'gap ms p50/p99/max':>20}  tracking p95 mm"
    )
    for r in result["rows"]:
        work, gap = ("/".join(f"{v:g}" for v in r[name].values()) for name in ("work_us", "gap_ms"))
        lines.append(
            f"{r['mode']:20} {r['load']:7} {r['loop_hz']:8.1f} {r['lost']:5} {r['success_rate_p1'] or 0:10.3f}"
            f"  {work:>20}  {gap:>20}"
            f"  {r['tracking_mm_p95'] or 0:.2f} from the reference, {r['to_target_mm_p50'] or 0:.0f} (p50) from the target; "
            f"following {100 * r['following']:.0f} %"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    keep_predicting(sys.argv[1])
