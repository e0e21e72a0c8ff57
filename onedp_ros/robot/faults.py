"""Descriptions of what stopped the arm: cause and remedy."""

from __future__ import annotations

import re

REMEDIES = {
    "cartesian_reflex": "the arm met a force above arm.collision_force; clear the way, then call ~/recover",
    "joint_reflex": "a joint met a torque above arm.collision_torque; clear the way, then call ~/recover",
    "communication_constraints_violation": (
        "the robot lost more than 20 commands in a row; use a kernel with PREEMPT_RT, a direct cable and no other load, "
        "then call ~/recover"
    ),
    "joint_position_limits_violation": "a joint is at the end of its range; move the arm by hand, or in Desk, then call ~/recover",
    "power_limit_violation": "the robot's power limit; move slower or carry less, then call ~/recover",
    "instability_detected": "the robot's controller detected an oscillation; lower the stiffness, then call ~/recover",
}


class Fault(RuntimeError):
    """Why the arm does not move. ``names``: identifiers, including libfranka's error names."""

    def __init__(self, text: str, names: tuple[str, ...]) -> None:
        super().__init__(text)
        self.names = names


def pause_fault(what: str, seconds: float, names: tuple[str, ...] = ()) -> Fault:
    """The fault of a process that was paused for this long (s); ``names``: errors that it caused."""
    because = f" ({', '.join(names)})" if names else ""
    return Fault(
        f"{what} was paused for {seconds:.1f} s{because}: stopped, swapped out, or suspended with the machine; check the arm, "
        f"then call ~/recover",
        (*names, "paused"),
    )


def explain(error: BaseException, address: str) -> Fault:
    """Turn an exception of pylibfranka into a fault with cause and remedy. ``address`` is the robot's."""
    text = str(error).removeprefix("libfranka: ").strip()
    low, kind = text.lower(), type(error).__name__
    names = tuple(dict.fromkeys(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", text)))
    if "user stop" in low or "userstopped" in low or "user stopped" in low:
        return Fault("user stop pressed (or the enabling device released); release it, then call ~/recover", ("user_stop",))
    if "safety function" in low:
        return Fault(f"a safety function is active: {text}; see Desk, then call ~/recover", ("safety_function",))
    if "incompatible library version" in low:
        return Fault(
            f"the robot at {address} speaks another version of the protocol: {text}; this client needs an FR3 with system 5.9.0 or "
            f"later: update the robot, or install the matching pylibfranka",
            ("incompatible_version",),
        )
    if kind == "RealtimeException":
        return Fault(
            f"no real-time scheduling: {text}; use a kernel with PREEMPT_RT and allow it ('USER - rtprio 99' and 'USER - memlock "
            f"unlimited' in /etc/security/limits.d/, then log in again), or set realtime:=ignore where no arm can do harm",
            ("realtime",),
        )
    known = [name for name in names if name in REMEDIES]
    if known:
        return Fault(f"{', '.join(names)}: {'; '.join(REMEDIES[n] for n in known)}", names)
    if kind == "NetworkException":
        if "refused" in low:
            return Fault(
                f"{address} refuses the connection: {text}; activate FCI in Desk, and check robot_ip", ("connection_refused",)
            )
        return Fault(
            f"no connection to the robot at {address}: {text}; check robot_ip, cable and power, activate FCI in Desk, and end any "
            f"other program that controls the arm; then call ~/recover",
            ("network",),
        )
    if "reflex" in low or names:
        return Fault(
            f"motion aborted: {', '.join(names) or text}; see docs/reference/diagnostics.md, then call ~/recover",
            names or ("reflex",),
        )
    return Fault(f"{text or kind}; see docs/reference/diagnostics.md, then call ~/recover", ("rejected",))
