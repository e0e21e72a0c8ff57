"""An FR3 with its hand: when it may move, and what becomes of it when something fails."""

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

READY_TIME = CONNECT_TIME + 5.0  # s until arm and hand are connected, with the start of their processes, 1 s or more
START_TIME = 3.0  # s until control has begun
SETTLING, REST_TIME = 0.3, 1.0  # s that an arm that brakes takes to settle, and after which it must be at rest
PERIOD = 0.005  # s between looks while waiting
AUTO_RECOVERY_PAUSE = 10.0  # s: a fault that comes back sooner is not recovered from by itself


class Franka:
    """Arm and hand. After any fault it stands still, named in ``fault``, until :meth:`recover`.

    A file in the temporary directory tells the next process that this one died while it controlled the arm.

    Args:
        address: the robot's.
        enforce: whether to fail without real-time scheduling.
        cpu: processor of its own for the control loop; -1: any.
        idle: called again and again while :meth:`connect`, :meth:`activate` or :meth:`recover` waits.
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
        """Start both processes and connect. Fault when one cannot, usually within 5 s."""
        self.arm.start()
        self.hand.start()
        self._await_both(lambda: self.arm.phase != "connecting")
        if self._marker.exists():
            self._marked = True
            text = "franka_node ended unexpectedly while it controlled the arm; look at the arm, then call ~/recover"
            self.fault = Fault(text, ("left_active",))

    def activate(self) -> None:
        """Begin to control, at rest at the measured pose. What prevents it becomes ``fault``; OSError when the mark of an arm under
        control cannot be written: then nothing is active."""
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
        """Decelerate and end the motion; the arm stands still when this returns, or has a fault."""
        self.active = False
        self.arm.control("rest")
        try:
            self._await(lambda: self.arm.phase == "idle", START_TIME)
        except Fault as fault:
            self.fault = self.fault or fault
        self._unmark()

    def _unmark(self) -> None:
        """The arm is not left by accident, unless nobody has looked at it since the last accident."""
        if self._marked and (self.fault is None or "left_active" not in self.fault.names):
            with contextlib.suppress(OSError):  # the next process then warns in vain
                self._marker.unlink(missing_ok=True)
            self._marked = False

    def watch(self) -> None:
        """Look for faults; call it at least ten times a second."""
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
        """Stand still until :meth:`recover`, for a reason that arm and hand do not know of."""
        if self.active and (self.fault is None or self._recovering):
            self._stop(fault)

    def _stop(self, fault: Fault) -> None:
        self.fault = fault
        self.arm.control("rest")

    def target(self, position: ArrayLike, quaternion: ArrayLike, arrived: int | None = None) -> str:
        """A tool pose to follow, (3,) m and (4,) xyzw in the base frame. Why it was refused; empty when it was not.

        Args:
            arrived: when it came, ns of :func:`.clock.now_ns`; default: now.
        """
        reason = pose_fault(position, quaternion) or ("inactive" if not self.active else "") or ("fault" if self.fault else "")
        reason = reason or ("braking" if self._braking() else "")
        if reason:
            self.refused[reason] += 1
        else:
            self.arm.send(position, quaternion, clock.now_ns() if arrived is None else arrived)
        return reason

    def brake(self) -> None:
        """Slow down and stay. Targets are refused until the arm is at rest."""
        if self.active and self.fault is None:
            self._braked_at = clock.now()
            self.arm.stop()

    def _braking(self) -> bool:
        since = clock.now() - self._braked_at
        return since < SETTLING or (since < REST_TIME and self.arm.phase == "stopping")

    def opening(self, opening: float) -> None:
        """A requested opening between the fingers, m; left where a fault is or nothing is active."""
        if self.active and self.fault is None:
            self.hand.command(opening)

    def recover(self) -> None:
        """Mend what can be mended and, when active, control again, at rest. Fault when something remains."""
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
        if self.fault is not before and self.fault is not None:  # something made it give up meanwhile
            raise self.fault
        self.fault = None
        if self.active:
            self._control()
        if self.fault is not None:
            raise self.fault

    def _await_both(self, arm_ready: Callable[[], bool]) -> None:
        """Until the arm is ready and the hand connected. The arm's fault comes first, often the hand's cause."""
        begin = time.monotonic()
        self._await(arm_ready, READY_TIME, hand=False)
        self._await(lambda: bool(self.hand.state()["connected"]), READY_TIME - (time.monotonic() - begin))

    def _fault(self, hand: bool = True) -> Fault | None:
        return self.arm.fault() or (self.hand.fault() if hand else None)

    def _await(self, done: Callable[[], bool], seconds: float, hand: bool = True) -> None:
        """Until ``done()``. Fault when there is one, or when that takes longer than ``seconds``."""
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
        """Bring the arm to rest and end both processes. Not ``wanted``: something failed, and the next process will report it."""
        self.active = False
        self.arm.close()
        self.hand.close()
        if wanted:
            self._unmark()
