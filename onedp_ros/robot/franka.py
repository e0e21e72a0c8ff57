"""An FR3 with its hand: when it may move, and how it reacts to faults."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from numpy.typing import ArrayLike

from onedp_ros import clock
from onedp_ros.control.safety import pose_fault
from onedp_ros.robot.arm import CONNECT_TIME, Arm
from onedp_ros.robot.faults import Fault
from onedp_ros.robot.hand import Hand
from onedp_ros.robot.settings import RobotSettings

READY_TIME = CONNECT_TIME + 5.0  # s until arm and hand are connected, including the start of their processes, 1 s or more
START_TIME = 3.0  # s until control has started
SETTLING, REST_TIME = 0.3, 1.0  # s that a braking arm takes to settle, and after which it must be at rest
PERIOD = 0.005  # s, polling period while waiting
AUTO_RECOVERY_PAUSE = 10.0  # s: no automatic recovery from a fault that recurs sooner


class Franka:
    """Arm and hand. After any fault, kept in ``fault``, it holds still until :meth:`recover`.

    A marker file in the temporary directory tells the next process if this one died while it controlled the arm.

    Args:
        address: the robot's.
        enforce: whether to fail without real-time scheduling.
        cpu: core dedicated to the control loop; -1: any.
        idle: called repeatedly while :meth:`connect`, :meth:`activate` or :meth:`recover` waits.
    """

    def __init__(
        self,
        address: str,
        settings: RobotSettings,
        enforce: bool = True,
        cpu: int = -1,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings, self._idle = settings, idle
        self.mode = settings.arm.mode
        self.arm, self.hand = Arm(address, settings, enforce, cpu), Hand(address, settings.gripper)
        self.fault: Fault | None = None
        self.active = self._recovering = False
        self.refused: Counter[str] = Counter()
        self.recoveries = 0
        self._recovered_at = self._braked_at = float("-inf")
        self._marker = Path(tempfile.gettempdir()) / f"onedp_ros_{os.getuid()}_{address.replace('/', '_')}.active"
        self._marked = False

    def connect(self) -> None:
        """Start both processes and connect. Raises Fault if that fails, usually within 5 s."""
        self.arm.start()
        self.hand.start()
        self._await_both(lambda: self.arm.phase != "connecting")
        if self._marker.exists():
            self._marked = True
            text = "franka_node ended unexpectedly while it controlled the arm; look at the arm, then call ~/recover"
            self.fault = Fault(text, ("left_active",))

    def activate(self) -> None:
        """Start control, at rest at the measured pose. A failure is kept in ``fault``; OSError if the marker file cannot be
        written, and then nothing is active."""
        self._marker.touch()
        self.active = self._marked = True
        self._control()

    def _control(self) -> None:
        if self.fault is not None:
            return
        self.arm.control(self.mode)
        try:
            self._await(lambda: self.arm.phase in ("holding", "following"), START_TIME)
        except Fault as fault:
            self._stop(fault)

    def deactivate(self) -> None:
        """Decelerate and end the motion; when this returns, the arm is at rest or has a fault."""
        self.active = False
        self.arm.control("rest")
        try:
            self._await(lambda: self.arm.phase == "idle", START_TIME)
        except Fault as fault:
            self.fault = self.fault or fault
        self._unmark()

    def _unmark(self) -> None:
        """Remove the marker file, unless the crash that it reports has not been acknowledged by a recovery."""
        if self._marked and (self.fault is None or "left_active" not in self.fault.names):
            with contextlib.suppress(OSError):  # the next process then warns for no reason
                self._marker.unlink(missing_ok=True)
            self._marked = False

    def watch(self) -> None:
        """Check for faults; call it at 10 Hz or more."""
        fault = self._fault()
        if fault is None or self.fault is not None:
            return
        self._stop(fault)
        again = clock.now() - self._recovered_at < AUTO_RECOVERY_PAUSE
        if self.active and not again and set(fault.names) <= set(self._settings.arm.auto_recover):
            self._recovered_at = clock.now()
            self.recoveries += 1
            try:
                self.recover()
            except Fault as another:
                self.fault = another

    def give_up(self, fault: Fault) -> None:
        """Hold still until :meth:`recover`, for a fault that arm and hand do not detect themselves."""
        if self.active and (self.fault is None or self._recovering):
            self._stop(fault)

    def _stop(self, fault: Fault) -> None:
        self.fault = fault
        self.arm.control("rest")

    def target(self, position: ArrayLike, quaternion: ArrayLike, arrived: int | None = None) -> str:
        """Follow a tool pose, (3,) m and (4,) xyzw in the base frame. Returns why it was refused, or an empty string.

        Args:
            arrived: its arrival time, ns of :func:`.clock.now_ns`; default: now.
        """
        reason = pose_fault(position, quaternion) or ("inactive" if not self.active else "") or ("fault" if self.fault else "")
        reason = reason or ("braking" if self._braking() else "")
        if reason:
            self.refused[reason] += 1
        else:
            self.arm.send(position, quaternion, clock.now_ns() if arrived is None else arrived)
        return reason

    def brake(self) -> None:
        """Decelerate and hold. Targets are refused until the arm is at rest."""
        if self.active and self.fault is None:
            self._braked_at = clock.now()
            self.arm.stop()

    def _braking(self) -> bool:
        since = clock.now() - self._braked_at
        return since < SETTLING or (since < REST_TIME and self.arm.phase == "stopping")

    def opening(self, opening: float) -> None:
        """Request a gripper opening, m; ignored during a fault or while inactive."""
        if self.active and self.fault is None:
            self.hand.command(opening)

    def recover(self) -> None:
        """Recover arm and hand and, if active, resume control, at rest. Raises Fault if something remains."""
        before, self._recovering = self.fault, True
        try:
            self.arm.control("rest")
            self.arm.recover()
            self.hand.recover()
            self._await_both(lambda: not self.arm.recovering and self.arm.phase == "idle")
        except Fault as fault:
            self.fault = fault
            raise
        except OSError as error:  # no process can be started
            text = f"a process of the arm or the hand cannot be started: {error}; see the machine's limits"
            self.fault = Fault(text, ("no_process",))
            raise self.fault from error
        finally:
            self._recovering = False
        if self.fault is not before and self.fault is not None:  # give_up() was called meanwhile
            raise self.fault
        self.fault = None
        if self.active:
            self._control()
        if self.fault is not None:
            raise self.fault

    def _await_both(self, arm_ready: Callable[[], bool]) -> None:
        """Wait until the arm is ready and the hand connected. The arm's fault is reported first: it is often the cause of the
        hand's."""
        begin = time.monotonic()
        self._await(arm_ready, READY_TIME, hand=False)
        self._await(lambda: bool(self.hand.state()["connected"]), READY_TIME - (time.monotonic() - begin))

    def _fault(self, hand: bool = True) -> Fault | None:
        return self.arm.fault() or (self.hand.fault() if hand else None)

    def _await(self, done: Callable[[], bool], seconds: float, hand: bool = True) -> None:
        """Wait until ``done()``. Raises any fault, and Fault if it takes longer than ``seconds``."""
        deadline = time.monotonic() + seconds
        while not done():
            if (fault := self._fault(hand)) is not None:
                raise fault
            if time.monotonic() > deadline:
                raise Fault(
                    f"arm ('{self.arm.phase}') or hand were not ready within {seconds:.1f} s; call ~/recover", ("no_answer",)
                )
            self._idle()
            time.sleep(PERIOD)
        if (fault := self._fault(hand)) is not None:
            raise fault

    def close(self, wanted: bool = True) -> None:
        """Bring the arm to rest and end both processes. ``wanted`` False: after a failure, which the next process will report."""
        self.active = False
        self.arm.close()
        self.hand.close()
        if wanted:
            self._unmark()
