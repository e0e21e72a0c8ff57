"""Episodes of a policy in the twin, in real time, through the nodes of a running graph: for the demo and the study."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from std_srvs.srv import SetBool, Trigger

from onedp_ros.graph.client import GraphWatch
from onedp_ros.nodes.lib.polled import PolledSubscriber

START_TIME = 120.0  # s for loading, warm-up and engine checks
RECORD_DEPTH = 60  # messages queued between two polls: 0.3 s of the robot's states
SETTLE = 0.6  # s after a reset, so that no observation of the old scene is left
CHECK_PERIOD = 0.1  # s between two checks whether the task is done


@dataclasses.dataclass(frozen=True)
class LiveOutcome:
    """Result of an episode: ``time`` (s, wall clock) since the arm was enabled, and the reason for a failure (else empty)."""

    success: bool
    time: float
    failure: str


class RecordedTopics:
    """Records topics as serialized messages with their arrival times (ns): cheap, since they are decoded after the episode.

    Call :meth:`poll` a few times a second.

    Args:
        kinds: message types by topic.
        every: keep one of this many messages of each topic.
    """

    def __init__(self, node: Any, kinds: Mapping[str, Any], every: int = 1) -> None:
        self.kinds, self._every = kinds, every
        self._seen = dict.fromkeys(kinds, 0)
        self.messages: dict[str, list[tuple[int, bytes]]] = {topic: [] for topic in kinds}
        self._subscribers = [
            PolledSubscriber(node, kind, topic, RECORD_DEPTH, partial(self._keep, topic), raw=True) for topic, kind in kinds.items()
        ]

    def begin(self) -> None:
        """Start recording, or start over; does nothing after :meth:`end`."""
        if not self._subscribers:
            return
        self.poll()
        self.messages = {topic: [] for topic in self.kinds}

    def poll(self) -> None:
        """Store the messages that have arrived."""
        for subscriber in self._subscribers:
            subscriber.poll()

    def end(self) -> None:
        """Store the messages that have arrived, and unsubscribe."""
        self.poll()
        for subscriber in self._subscribers:
            subscriber.destroy()
        self._subscribers = []

    def _keep(self, topic: str, message: bytes, arrival: int) -> None:
        self._seen[topic] += 1
        if self._seen[topic] % self._every == 0:
            self.messages[topic].append((arrival, message))


def wait_for_policy(watch: GraphWatch, logs: Path) -> None:
    """Wait until policy_node predicts. RuntimeError when it does not; ``logs``: folder of the nodes' output."""
    if not watch.spin_until(lambda: float(watch.values("policy_node").get("policy_hz", 0)) > 0, START_TIME):
        raise RuntimeError(f"the policy did not start within {START_TIME:.0f} s: {watch.complaints()}; logs are in {logs}")
    watch.spin_for(1.0)


def reset_twin(watch: GraphWatch, seed: int | None = None) -> None:
    """Disable the arm and reset the scene with a seed, by default the next one. RuntimeError when the twin refuses."""
    watch.call(SetBool, "action_node/enable", SetBool.Request(data=False))
    if seed is not None:
        value = ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=seed)
        request = SetParameters.Request(parameters=[Parameter(name="seed", value=value)])
        (result,) = watch.call(SetParameters, "twin_node/set_parameters", request).results
        if not result.successful:
            raise RuntimeError(f"the twin refuses the seed {seed}: {result.reason}")
    answer = watch.call(Trigger, "twin_node/reset")
    if not answer.success or (seed is not None and answer.message != f"seed {seed}"):
        raise RuntimeError(f"the twin was not reset: {answer.message}")


def run_episode(
    watch: GraphWatch, max_time: float, progress: Callable[[float, bool, bool], None] = lambda time, success, over: None
) -> LiveOutcome:
    """Let scene and policy settle after a reset, enable the arm, and wait until the task is done or ``max_time`` (s) is over.

    ``progress`` is called with the time (s), whether the task is done, and whether the episode is over. RuntimeError when a node
    does not answer, NodeDiedError when one exits.
    """
    watch.spin_for(SETTLE)
    watch.call(SetBool, "action_node/enable", SetBool.Request(data=True))
    begin = time.monotonic()
    while True:
        verdict = watch.call(Trigger, "twin_node/success")
        now = time.monotonic() - begin
        over = verdict.success or now > max_time
        progress(now, verdict.success, over)
        if over:
            return LiveOutcome(verdict.success, round(now, 2), "" if verdict.success else verdict.message)
        watch.spin_for(CHECK_PERIOD)
