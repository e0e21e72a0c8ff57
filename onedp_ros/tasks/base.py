"""What a task is: an environment that can be stepped, and what collecting demonstrations and evaluating policies need to know.

A task is a file of this folder with a ``TASK``, named like the ``task`` in its contract, ``config/tasks/<task>.yaml``. For one in
the MuJoCo cell write a :class:`~onedp_ros.twin.cell.Scene`; for another simulation, an :class:`Environment`.
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
    """A task that is stepped in simulated time, one control step of its contract after the other. :meth:`reset` comes first."""

    contract: Contract

    @property
    def stamp(self) -> int:
        """Simulated time since the start, ns."""

    @property
    def time(self) -> float:
        """Simulated time since the start, s."""

    def reset(self, rng: np.random.Generator, recovery: bool = False) -> None:
        """Begin an episode; with ``recovery`` where a policy's mistakes lead, if the task knows such places."""

    def step(self, action: ArrayLike) -> None:
        """Execute an action (action_dim,) for one control step. ContractError when it cannot be executed: NaN, no rotation."""

    def observe(self) -> Observation:
        """What a policy sees now."""

    def success(self) -> bool:
        """Whether the task is accomplished in the present state."""

    def score(self) -> float:
        """How far it is accomplished, 0 to 1."""

    def failure(self) -> str:
        """Why an episode that ends now failed, in a few words."""

    def start(self) -> tuple[float, ...]:
        """Right after :meth:`reset`: what tells this start from others; see ``start_labels`` of :class:`Task`."""

    def expert_action(self) -> Floats:
        """The scripted expert's action (action_dim,), from the true state."""

    def disturb(self, rng: np.random.Generator) -> None:
        """Disturb the next step, so that a demonstration shows how to correct it."""

    def action_bounds(self) -> tuple[Floats, Floats]:
        """Least and greatest value of each number of an action, (action_dim,) each."""

    def record(self, writer: Any) -> None:
        """Write what can be sensed from now on to an :class:`~onedp_ros.data.bags.writer.EpisodeWriter`, until the next reset."""

    def close(self) -> None:
        """Give back what the environment holds, such as an OpenGL context."""


class PlainEnvironment(ABC):
    """An :class:`Environment` that senses once a control step, such as a benchmark's. The abstract methods are a subclass's."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self._steps = 0
        self._writer: Any = None

    @abstractmethod
    def begin(self, rng: np.random.Generator, recovery: bool) -> None:
        """Begin an episode, as of :meth:`Environment.reset`."""

    @abstractmethod
    def execute(self, action: NDArray[np.float64]) -> None:
        """Advance by one control step; ``action`` (action_dim,) is one that the contract allows."""

    @abstractmethod
    def state(self) -> Floats:
        """The state (state_dim,) that a policy sees now."""

    def images(self) -> Mapping[str, Image]:
        """By the contract's cameras, (height, width, 3) uint8. Default: there are none."""
        return {}

    @abstractmethod
    def success(self) -> bool:
        """As of :meth:`Environment.success`."""

    @abstractmethod
    def failure(self) -> str:
        """As of :meth:`Environment.failure`."""

    @abstractmethod
    def action_bounds(self) -> tuple[Floats, Floats]:
        """As of :meth:`Environment.action_bounds`."""

    def score(self) -> float:
        """As of :meth:`Environment.score`. Default: 1 at success."""
        return float(self.success())

    def start(self) -> tuple[float, ...]:
        """As of :meth:`Environment.start`. Default: nothing."""
        return ()

    def expert_action(self) -> Floats:
        """As of :meth:`Environment.expert_action`. Default: there is no expert."""
        raise ValueError(f"task {self.contract.task} has no scripted expert; convert recorded demonstrations with onedp convert")

    def disturb(self, rng: np.random.Generator) -> None:
        """As of :meth:`Environment.disturb`. Default: nothing."""
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
        """As of :meth:`Environment.reset`."""
        self._steps, self._writer = 0, None
        self.begin(rng, recovery)

    def step(self, action: ArrayLike) -> None:
        """As of :meth:`Environment.step`."""
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (self.contract.action_dim,):
            raise ContractError(f"action has shape {action.shape}, expected ({self.contract.action_dim},)")
        self.execute(self.contract.check_action(action))
        self._steps += 1
        self._write()

    def observe(self) -> Observation:
        """As of :meth:`Environment.observe`."""
        images = self.images()
        return Observation(self.stamp, images, dict.fromkeys(images, self.stamp), self.state().astype(np.float32))

    def record(self, writer: Any) -> None:
        """As of :meth:`Environment.record`."""
        self._writer = writer
        self._write()

    def close(self) -> None:
        """As of :meth:`Environment.close`. Default: nothing."""
        return

    def _write(self) -> None:
        if self._writer is not None:
            self._writer.add_state(self.stamp, self.state())
            for camera, image in self.images().items():
                self._writer.add_image(camera, self.stamp, image)


@dataclasses.dataclass(frozen=True)
class EnvironmentOptions:
    """Options of a task with an environment of its own: a subclass's fields, each with a default and made by
    :func:`onedp_ros.settings.within`."""

    def __post_init__(self) -> None:
        check_fields(self, "option")


@dataclasses.dataclass(frozen=True)
class TaskOptions(EnvironmentOptions):
    """Options of a task in the cell: a subclass's, and ``variation``, drawn anew at each reset: see
    :mod:`onedp_ros.twin.variation`."""

    variation: str = within(Choice(KINDS, "what there is besides the nominal cell"), default=NONE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A task in simulation: of a ``scene`` in the MuJoCo cell, or of an ``environment`` of its own.

    Args:
        scene: makes the scene, of the options.
        environment: makes the environment, of a contract and the options.
        options: what can be chosen about it; default: of a scene, :class:`TaskOptions`, of an environment, nothing.
        max_time: s, simulated, that an episode may last.
        evaluation_seeds: episodes with this seed and above are never demonstrated.
        start_labels: names, with units, of what :meth:`Environment.start` returns; the first two are drawn as a place, a third as a
            direction (rad).
        study_by: the start label that numbers what a study goes through, such as one of ten trajectories; default: a study's starts
            lie on a grid over the first two.
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
            raise ValueError("a task needs either a scene in the cell or an environment of its own")
        if self.environment is not None and self.options is TaskOptions:
            object.__setattr__(self, "options", EnvironmentOptions)
        if issubclass(self.options, TaskOptions) != (self.scene is not None):  # only the cell varies
            kind = EnvironmentOptions if self.scene is None else TaskOptions
            raise ValueError(f"options is {self.options.__name__}, expected a subclass of {kind.__name__}")

    @property
    def robot(self) -> str:
        """What moves, for the metadata of recordings."""
        return "simulation" if self.scene is None else "twin"

    def make(self, contract: Contract, **options: Any) -> Environment:
        """The environment, for a contract and options by their names. Errors as of :meth:`choose`, and ContractError."""
        chosen = self.choose(options)
        if self.environment is not None:
            return self.environment(contract, chosen)
        assert self.scene is not None
        assert isinstance(chosen, TaskOptions)
        return SteppedCell(contract, self.scene(chosen), variation=chosen.variation)

    def choose(self, options: Mapping[str, Any]) -> EnvironmentOptions:
        """The options, by name; the defaults of others. ValueError for an unknown name or a senseless value."""
        names = [field.name for field in dataclasses.fields(self.options)]
        for name in options:
            if name not in names:
                raise ValueError(f"unknown option '{name}', expected {', '.join(names) or 'none: this task has no options'}")
        return self.options(**options)


def read_options(texts: Iterable[str]) -> dict[str, float | str]:
    """``name=value`` as a command line gives them -> values by name. ValueError for another form."""
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
