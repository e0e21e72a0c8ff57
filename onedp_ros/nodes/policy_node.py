"""Observations -> action chunks. A lifecycle node: configure loads, checks and warms up; active, it predicts.

Another model is loaded by setting the parameters while the node is unconfigured (cleanup), and configuring it again. Loading takes
seconds, in which the node answers, and says in the log and in /diagnostics what it is doing.

Two threads: the executor's takes the observations; a worker loads and predicts (engines release the interpreter lock). Each new
observation is a tick, and so is ``1 / rate`` without one. Nothing queues: an observation that comes during a prediction waits for
its end only as long as it is the newest; when another replaces it, its tick was skipped, and counted.

What a chunk was made of follows from the observations that came and from the stamps of the chunks: an observation that was
predicted from is in the history, any other only when it is far from the one before. So a recording tells every prediction's input.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import MultiDOFJointTrajectory

from onedp_ros.contract import NANOSECONDS, ContractError, Observation, ObservationHistory
from onedp_ros.control.chunk import ActionChunk
from onedp_ros.messages.decode import observation_from_messages
from onedp_ros.messages.encode import chunk_message
from onedp_ros.messages.standins import Subscriber, TimeSynchronizer
from onedp_ros.nodes.lib.diagnostics import DiagnosticReport, Diagnostics, Percentiles, Rate, RecentProblem, counted, worst
from onedp_ros.nodes.lib.input_watch import InputWatch
from onedp_ros.nodes.lib.lifecycle import LifecycleNode, wait_for
from onedp_ros.nodes.lib.parameters import declare, declare_contract, declare_dynamic, declare_unconfigured
from onedp_ros.nodes.lib.policy_bundle import find_bundle, load_bundle, suggest_faster_policy
from onedp_ros.nodes.lib.process import run_node
from onedp_ros.policy.engines import AUTO, describe_engines
from onedp_ros.policy.methods import describe_methods

WARM_UP = 10  # predictions
QUEUE = 30  # observations whose parts may be on their way, or that wait for a thread that is held up
GRACE = 1.0  # s without observations after activation before that is an error


class PolicyNode(LifecycleNode):
    """observation/{camera}/image, observation/state -> action/chunk.

    Args:
        load: makes the predictor, with the signature of :func:`onedp_ros.policy.predictor.load_predictor`.
    """

    def __init__(self, load: Callable[..., Any] = load_bundle, **kwargs: Any) -> None:
        super().__init__("policy_node", **kwargs)
        self._load = load
        self.contract = declare_contract(self)
        given: dict[str, tuple[Any, ...]] = {
            "model": ("", "Directory of the policy: config.json and model.safetensors; empty: the released one of the method"),
            "method": ("", f"{describe_methods()}; empty: what the model was made for"),
            "engine": (AUTO, f"Inference engine: {describe_engines()}"),
            "threads": (0, "Processor threads of the engine; 0: its own choice", 0, 256),
            "seed": (0, "Seed of the policy's noise", 0, 2**31 - 1),  # not in motion: a recording is of one seed
        }
        self._given = {name: declare_unconfigured(self, name, *described) for name, described in given.items()}
        self._used: dict[str, Any] = {}
        self._tick_rate = declare_dynamic(
            self, "rate", 50.0, "Least predictions a second; each new observation gives one at once", 0.1, 500.0
        )
        self._max_age = declare_dynamic(
            self, "max_observation_age", 0.2, "Age over which an observation is not acted upon, s", 0.01, 10.0
        )
        self._autostart = declare(self, "autostart", False, "Configure and activate at start; a failure ends the process")

        self._pool = ThreadPoolExecutor(1, "inference")  # one thread: engines keep their own pools for each that calls
        self._running: Future[None] | None = None
        self._predictor: Any = None
        self._subscribers: list[Any] = []
        self._watches: list[InputWatch] = []
        self._publisher: Any = None
        self._ticker: Any = None
        self._free = self.create_guard_condition(self._on_free)
        self._forget()
        self._diagnostics = Diagnostics(self, self._report)

    def start(self) -> None:
        """Configure and activate, and wait for it in this thread. RuntimeError when either fails; the log above says why."""
        wait_for(self._bring_up())

    async def _bring_up(self) -> None:
        for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
            if await self.change_state(transition) != TransitionCallbackReturn.SUCCESS:
                raise RuntimeError(self._fault or "the policy could not be started")

    def start_soon(self) -> None:
        """Have the executor configure and activate; an error ends its spinning."""

        def begin() -> None:
            self.destroy_timer(timer)
            assert self.executor is not None
            self.executor.create_task(self._bring_up)

        timer = self.create_timer(0.0, begin)

    def _forget(self) -> None:
        self._history = ObservationHistory(self.contract)
        self._newest: Observation | None = None
        self._rejected: Counter[str] = Counter()
        self._ticks = self._skipped = self._starved = self._chunks = self._repeats = self._observations = 0
        self._active_since: float | None = None
        self._heard = float("-inf")
        self._fault = ""
        self._doing: tuple[float, str] | None = None  # since when, and what, while it loads
        self._problem = RecentProblem(self, DiagnosticStatus.ERROR)
        self._begin_meters()

    def _begin_meters(self) -> None:
        self._rate, self._inference, self._encoding, self._latency = Rate(), Percentiles(), Percentiles(), Percentiles()

    # transitions

    async def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:  # type: ignore[override]
        self._forget()
        self._used = {name: read() for name, read in self._given.items()}
        begin = time.monotonic()
        try:
            self._predictor = await self.finished(self._pool.submit(self._prepare, begin))
        except Exception as error:  # whatever it is, the node stays unconfigured and says so
            self._fault = str(error)
            self.get_logger().error(f"cannot use the policy '{self._used['model']}': {error}")
            gc.collect()
            return TransitionCallbackReturn.FAILURE
        finally:
            self._doing = None
        self._publisher = self.create_lifecycle_publisher(MultiDOFJointTrajectory, "action/chunk", 1)
        topics = [(Image, f"observation/{name}/image") for name in self.contract.cameras]
        topics.append((JointState, "observation/state"))
        qos = QoSProfile(depth=QUEUE, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._subscribers = [Subscriber(self, kind, topic, qos_profile=qos) for kind, topic in topics]
        self._watches = [InputWatch(self, subscriber.sub) for subscriber in self._subscribers]
        self._synchronizer = TimeSynchronizer(self._subscribers, QUEUE)
        self._synchronizer.registerCallback(self._on_set)
        p = self._predictor
        self.get_logger().info(
            f"{p.method} (NFE {p.nfe}), {p.network} network on {p.engine}, parity {p.parity}: "
            f"ready after {time.monotonic() - begin:.1f} s"
        )
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._active_since = time.monotonic()
        self._begin_meters()
        self._ticker_rate = self._tick_rate()
        self._ticker = self.create_timer(1.0 / self._ticker_rate, self._on_timer)
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._pause()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._pause()
        self._release()
        return super().on_shutdown(state)

    def destroy_node(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._running is not None and not self._running.cancel():
            wait([self._running])  # it publishes; one that loads cannot be interrupted and is not waited for
        super().destroy_node()

    def _prepare(self, begin: float) -> Any:
        """Load the policy and warm up, in the worker, whose thread the engine will run in."""

        def progress(text: str) -> None:
            self._doing = (begin, text)
            self.get_logger().info(f"loading, {time.monotonic() - begin:4.1f} s: {text}")

        options = dict(self._used)
        model = options.pop("model")
        if not model and self._load is load_bundle:
            if not options["method"]:
                raise ValueError("parameters 'model' and 'method' are empty; give the directory of a policy, or a released method")
            model = self._used["model"] = find_bundle(self.contract.policy_task, options["method"], progress)
        options["method"] = options["method"] or None
        predictor = self._load(model, contract=self.contract, progress=progress, **options)
        self.contract.require_policy(predictor.contract, model)
        progress("warming up")
        contract, rng = self.contract, np.random.default_rng(0)
        for _ in range(WARM_UP):
            images = {n: rng.integers(0, 255, (c.height, c.width, 3), dtype=np.uint8) for n, c in contract.cameras.items()}
            state = np.zeros(contract.state_dim, np.float32)
            predictor.predict([[Observation(0, images, dict.fromkeys(images, 0), state)] * contract.n_obs_steps])
        return predictor

    def _pause(self) -> None:
        self._pass_over()
        if self._ticker is not None:
            self.destroy_timer(self._ticker)
        if self._running is not None:
            self._running.result()
        self._ticker = self._running = self._active_since = None

    def _release(self) -> None:
        for subscriber in self._subscribers:
            self.destroy_subscription(subscriber.sub)
        self._subscribers, self._watches = [], []
        if self._publisher is not None:
            self.destroy_lifecycle_publisher(self._publisher)
        self._publisher = self._predictor = None
        gc.collect()  # the engine's memory now, not sometime: the next one may be as large
        self._history = ObservationHistory(self.contract)
        self._newest = None

    # executor's thread

    def _on_set(self, *messages: Any) -> None:
        if not all([watch.alone() for watch in self._watches]):
            self._rejected["several_publishers"] += 1
            return
        try:
            images = dict(zip(self.contract.cameras, messages[:-1], strict=True))
            observation = observation_from_messages(self.contract, images, messages[-1])
        except ContractError as error:
            self._reject("observation_against_the_contract", str(error))
            return
        self._observations += 1
        self._heard = time.monotonic()
        self._skipped += self._newest is not None
        self._pass_over()
        self._newest = observation
        if self._ticker is None:
            self._pass_over()
        else:
            self._ticks += 1
            self._follow_rate()
            self._ticker.reset()
            self._start()

    def _follow_rate(self) -> None:
        if (rate := self._tick_rate()) != self._ticker_rate:
            self._ticker_rate, self._ticker.timer_period_ns = rate, NANOSECONDS / rate

    def _pass_over(self) -> None:
        """No prediction sees the newest observation. Of those only the ones far from others become history: their frames are not
        encoded yet, and a slow prediction with more of them to encode would make the next one slow too."""
        if self._newest is not None:
            self._history.add_distant(self._newest)
        self._newest = None

    def _on_free(self) -> None:
        if self._newest is not None:
            self._start()

    def _on_timer(self) -> None:
        self._ticks += 1
        self._follow_rate()
        if not self._start():
            self._skipped += 1

    def _start(self) -> bool:
        """Begin a prediction from what is known now. False when the last one still runs."""
        if self._running is not None:
            if not self._running.done():
                return False
            self._running.result()  # an error that nobody expected ends the node
        now, repeat = self._now(), self._newest is None
        if self._newest is not None and self._fresh(self._newest, now):
            self._history.add(self._newest)
            self._newest = None
        self._pass_over()
        window = self._history.window()
        if window is None or not self._fresh(window[-1], now):
            self._starved += 1
            return True
        self._repeats += repeat
        self._running = self._pool.submit(self._predict, window)
        self._running.add_done_callback(lambda _: self._free.trigger())
        return True

    def _fresh(self, observation: Observation, now: int) -> bool:
        return now - observation.stamp <= self._max_age() * NANOSECONDS

    # worker

    def _predict(self, window: list[Observation]) -> None:
        begin = time.perf_counter()
        try:
            actions = self._predictor.predict([window])[0]
            chunk = ActionChunk.from_actions(self.contract, window[-1].stamp, actions)
        except ContractError as error:
            self._reject("chunk_against_the_contract", str(error))
            return
        except Exception as error:  # an engine's own errors have no common base
            self._reject("inference_failed", f"inference failed: {error}")
            return
        seconds = time.perf_counter() - begin
        self._inference.add(1e3 * seconds)
        self._encoding.add(self._predictor.encode_ms)
        if (late := self._now() - int(self.contract.action_stamps(chunk.stamp)[-1])) > 0:
            self._reject("chunk_past", f"a prediction took {seconds:.1f} s: all its actions are past, by {late / 1e9:.1f} s")
            return
        self._publisher.publish(chunk_message(chunk, self.contract.base_frame))
        self._latency.add((self._now() - chunk.stamp) / 1e6)
        self._chunks += 1
        self._rate.tick()

    def _reject(self, reason: str, text: str) -> None:
        self._rejected[reason] += 1
        self._problem.report(text)

    def _now(self) -> int:
        return self.get_clock().now().nanoseconds

    def _report(self) -> DiagnosticReport:
        now, active = time.monotonic(), self._active_since
        hungry = active is not None and now - max(self._heard, active) > max(GRACE, self._max_age())
        inference = self._inference.values("inference_ms")
        period = 1e3 * min(self.contract.dt, 1.0 / self._tick_rate())
        slow = bool(inference) and inference["inference_ms_p50"] > period
        doing = self._doing
        fine = "running" if active is not None else "not active"
        if doing is not None:
            fine = f"loading {self._used['model']}: {doing[1]}, {now - doing[0]:.1f} s so far"
        level, text = worst(
            (DiagnosticStatus.ERROR, f"not configured: {self._fault}") if self._fault else None,
            *(watch.finding() for watch in self._watches),
            (DiagnosticStatus.ERROR, "no observation/state with images of its stamp; see observation_node") if hungry else None,
            self._problem.finding(),
            (
                DiagnosticStatus.WARN,
                f"inference takes {inference['inference_ms_p50']} ms, more than {period:.0f} ms; "
                f"{suggest_faster_policy(self._predictor)}",
            )
            if slow and self._predictor is not None
            else None,
            fine=fine,
        )
        predictor = self._predictor
        facts: dict[str, Any] = {}
        if predictor is not None:
            facts = {k: getattr(predictor, k) for k in ("engine", "network", "method", "nfe", "parity")}
            facts |= {name: self._used[name] for name in ("model", "threads", "seed")}
        return (
            level,
            text,
            {
                "active": active is not None,
                "policy_hz": round(self._rate.hz(), 2),
                "chunks": self._chunks,
                "repeats": self._repeats,
                "ticks": self._ticks,
                "ticks_skipped": self._skipped,
                "ticks_starved": self._starved,
                "observations": self._observations,
                **inference,
                **self._encoding.values("encoding_ms"),
                **self._latency.values("chunk_latency_ms"),
                **counted("rejected", self._rejected),
                **facts,
            },
        )


def make_node(load: Callable[..., Any] = load_bundle) -> PolicyNode:
    """The node, started when its parameter ``autostart`` is set."""
    node = PolicyNode(load)
    if node.get_parameter("autostart").value:
        node.start_soon()
    return node


def main(args: list[str] | None = None) -> int:
    status = run_node(make_node, args)
    gc.collect()  # the node, in cycles with its callbacks: the middleware gives its shared memory back only with it
    sys.stdout.flush()
    os._exit(status)  # nothing is left to do, and taking torch and the engine down would cost up to a second


if __name__ == "__main__":
    sys.exit(main())
