"""The node's interface to the arm: targets and requests in, states and faults out. No call waits for the robot."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onedp_ros import clock
from onedp_ros.robot import memory
from onedp_ros.robot.child import Child
from onedp_ros.robot.faults import Fault
from onedp_ros.robot.settings import RobotSettings

START_TIME = 15.0  # s until the arm's process must have loaded its libraries
CONNECT_TIME = 3.5  # s from then until it must be connected
HANG_TIME = 3.0  # s without a heartbeat after that; libfranka itself gives up after 1 s
END_TIME = 2.0  # s for the arm to come to rest and the process to end
MODE_NUMBERS = {"cartesian_pose": memory.POSE, "cartesian_impedance": memory.IMPEDANCE}


class Arm:
    """Runs and monitors the process that controls the arm.

    Args:
        address: the robot's.
        enforce: whether to fail without real-time scheduling.
        cpu: core dedicated to the control loop; -1: any.
    """

    def __init__(self, address: str, settings: RobotSettings, enforce: bool = True, cpu: int = -1) -> None:
        self.address = address
        self.memory = memory.arm_memory()
        self._latest = self.memory.latest
        options = json.dumps({"settings": settings.to_dict(), "enforce": enforce, "cpu": cpu})
        self.child = Child("arm_process", self.memory.descriptor, [address, options])
        self._request, self._target = memory.record("arm", "request"), memory.record("arm", "target")
        self._state, self._notes = memory.record("arm", "state"), memory.record("arm", "notes")
        self._asked_at = 0.0

    def start(self) -> None:
        """Start the process, which connects at once; :meth:`fault` reports failures."""
        self._request["mode"] = memory.REST
        self._send_request()
        self.child.start()

    def _send_request(self) -> None:
        self._asked_at = clock.now()
        self._latest["request"].write(self._request)

    def control(self, mode: str) -> None:
        """Request a mode of :data:`~onedp_ros.robot.MODES`, or ``"rest"``: decelerate and end the motion."""
        self._request["mode"] = memory.REST if mode == "rest" else MODE_NUMBERS[mode]
        self._send_request()

    def send(self, position: ArrayLike, quaternion: ArrayLike, arrived: int) -> None:
        """Send a target that :func:`.safety.pose_fault` has accepted: tool pose in the base frame, (3,) m and (4,) xyzw.

        Args:
            arrived: its arrival time, ns of :func:`.clock.now_ns`.
        """
        q = np.asarray(quaternion, np.float64)
        self._target["stamp"] = arrived
        self._target["position"], self._target["quaternion"] = position, q / np.linalg.norm(q)
        self._latest["target"].write(self._target)

    def stop(self) -> None:
        """Withdraw the target: the arm brakes as hard as its limits allow, and holds."""
        self._target["stamp"] = 0
        self._latest["target"].write(self._target)

    def recover(self) -> None:
        """Request recovery from a fault: the robot's error recovery, a new connection, or a new process, whichever is needed."""
        self._request["serial"] += 1
        self._send_request()
        if self.child.ended():
            self.child.start()

    @property
    def recovering(self) -> bool:
        """Whether a requested recovery is still in progress."""
        return bool(self.state()["serial"] < self._request["serial"]) and self.fault() is None

    def state(self) -> NDArray[np.void]:
        """The newest state (see ``memory``); ``phase`` is CONNECTING before the first."""
        self._latest["state"].read(self._state)
        return self._state

    @property
    def phase(self) -> str:
        """One of :data:`~onedp_ros.robot.memory.PHASES`."""
        return memory.PHASES[int(self.state()["phase"])]

    @property
    def notes(self) -> tuple[str, NDArray[np.float64]]:
        """The real-time scheduling that was granted, as text, and the tool's pose in the flange frame (16,), column-major."""
        self._latest["notes"].read(self._notes)
        return self._notes["realtime"].item().decode(), self._notes["tool"].copy()

    def fault(self) -> Fault | None:
        """What keeps the arm from moving, or None. Kills a process that hangs."""
        state, now = self.state(), clock.now()
        if ended := self.child.ended():
            return self._reported_fault(state) or Fault(f"the arm's process {ended}; call ~/recover", ("process_died",))
        phase = int(state["phase"])
        if phase == memory.FAULT and state["serial"] >= self._request["serial"]:
            return self._reported_fault(state)
        alive = float(state["alive"]) * 1e-9
        if alive < self.child.started:
            if now - self.child.started > START_TIME:
                self.child.kill()
                return self._report_for_it(
                    Fault(f"the arm's process did not start within {START_TIME:.0f} s; call ~/recover", ("hung",))
                )
            return None
        waited = now - max(alive if phase == memory.CONNECTING else self.child.started, self._asked_at)
        if phase == memory.CONNECTING and waited > CONNECT_TIME:
            self.child.kill()
            return self._report_for_it(
                Fault(
                    f"no answer from {self.address} within {CONNECT_TIME:.0f} s: another program may hold the robot, or "
                    f"robot_ip, cable or power are wrong; end the other program or fix that, then call ~/recover",
                    ("no_answer",),
                )
            )
        silent = min(waited, now - alive) if phase != memory.FAULT else waited  # in FAULT: a recovery was requested
        if phase != memory.CONNECTING and silent > HANG_TIME:
            self.child.kill()
            return self._report_for_it(
                Fault(f"the arm's process hung for {HANG_TIME:.0f} s and was killed; call ~/recover", ("hung",))
            )
        return None

    def _reported_fault(self, state: NDArray[np.void]) -> Fault | None:
        record = memory.record("arm", "fault")
        if state["phase"] != memory.FAULT or not self._latest["fault"].read(record):
            return None
        return Fault(record["text"].item().decode(errors="ignore"), tuple(record["names"].item().decode().split()))

    def _report_for_it(self, fault: Fault) -> Fault:
        """Publish a fault on behalf of the process, which has ended."""
        record = memory.record("arm", "fault")
        record["text"], record["names"] = str(fault).encode(), " ".join(fault.names).encode()
        self._latest["fault"].write(record)
        self._state["phase"], self._state["serial"] = memory.FAULT, self._request["serial"]
        self._latest["state"].write(self._state)
        return fault

    def close(self) -> None:
        """Bring the arm to rest, and end the motion and the process."""
        self._request["mode"] = memory.END
        self._send_request()
        self.child.wait(END_TIME)
        self.memory.close()


def percentile(histogram: NDArray[np.int64], fraction: float) -> int:
    """The bin of a histogram below which this fraction (0 to 1) of the values lie, the last one for 1; 0 if it is empty."""
    total = np.cumsum(histogram)
    return int(np.searchsorted(total, fraction * total[-1])) if total[-1] else 0
