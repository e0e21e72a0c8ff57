"""The server behind ``onedp fake-franka``: franka-sim's FR3 with enforced limits and a hand with realistic timing.

Runs as a script in its own environment (created by ``fake_franka.py``), since franka-sim needs an older MuJoCo. Imports nothing of
this package.

Unlike franka-sim's own server, this robot starts at a pose above the table, reports a hand like one configured in Desk (tool center
point 0.1034 m below the hand's flange), logs its states, and takes commands from standard input, one per line::

    reflex            the arm bumped into something: cartesian_reflex
    press / release   the user stop
    object 0.05       an object 0.05 m wide between the fingers; "object none" removes it
    quit

Prints ``ready`` once it accepts clients. Sources: https://github.com/BarisYazici/franka-sim, libfranka's research_interface.
"""

# mypy: ignore-errors
from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import signal
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from franka_sim import FrankaSimServer, mujoco_franka_sim
from franka_sim.franka_protocol import ConnectStatus, MoveStatus
from franka_sim.gripper.backend import FrankaHandSim

JOINTS = (0.0, -0.2, 0.0, -2.25, 0.0, 2.05, 0.7853)  # rad, the hand above the table, pointing down
ARMATURE = 0.195  # kg m², rotors and gears; the URDF has none
FLANGE_TO_HAND, HAND_TO_TOOL = 0.107, 0.1034  # m, FR3 and Franka Hand manuals; franka-sim's flange is link 7
CARTESIAN_REFLEX = 7  # index in libfranka's list of errors
USER_STOPPED, IDLE = 5, 1  # robot modes

RECORD = np.dtype(
    [
        ("time", "f8"),  # s, monotonic
        ("q", "f8", 7),
        ("dq", "f8", 7),
        ("twist", "f8", 6),  # of the tool center point, m/s and rad/s
        ("pose", "f8", 16),  # O_T_EE, column-major
        ("commanded_pose", "f8", 16),
        ("torque", "f8", 7),  # commanded
        ("mode", "u1"),
        ("errors", "u8"),  # bit per error
        ("success_rate", "f4"),
    ]
)


class SlowHand(FrankaHandSim):
    """A hand whose fingers move at the commanded speed; a command starts after 0.1 s, as on the real hand."""

    LATENCY = 0.1  # s

    def _travel(self, goal: float, speed: float) -> None:
        time.sleep(self.LATENCY)
        start, begin = self.width, time.monotonic()
        duration = abs(goal - start) / max(speed, 1e-3)
        while (fraction := (time.monotonic() - begin) / max(duration, 1e-6)) < 1.0:
            self.width = start + fraction * (goal - start)
            time.sleep(0.01)
        self.width = goal

    def move(self, width: float, speed: float) -> bool:
        if 0.0 <= width <= self.max_width:
            self._travel(self._blocked(width), speed)
        return super().move(width, speed)

    def grasp(self, width: float, epsilon_inner: float, epsilon_outer: float, speed: float, force: float) -> bool:
        if 0.0 <= width <= self.max_width:
            self._travel(self._blocked(0.0), speed)
        return super().grasp(width, epsilon_inner, epsilon_outer, speed, force)

    def stop(self) -> bool:
        return True  # fingers stay where they are


class FakeFranka(FrankaSimServer):
    """franka-sim's server with a hand configured as in Desk, a log, and faults on demand."""

    def __init__(self, log: Path | None, compatible: bool, **kwargs: Any) -> None:
        self._log = log.open("wb", buffering=1 << 20) if log is not None else None
        if self._log is not None:
            self._log.write(json.dumps(RECORD.descr).encode() + b"\n")
        self._record = np.zeros((), RECORD)
        self._compatible = compatible
        self._pressed = False
        super().__init__(**kwargs)

    def reset_state(self) -> None:
        super().reset_state()
        turn = -math.pi / 4  # the hand is mounted rotated
        c, s = math.cos(turn), math.sin(turn)
        hand = [c, s, 0, 0, -s, c, 0, 0, 0, 0, 1, 0, 0, 0, FLANGE_TO_HAND + HAND_TO_TOOL, 1]
        self.robot_state.state["F_T_NE"] = [float(v) for v in hand]
        self._refresh_ee_transform()
        self.robot_state.state["robot_mode"] = USER_STOPPED if self._pressed else IDLE

    def send_response(self, client_socket: Any, command: Any, command_id: int, status: Any, version: int) -> None:
        if not self._compatible:
            status, version = ConnectStatus.kIncompatibleLibraryVersion, version - 1
        super().send_response(client_socket, command, command_id, status, version)

    def _account_for_communication_cycle(self) -> None:
        super()._account_for_communication_cycle()
        if self._log is None:
            return
        state, record = self.robot_state.state, self._record
        record["time"] = time.monotonic()
        record["q"], record["dq"], record["pose"] = state["q"], state["dq"], state["O_T_EE"]
        record["twist"] = self.physics_sim.get_robot_state()["O_J_EE"] @ record["dq"]
        record["commanded_pose"], record["torque"] = state["O_T_EE_c"], state["tau_J_d"]
        record["mode"], record["success_rate"] = state["robot_mode"], state["control_command_success_rate"]
        record["errors"] = sum(1 << i for i, error in enumerate(state["errors"]) if error) if any(state["errors"]) else 0
        self._log.write(record.tobytes())

    def _absorb_within_motion_limits(self, command: Any, *, fresh: bool) -> bool:
        # A late command is dropped, as FCI does; franka-sim would rewind and apply it.
        return fresh and bool(super()._absorb_within_motion_limits(command, fresh=fresh))

    def flush(self) -> None:
        if self._log is not None:
            with contextlib.suppress(ValueError):
                self._log.flush()

    def reflex(self) -> None:
        self._abort_with_error(CARTESIAN_REFLEX, "a collision was provoked")

    def press(self) -> None:
        """Press the user stop: the motion ends, and none starts until it is released."""
        self._pressed = True
        with self._motion_lock:
            state = self.robot_state.state
            state["robot_mode"], state["motion_generator_mode"], state["controller_mode"] = USER_STOPPED, 0, 3
            self._engage_idle_hold("user stop")
            if self.current_motion_id and self.client_socket is not None:
                self._pending_move_response = (self.current_motion_id, MoveStatus.kEmergencyAborted, self._states_packed)
                self.current_motion_id = 0

    def release(self) -> None:
        self._pressed = False
        self.robot_state.state["robot_mode"] = IDLE

    def _refuse_move_while_latched(self, client_socket: Any, header: Any) -> bool:
        if self._pressed:
            self.send_move_response(client_socket, command_id=header.command_id, status=MoveStatus.kCommandNotPossibleRejected)
            return True
        return bool(super()._refuse_move_while_latched(client_socket, header))

    def handle_automatic_error_recovery_command(self, client_socket: Any, header: Any, payload: Any) -> None:
        super().handle_automatic_error_recovery_command(client_socket, header, payload)
        if self._pressed:
            self.robot_state.state["robot_mode"] = USER_STOPPED


def arm_model(urdf: Path, folder: Path) -> Path:
    """The FR3 without meshes, as MJCF, from the URDF in franka-sim's wheel."""
    tree = ET.parse(urdf)
    for link in tree.getroot().findall("link"):
        for tag in ("visual", "collision"):
            for element in link.findall(tag):
                link.remove(element)
    plain, path = folder / "fr3.urdf", folder / "fr3.xml"
    tree.write(plain)
    spec = mujoco.MjSpec.from_file(str(plain))
    spec.compile()
    for joint in spec.joints:
        joint.armature = ARMATURE
    spec.compile()
    path.write_text(spec.to_xml())
    return path


def serve_commands(server: FakeFranka, hand: SlowHand, until_eof: bool) -> None:
    """Provoke faults by commands from standard input."""
    for line in sys.stdin:
        words = line.split()
        if words[:1] == ["object"] and len(words) == 2:
            hand.set_object_width(None if words[1] == "none" else float(words[1]))
        elif words in (["reflex"], ["press"], ["release"], ["flush"]):
            getattr(server, words[0])()
        elif words == ["quit"]:
            os.kill(os.getpid(), signal.SIGTERM)
        elif words:
            print(f"unknown command '{line.strip()}': reflex, press, release, object WIDTH, flush, quit", flush=True)
            continue
        print(f"done {line.strip()}", flush=True)
    if until_eof:
        os.kill(os.getpid(), signal.SIGTERM)


def stop(*_: Any) -> None:
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(prog="onedp fake-franka")
    parser.add_argument("--host", default="127.0.0.1", help="loopback address to serve at (default 127.0.0.1)")
    parser.add_argument("--log", type=Path, help="file for the state of every cycle; fake_franka.read_log reads it")
    parser.add_argument("--object", type=float, help="width of an object between the fingers, m")
    parser.add_argument("--incompatible", action="store_true", help="speak another version of the protocol")
    parser.add_argument("--joints", type=float, nargs=7, default=JOINTS, help="initial joint angles, rad")
    parser.add_argument("--cpu", type=int, default=-1, help="core to run on (default: any)")
    parser.add_argument("--until-eof", action="store_true", help="exit when standard input closes")
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    if not args.host.startswith("127."):
        parser.error(f"--host {args.host} is not a loopback address (127.x.x.x)")
    logging.basicConfig(level=logging.INFO if args.verbose else logging.ERROR, format="fake-franka: %(message)s")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    if args.cpu >= 0:
        os.sched_setaffinity(0, {args.cpu})
    with contextlib.suppress(PermissionError):  # a real robot has its own computer
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(10))
    mujoco_franka_sim.ARM_INITIAL_Q = np.array(args.joints)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FR3_MJCF"] = str(arm_model(FrankaSimServer.DEFAULT_ARM_URDF, Path(folder)))
        hand = SlowHand(object_width=args.object)
        server = FakeFranka(
            args.log,
            not args.incompatible,
            host=args.host,
            gripper_backend=hand,
            enforce_comm_constraints=True,
            enforce_motion_limits=True,
        )
        threading.Thread(target=serve_commands, args=(server, hand, args.until_eof), daemon=True).start()
        threading.Thread(target=announce, args=(server,), daemon=True).start()
        try:
            server.start()
        except KeyboardInterrupt:
            pass
        finally:
            server.flush()
            server.stop()


def announce(server: FakeFranka) -> None:
    while not (server.physics_sim.running and server.gripper_server.running and server.server_socket):
        time.sleep(0.01)
    print("ready", flush=True)


if __name__ == "__main__":
    main()
