"""Where the package's files are: in the source tree, or in ``share/onedp_ros`` of an installed package.

Launch files import this module, on the system's Python: it needs the standard library and YAML only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onedp_ros.config import check_name, read_yaml


def resource(*parts: str) -> Path:
    """Path of ``config/…``, ``models/…`` or ``launch/…``. FileNotFoundError names where it was looked for."""
    here = Path(__file__).resolve()
    # the checkout; <prefix>/share for <prefix>/lib/pythonX.Y/site-packages/onedp_ros/resources.py
    places = [here.parents[1], *(p / "share" / "onedp_ros" for p in here.parents[3:6])]
    for place in places:
        if (found := place.joinpath(*parts)).exists():
            return found
    raise FileNotFoundError(
        f"{'/'.join(parts)} is in none of {[str(p) for p in places]}; install the package with colcon or pip install -e"
    )


def child_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables for a child process that runs this package's modules: ``environment``, by default this process's, with the place of
    the package that this process runs first in its path."""
    base = dict(os.environ if environment is None else environment)
    base["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[1]), base.get("PYTHONPATH")]))
    return base


def names_of_files(folder: str) -> list[str]:
    """Names of the YAML files in ``config/<folder>``."""
    return sorted(path.stem for path in resource("config", folder).glob("*.yaml"))


def named_file(folder: str, name: str) -> Path:
    """``config/<folder>/<name>.yaml``, or ``name`` itself when it is the path of a YAML file. FileNotFoundError names the file."""
    if not name.endswith((".yaml", ".yml")):
        known = names_of_files(folder)
        if name not in known:
            raise FileNotFoundError(
                f"{name}.yaml is not in config/{folder}, which has {', '.join(known)}; give one of them, or the path of a file"
            )
        return resource("config", folder, f"{name}.yaml")
    if not Path(name).is_file():
        raise FileNotFoundError(f"{name} does not exist; give the path of a YAML file, or the name of one in config/{folder}")
    return Path(name).resolve()


def read_task(task: str) -> Mapping[str, Any]:
    """What a task file says. Its names are checked, the rest by the nodes, with :func:`onedp_ros.contract.task_contract`.

    Raises:
        FileNotFoundError: as of :func:`named_file`.
        ValueError: the file cannot be read, or names no task and cameras.
    """
    path = named_file("tasks", task)
    data = read_yaml(path)
    if not isinstance(data, Mapping) or not isinstance(data.get("cameras"), Mapping) or "task" not in data:
        raise ValueError(f"{path} names no task and cameras; see those in config/tasks for complete ones")
    for kind, name in (("task", data["task"]), *(("camera", camera) for camera in data["cameras"])):
        check_name(kind, name)
    return data


def policy_task(task: str) -> str:
    """The task whose policies do a task. Errors as of :func:`read_task`."""
    data = read_task(task)
    return str(data.get("policy") or data["task"])


def task_folder(task: str) -> Path:
    """Where what is made for a task lies unless something else is asked for: ``out/<task>``."""
    return Path("out") / read_task(task)["task"]


def default_task() -> str:
    """The task of the demo and the benchmarks: the one of which ``models/`` has golden predictions.

    Raises:
        FileNotFoundError: there is none.
    """
    for path in sorted(resource("models").glob("*/golden/actions.safetensors")):
        return path.parents[1].name
    raise FileNotFoundError("models/ has no golden predictions of any task; fetch the released ones")
