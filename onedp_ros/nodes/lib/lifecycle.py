"""A lifecycle node that stays responsive during a long transition.

rclpy's own runs a transition in the service's callback, and blocks the node's executor meanwhile: its state, parameters and
diagnostics.
"""

from __future__ import annotations

import concurrent.futures
import inspect
import traceback
from collections.abc import Coroutine, Generator
from typing import Any

import rclpy.lifecycle
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn


class LifecycleNode(rclpy.lifecycle.LifecycleNode):
    """``on_configure`` may be a coroutine that awaits :meth:`finished`. A request for a transition that is invalid in the current
    state is refused; in rclpy's own node it is an error that ends the node."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        service: Any = self._service_change_state
        service.callback, service.callback_group = self._on_change_state, ReentrantCallbackGroup()
        service.callback_group.add_entity(service)

    def finished(self, future: concurrent.futures.Future[Any]) -> _Finished:
        """An awaitable for the result of another thread's ``future``; the executor keeps spinning meanwhile."""

        def wake(_: concurrent.futures.Future[Any]) -> None:
            if self.executor is not None:
                self.executor.wake()

        future.add_done_callback(wake)
        return _Finished(future)

    async def change_state(self, transition: int) -> TransitionCallbackReturn:
        """Make a transition (an id of ``lifecycle_msgs/Transition``). RCLError if it is invalid in the current state."""
        machine = self._state_machine
        before = LifecycleState(state_id=machine.current_state[0], label=machine.current_state[1])
        machine.trigger_transition_by_id(transition, True)
        code = await self._call_back(before)
        machine.trigger_transition_by_label(code.to_label(), True)
        if code == TransitionCallbackReturn.ERROR:
            machine.trigger_transition_by_label((await self._call_back(before)).to_label(), True)
        return code

    def trigger_configure(self) -> TransitionCallbackReturn:
        """Configure, and wait in this thread."""
        return wait_for(self.change_state(Transition.TRANSITION_CONFIGURE))

    async def _call_back(self, before: LifecycleState) -> TransitionCallbackReturn:
        """Call the callback of the current transition state and return its result."""
        callback = self._callbacks.get(self._state_machine.current_state[0])
        try:
            result = TransitionCallbackReturn.SUCCESS if callback is None else callback(before)
            return await result if inspect.isawaitable(result) else result
        except Exception:  # the state machine handles errors of any kind
            self.get_logger().error(traceback.format_exc())
            return TransitionCallbackReturn.ERROR

    async def _on_change_state(self, request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
        asked, response.success = request.transition, False
        try:
            transition = self._state_machine.get_transition_by_label(asked.label) if asked.label else asked.id
            response.success = await self.change_state(transition) == TransitionCallbackReturn.SUCCESS
        except rclpy_implementation.RCLError:
            state = self._state_machine.current_state[1]
            self.get_logger().error(f"transition '{asked.label or asked.id}' refused: it is invalid in the state '{state}'")
        return response


class _Finished:
    def __init__(self, future: concurrent.futures.Future[Any]) -> None:
        self._future = future

    def __await__(self) -> Generator[concurrent.futures.Future[Any], None, Any]:
        while not self._future.done():
            yield self._future  # rclpy's executor resumes whenever it is woken, wait_for when the future is done
        return self._future.result()


def wait_for(coroutine: Coroutine[concurrent.futures.Future[Any], None, Any]) -> Any:
    """Run a coroutine that awaits :meth:`LifecycleNode.finished` in this thread, and return its result."""
    try:
        while True:
            concurrent.futures.wait([coroutine.send(None)])
    except StopIteration as end:
        return end.value
