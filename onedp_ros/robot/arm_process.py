"""The arm's process: libfranka's 1 kHz loop and nothing else.

pylibfranka holds the GIL in every call, so anything else in the process would delay the loop; hence a separate process, started by
:class:`onedp_ros.robot.arm.Arm`: ``python -m onedp_ros.robot.arm_process DESCRIPTOR PARENT ADDRESS OPTIONS``.
It receives targets and requests, and publishes states, through shared memory. If its parent dies, it decelerates, ends the motion
and exits.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np
import pylibfranka as franka

from onedp_ros import clock
from onedp_ros.control.follow import TargetFollower
from onedp_ros.control.joints import TORQUE_LIMITS, TORQUE_RATE
from onedp_ros.control.servo import impedance_torque
from onedp_ros.geometry import pose_from_columns
from onedp_ros.robot import memory
from onedp_ros.robot.faults import explain, pause_fault
from onedp_ros.robot.settings import RobotSettings

PUBLISH_EVERY = 5  # cycles: states at 200 Hz
PRIORITY = 80  # of SCHED_FIFO
TORQUE_STEP = 0.9 * TORQUE_RATE * 0.001  # Nm per cycle
SETTLED = 0.02  # rad/s: slower joints are at rest
SETTLE_TIME = 0.4  # s that the arm may take to come to rest after the reference
PAUSE = 500_000_000  # ns between two cycles from which on this process must have been paused
IDLE_PERIOD = 0.02  # s between checks for requests without a robot

STILL, UPRIGHT = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)

CONTROLLER_MODES = {
    "joint_impedance": franka.ControllerMode.JointImpedance,
    "cartesian_impedance": franka.ControllerMode.CartesianImpedance,
}


@dataclasses.dataclass
class ControlStatus:
    """The published state of the control besides libfranka's; see ``memory``."""

    phase: int = memory.CONNECTING
    serial: int = 0
    cycles: int = 0
    lost: int = 0
    far: int = 0
    fraction: float = 1.0


class ArmProcess:
    """Connects, controls on request, and publishes states and faults.

    Args:
        descriptor: of the parent's :func:`~onedp_ros.robot.memory.arm_memory`.
        parent: the parent's process id.
        address: the robot's.
        enforce: fail without real-time scheduling, as libfranka does by default.
        cpu: core to run on; -1: any.
    """

    def __init__(self, descriptor: int, parent: int, address: str, settings: RobotSettings, enforce: bool, cpu: int) -> None:
        self._memory = memory.arm_memory(descriptor)
        self._latest = self._memory.latest
        self._address, self._settings, self._enforce, self._cpu = address, settings, enforce, cpu
        self._parent = parent
        self._status = ControlStatus()
        self._robot: Any = None
        self._model: Any = None
        self._faulty = False
        # faster than NumPy on one number
        self._work, self._gap = (memoryview(self._memory.arrays[name].data) for name in ("work", "gap"))
        self._still = 0  # ns that this process was paused under control
        self._measured: Any = None  # libfranka's state in this cycle
        self._follower = TargetFollower(settings.follow, settings.servo, settings.joints, self._joints)

    def run(self) -> None:
        """Run until asked to end, or until the parent has died."""
        self._publish_phase(memory.CONNECTING)
        while self._asked() != memory.END:
            try:
                self._advance()
            except Exception as error:  # libfranka's exceptions have no common base
                self._fail(error)
        self._robot = None
        self._publish_phase(memory.ENDED)

    def _asked(self) -> int:
        mode, self._serial = self._latest["request"].unpack()
        return memory.END if os.getppid() != self._parent else mode

    def _advance(self) -> None:
        """Check the requests once and act on them."""
        mode, serial = self._asked(), self._serial
        if self._faulty and serial <= self._status.serial:
            if self._robot is None:
                time.sleep(IDLE_PERIOD)
            else:
                self._idle(memory.FAULT)
            return
        if self._robot is None:
            self._connect()
            self._faulty = False
            return
        if serial > self._status.serial:
            self._status.serial = serial
            self._robot.automatic_error_recovery()
        self._faulty = False
        if mode in (memory.POSE, memory.IMPEDANCE):
            self._control(mode)
        elif mode == memory.REST:
            self._idle(memory.IDLE)

    def _connect(self) -> None:
        self._publish_phase(memory.CONNECTING)
        self._status.serial = self._serial
        arm = self._settings.arm
        self._robot = None
        realtime = franka.RealtimeConfig.kEnforce if self._enforce else franka.RealtimeConfig.kIgnore
        robot = franka.Robot(self._address, realtime)
        if self._asked() == memory.END:
            return
        first = robot.read_once()
        if first.robot_mode == franka.RobotMode.Reflex:
            robot.automatic_error_recovery()  # from an earlier motion; settings are rejected in reflex mode
        torque, force = list(arm.collision_torque), list(arm.collision_force)
        robot.set_collision_behavior(torque, torque, force, force)
        robot.set_load(arm.load_mass, list(arm.load_center), list(arm.load_inertia))
        self._model = robot.load_model()
        self._robot = robot
        notes = memory.record("arm", "notes")
        notes["realtime"], notes["tool"] = self._ask_for_realtime().encode()[:500], first.F_T_EE
        self._latest["notes"].write(notes)

    def _ask_for_realtime(self) -> str:
        """Request SCHED_FIFO, a core and locked memory. Returns what was granted, and how to get the rest."""
        granted, refused = [], []
        if self._cpu >= 0:
            try:
                os.sched_setaffinity(0, {self._cpu})
                granted.append(f"processor {self._cpu}")
            except OSError as error:
                refused.append(f"processor {self._cpu} ({error.strerror}; this machine has {os.cpu_count()})")
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
            granted.append(f"SCHED_FIFO {PRIORITY}")
        except PermissionError as error:
            if self._enforce:
                raise franka.RealtimeException("SCHED_FIFO is not permitted") from error
            refused.append("SCHED_FIFO (allow it by 'USER - rtprio 99' in /etc/security/limits.d/realtime.conf)")
        if ctypes.CDLL(None).mlockall(7) == 0:  # MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT
            granted.append("locked memory")
        else:
            refused.append("locked memory (allow it by 'USER - memlock unlimited' in /etc/security/limits.d/realtime.conf)")
        text = ", ".join(granted) or "nothing"
        return f"granted {text}" + (f"; refused {', '.join(refused)}" if refused else "")

    # without control

    def _idle(self, phase: int) -> None:
        self._status.phase = phase
        state = self._robot.read_once()
        self._status.cycles += 1
        if self._status.cycles % PUBLISH_EVERY == 0:
            self._publish(state, time.time_ns())

    # with control

    def _control(self, mode: int) -> None:
        """Control until something else is requested and the arm is at rest. Raises libfranka's exceptions."""
        self._still = 0
        gc.collect()
        gc.disable()
        try:
            if mode == memory.POSE:
                self._loop(mode, self._robot.start_cartesian_pose_control(CONTROLLER_MODES[self._settings.arm.controller]))
            else:
                self._loop(mode, self._robot.start_torque_control())
        finally:
            gc.enable()

    def _loop(self, mode: int, control: Any) -> None:
        follower, status = self._follower, self._status
        targets, requests = self._latest["target"], self._latest["request"]
        work, gap, now = self._work, self._gap, clock.now_ns
        last_work, last_gap = memory.WORK_BINS - 1, memory.GAP_BINS - 1
        state, period = control.readOnce()
        self._measured = state
        # The motion generator starts at the robot's last commanded pose, within a millimetre of the measured one.
        if mode == memory.POSE:
            follower.start(*pose_from_columns(state.O_T_EE_c), now())
        else:
            follower.start(*pose_from_columns(state.O_T_EE), now(), self._motion)
        far, cycles, lost = status.far - follower.far, status.cycles, status.lost
        posture = np.array(state.q)
        taken = asked = resting = cycle = 0
        received, wanted = 0, mode
        given: tuple[Any, Any] = STILL, UPRIGHT
        command: Any
        ended, begin = False, now()
        while True:
            ticks = max(1, round(1000.0 * period.to_sec())) if cycle else 1
            if targets.count != taken:
                taken = targets.count
                received, x, y, z, *turn = targets.unpack()
                given = (x, y, z), turn
            if requests.count != asked or cycle % PUBLISH_EVERY == 0:
                asked, wanted = requests.count, self._asked()
                if self._serial > status.serial:
                    wanted = memory.REST  # a recovery was requested: it is done at rest
            self._measured = state
            follower.catch_up(ticks, state.O_T_EE_c if mode == memory.POSE else None)
            follower.step(received, *given, begin, wanted != mode)
            ended = wanted != mode and follower.state == "holding"
            if mode == memory.POSE:
                command = franka.CartesianPose(follower.columns)
            else:
                dq = np.array(state.dq)
                desired = self._torque(state, dq, posture)
                last = np.array(state.tau_J_d)  # the last torque that the robot received, not the last one sent
                torque = np.minimum(np.maximum(desired, last - TORQUE_STEP), last + TORQUE_STEP)
                command = franka.Torques(torque.tolist())
                resting = resting + 1 if ended else 0
                ended = ended and (float(np.abs(dq).max()) < SETTLED or resting > 1000 * SETTLE_TIME)
            command.motion_finished = ended
            control.writeOnce(command)
            cycle += 1
            lost += ticks - 1
            if ended or cycle % PUBLISH_EVERY == 0:
                status.phase, status.cycles, status.lost = PHASE_OF[follower.state], cycles + cycle, lost
                status.far, status.fraction = far + follower.far, follower.fraction
                self._publish(state, time.time_ns() - (now() - begin))
            work[min((now() - begin) // 1000, last_work)] += 1
            if ended:
                return
            state, period = control.readOnce()
            before, begin = begin, now()
            gap[min((begin - before) // 10_000, last_gap)] += 1
            if begin - before > PAUSE:
                self._still = begin - before

    def _joints(self) -> tuple[Any, Any]:
        """Joint angles (7,) rad and Jacobian (6, 7) in this cycle."""
        state = self._measured
        return state.q, np.array(self._model.zero_jacobian(state)).reshape(7, 6).T

    def _motion(self) -> tuple[Any, Any, Any]:
        """Position (3,) m, quaternion (4,) xyzw and twist (6,) m/s, rad/s of the arm in this cycle."""
        return *pose_from_columns(self._measured.O_T_EE), self._joints()[1] @ np.array(self._measured.dq)

    def _torque(self, state: Any, dq: Any, posture: Any) -> Any:
        q, jacobian = self._joints()
        position, quaternion = map(np.array, pose_from_columns(state.O_T_EE))
        reference = self._follower.filter
        gains, mass = self._settings.impedance, None
        if self._follower.state == "stopping":  # a policy has learned the arm's lag; a stop must not lag
            mass = np.array(self._model.mass(state)).reshape(7, 7)
        spring = impedance_torque(gains, reference, position, quaternion, jacobian, dq, posture - q, mass)
        return np.minimum(np.maximum(spring + self._model.coriolis(state), -TORQUE_LIMITS), TORQUE_LIMITS)

    # what is published

    def _publish(self, state: Any, stamp: int) -> None:
        status, here = self._status, pose_from_columns(state.O_T_EE)
        reference, _ = self._follower.filter.pose
        self._latest["state"].pack(
            stamp,
            clock.now_ns(),
            status.phase,
            state.robot_mode.value,
            status.serial,
            *state.q,
            *state.dq,
            *state.tau_J,
            *here[0],
            *here[1],
            *reference,
            *state.O_F_ext_hat_K,
            state.control_command_success_rate,
            status.fraction,
            status.cycles,
            status.lost,
            status.far,
        )

    def _publish_phase(self, phase: int) -> None:
        """Publish the phase, with the last state read."""
        self._status.phase = phase
        record = memory.record("arm", "state")
        self._latest["state"].read(record)
        record["phase"], record["serial"], record["alive"] = phase, self._status.serial, clock.now_ns()
        self._latest["state"].write(record)

    def _fail(self, error: Exception) -> None:
        fault, record = explain(error, self._address), memory.record("arm", "fault")
        if self._still and isinstance(error, franka.ControlException):
            fault = pause_fault("the arm's process", 1e-9 * self._still, fault.names)
        record["text"], record["names"] = str(fault).encode()[:1000], " ".join(fault.names).encode()[:500]
        self._latest["fault"].write(record)
        self._faulty = True
        if isinstance(error, franka.NetworkException):
            self._robot = None
        self._publish_phase(memory.FAULT)


PHASE_OF = {"holding": memory.HOLDING, "following": memory.FOLLOWING, "stopping": memory.STOPPING}


def main(argv: list[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # ends when the parent requests it or dies
    options = json.loads(argv[3])
    settings = RobotSettings.from_dict(options["settings"])
    ArmProcess(int(argv[0]), int(argv[1]), argv[2], settings, options["enforce"], options["cpu"]).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
