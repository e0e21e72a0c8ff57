"""The interface of a simulated task: an environment that can be stepped, and what demonstration collection and evaluation need.

A task is a module in this folder that defines ``TASK``, named like the ``task`` in its contract, ``config/tasks/<task>.yaml``. For
the MuJoCo cell write a :class:`~onedp_ros.twin.cell.Scene`; for another simulator, an :class:`Environment`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onedp_ros.contract import NANOSECONDS, Contract, ContractError, Floats, Image, Observation
from onedp_ros.settings import Choice, check_fields, within
from onedp_ros.twin.cell import Scene
from onedp_ros.twin.stepped import SteppedCell
from onedp_ros.twin.variation import KINDS, NONE

EVALUATION_SEEDS = 100_000


class Environment(Protocol):
    """A task in simulated time, advanced by one control step of its contract at a time. Call :meth:`reset` first."""

    contract: Contract

    @property
    def stamp(self) -> int:
        """Simulated time since the start, ns."""

    @property
    def time(self) -> float:
        """Simulated time since the start, s."""

    def reset(self, rng: np.random.Generator, recovery: bool = False) -> None:
        """Start an episode; with ``recovery`` in a state that a policy's mistakes lead to, if the task defines such states."""

    def step(self, action: ArrayLike) -> None:
        """Execute an action (action_dim,) for one control step. ContractError if it holds NaN or an invalid rotation."""

    def observe(self) -> Observation:
        """The policy's current observation."""

    def success(self) -> bool:
        """Whether the task is accomplished in the current state."""

    def score(self) -> float:
        """Progress on the task, 0 to 1."""

    def failure(self) -> str:
        """Why the episode failed, if it ended now, in a few words."""

    def start(self) -> tuple[float, ...]:
        """The episode's initial conditions, right after :meth:`reset`; see ``start_labels`` of :class:`Task`."""

    def expert_action(self) -> Floats:
        """The scripted expert's action (action_dim,), computed from the true state."""

    def disturb(self, rng: np.random.Generator) -> None:
        """Disturb the next step, so that a demonstration shows the correction."""

    def action_bounds(self) -> tuple[Floats, Floats]:
        """Lower and upper bounds of an action, (action_dim,) each."""

    def record(self, writer: Any) -> None:
        """Record the sensors to an :class:`~onedp_ros.data.bags.writer.EpisodeWriter`, from now until the next reset."""

    def close(self) -> None:
        """Release resources, such as an OpenGL context."""


class PlainEnvironment(ABC):
    """Base class of an :class:`Environment` that observes once per control step, such as a benchmark's."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self._steps = 0
        self._writer: Any = None

    @abstractmethod
    def begin(self, rng: np.random.Generator, recovery: bool) -> None:
        """Start an episode; see :meth:`Environment.reset`."""

    @abstractmethod
    def execute(self, action: NDArray[np.float64]) -> None:
        """Advance by one control step; ``action`` (action_dim,) is valid under the contract."""

    @abstractmethod
    def state(self) -> Floats:
        """The current low-dimensional observation, (state_dim,)."""

    def images(self) -> Mapping[str, Image]:
        """The cameras' images by name, (height, width, 3) uint8. Default: none."""
        return {}

    @abstractmethod
    def success(self) -> bool:
        """See :meth:`Environment.success`."""

    @abstractmethod
    def failure(self) -> str:
        """See :meth:`Environment.failure`."""

    @abstractmethod
    def action_bounds(self) -> tuple[Floats, Floats]:
        """See :meth:`Environment.action_bounds`."""

    def score(self) -> float:
        """See :meth:`Environment.score`. Default: 1 on success, else 0."""
        return float(self.success())

    def start(self) -> tuple[float, ...]:
        """See :meth:`Environment.start`. Default: empty."""
        return ()

    def expert_action(self) -> Floats:
        """See :meth:`Environment.expert_action`. Default: ValueError, there is no expert."""
        raise ValueError(f"task {self.contract.task} has no scripted expert; convert recorded demonstrations with onedp convert")

    def disturb(self, rng: np.random.Generator) -> None:
        """See :meth:`Environment.disturb`. Default: do nothing."""
        return

    @property
    def stamp(self) -> int:
        """Simulated time since the start, ns."""
        return self._steps * self.contract.dt_ns

    @property
    def time(self) -> float:
        """Simulated time since the start, s."""
        return self.stamp / NANOSECONDS

    def reset(self, rng: np.random.Generator, recovery: bool = False) -> None:
        """See :meth:`Environment.reset`."""
        self._steps, self._writer = 0, None
        self.begin(rng, recovery)

    def step(self, action: ArrayLike) -> None:
        """See :meth:`Environment.step`."""
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (self.contract.action_dim,):
            raise ContractError(f"action has shape {action.shape}, expected ({self.contract.action_dim},)")
        self.execute(self.contract.check_action(action))
        self._steps += 1
        self._write()

    def observe(self) -> Observation:
        """See :meth:`Environment.observe`."""
        images = self.images()
        return Observation(self.stamp, images, dict.fromkeys(images, self.stamp), self.state().astype(np.float32))

    def record(self, writer: Any) -> None:
        """See :meth:`Environment.record`."""
        self._writer = writer
        self._write()

    def close(self) -> None:
        """See :meth:`Environment.close`. Default: do nothing."""
        return

    def _write(self) -> None:
        if self._writer is not None:
            self._writer.add_state(self.stamp, self.state())
            for camera, image in self.images().items():
                self._writer.add_image(camera, self.stamp, image)


@dataclasses.dataclass(frozen=True)
class EnvironmentOptions:
    """Options of a task with its own environment. A subclass adds fields, each with a default, made by
    :func:`onedp_ros.settings.within`."""

    def __post_init__(self) -> None:
        check_fields(self, "option")


@dataclasses.dataclass(frozen=True)
class TaskOptions(EnvironmentOptions):
    """Options of a task in the cell: a subclass's fields, and ``variation``, the domain randomization of
    :mod:`onedp_ros.twin.variation`, drawn at each reset."""

    variation: str = within(Choice(KINDS, "domain randomization of the cell; none is the nominal cell"), default=NONE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A simulated task: a ``scene`` in the MuJoCo cell, or an ``environment`` of its own.

    Args:
        scene: factory of the scene, called with the options.
        environment: factory of the environment, called with a contract and the options.
        options: class of the task's options; default: :class:`TaskOptions` for a scene, no options for an environment.
        max_time: longest episode, simulated s.
        evaluation_seeds: seeds from this one on are reserved for evaluation and never demonstrated.
        start_labels: names, with units, of the values that :meth:`Environment.start` returns; the first two are plotted as a
            position, a third as a heading (rad).
        study_by: the start label that enumerates a study's cases, such as one of ten trajectories; default: a study's starts lie on
            a grid over the first two.
    """

    scene: Callable[[Any], Scene] | None = None
    environment: Callable[[Contract, Any], Environment] | None = None
    options: type[EnvironmentOptions] = TaskOptions
    max_time: float = 20.0
    evaluation_seeds: int = EVALUATION_SEEDS
    start_labels: tuple[str, ...] = ()
    study_by: str = ""

    def __post_init__(self) -> None:
        if self.study_by and self.study_by not in self.start_labels:
            raise ValueError(f"study_by is '{self.study_by}', expected one of the start labels, {', '.join(self.start_labels)}")
        if (self.scene is None) == (self.environment is None):
            raise ValueError("a task needs either a scene in the cell or its own environment")
        if self.environment is not None and self.options is TaskOptions:
            object.__setattr__(self, "options", EnvironmentOptions)
        if issubclass(self.options, TaskOptions) != (self.scene is not None):  # only the cell has variation
            kind = EnvironmentOptions if self.scene is None else TaskOptions
            raise ValueError(f"options is {self.options.__name__}, expected a subclass of {kind.__name__}")

    @property
    def robot(self) -> str:
        """The robot's name in the metadata of recordings."""
        return "simulation" if self.scene is None else "twin"

    def make(self, contract: Contract, **options: Any) -> Environment:
        """Make the environment for a contract, with options by name. Errors of :meth:`choose`, and ContractError."""
        chosen = self.choose(options)
        if self.environment is not None:
            return self.environment(contract, chosen)
        assert self.scene is not None
        assert isinstance(chosen, TaskOptions)
        return SteppedCell(contract, self.scene(chosen), variation=chosen.variation)

    def choose(self, options: Mapping[str, Any]) -> EnvironmentOptions:
        """The options, given by name, others at their defaults. ValueError for an unknown name or an invalid value."""
        names = [field.name for field in dataclasses.fields(self.options)]
        for name in options:
            if name not in names:
                raise ValueError(f"unknown option '{name}', expected {', '.join(names) or 'none: this task has no options'}")
        return self.options(**options)


def read_options(texts: Iterable[str]) -> dict[str, float | str]:
    """Parse ``name=value`` command-line arguments into values by name. ValueError for any other form."""
    options: dict[str, float | str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"option '{text}' is not of the form name=value")
        try:
            options[name] = float(value)
        except ValueError:
            options[name] = value
    return options
