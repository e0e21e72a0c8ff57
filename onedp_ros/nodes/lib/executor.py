"""An executor for nodes that receive hundreds of messages per second on few cores."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from operator import itemgetter
from typing import Any

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation

REST_PERIOD = 0.2  # s between checks for what does not wake this executor: middleware events, actions


class LeanExecutor(SingleThreadedExecutor):
    """A SingleThreadedExecutor whose :meth:`spin` calls the callbacks of messages and timers directly.

    For each message rclpy's own executor iterates over all entities of a node, in Python, and creates a task: about 0.3 ms. Here a
    constant wait set wakes for messages and timers and calls back directly; services and everything else are left to rclpy. After a
    delay, queued messages of all topics are handled in order of arrival.
    """

    def spin(self) -> None:
        """Spin until the context ends or :meth:`shutdown`."""
        try:
            self._spin()
        except (rclpy_implementation.RCLError, ExternalShutdownException):
            if self._context.ok() and not self._is_shutdown:  # else it was shut down between two steps
                raise

    def _spin(self) -> None:
        rest = 0.0
        self._collect()
        while self._context.ok() and not self._is_shutdown:
            if time.monotonic() >= rest:
                self.spin_once(0.0)
                rest = time.monotonic() + REST_PERIOD
                self._collect()
            if self._wait_and_call(max(rest - time.monotonic(), 0.0)):
                self.spin_once(0.0)
                self._collect()

    def _collect(self) -> None:
        """Collect the entities to wait for. Nodes trigger the guard condition when these change."""
        nodes = self.get_nodes()
        self._hot = {s for n in nodes for s in n.subscriptions if s.callback_group.can_execute(s)}
        self._timers = [t for n in nodes for t in n.timers]
        self._others: list[Any] = [s for n in nodes for s in (*n.services, *n.clients)]
        guards = [g for g in (self._guard, *(g for n in nodes for g in n.guards)) if g is not None]  # none after shutdown()
        services = sum(len(list(n.services)) for n in nodes)
        clients = len(self._others) - services
        self._guards = guards
        self._wait_set = rclpy_implementation.WaitSet(
            len(self._hot), len(guards), len(self._timers), clients, services, 0, self._context.handle
        )

    def _wait_and_call(self, timeout: float) -> bool:
        """Wait for messages and timers and call back. Returns whether anything else is ready."""
        waiting = self._wait_set
        with ExitStack() as held:  # keeps other threads from destroying an entity meanwhile
            try:
                entity: Any
                for entity in (*self._hot, *self._timers, *self._others, *self._guards):
                    held.enter_context(entity.handle)
            except rclpy_implementation.InvalidHandle:
                return True
            held.enter_context(waiting)
            waiting.clear_entities()
            for subscription in self._hot:
                waiting.add_subscription(subscription.handle)
            for timer in self._timers:
                waiting.add_timer(timer.handle)
            for guard in self._guards:
                waiting.add_guard_condition(guard.handle)
            for other in self._others:
                (waiting.add_client if hasattr(other, "call_async") else waiting.add_service)(other.handle)
            waiting.wait(int(timeout * 1e9))
            ready = {kind: set(waiting.get_ready_entities(kind)) for kind in ("subscription", "timer", "guard_condition")}
            woken = [g for g in self._guards if g.handle.pointer in ready["guard_condition"]]
            more = bool(self._guard in woken or waiting.get_ready_entities("service") or waiting.get_ready_entities("client"))
            messages = []
            for subscription in self._hot:
                if subscription.handle.pointer in ready["subscription"]:
                    for _ in range(max(subscription.qos_profile.depth, 1)):  # bounded, or a fast publisher would starve the others
                        if (taken := subscription.handle.take_message(subscription.msg_type, subscription.raw)) is None:
                            break
                        messages.append((taken[1]["received_timestamp"], subscription, taken[0]))
        messages.sort(key=itemgetter(0))
        for guard in woken:
            if guard is not self._guard and guard.callback is not None:
                guard.callback()
        for _, subscription, message in messages:
            subscription.callback(message)
        due = []
        for timer in self._timers:  # last: a message may have postponed its timer
            with suppress(rclpy_implementation.InvalidHandle):  # or destroyed it
                if timer.handle.pointer in ready["timer"] and timer.handle.is_timer_ready():
                    timer.handle.call_timer()
                    due.append(timer)
        for timer in due:
            timer.callback()
        return more
