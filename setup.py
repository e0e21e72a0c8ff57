"""Packaging, for ``colcon build`` and for ``pip install``. Versions that are known to work together: constraints.txt."""

import importlib.util
import sys
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "onedp_ros"
NODES = (
    "observation_node",
    "policy_node",
    "action_node",
    "twin_node",
    "franka_node",
    "crisp_node",
    "teleop_node",
    "recorder_node",
    "player_node",
)


def shared_files(*folders: str) -> list[tuple[str, list[str]]]:
    """All files below ``folders``, each to the same place below ``share/onedp_ros``."""
    places: dict[str, list[str]] = {}
    for folder in folders:
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                places.setdefault(f"share/{PACKAGE}/{path.parent}", []).append(str(path))
    return list(places.items())


# colcon runs "setup.py … install" (or develop), which pip does not.
if {"install", "develop"} & set(sys.argv) and not all(map(importlib.util.find_spec, ("torch", "mujoco", "rosbags"))):
    print(
        f"{PACKAGE}: its nodes will run with {sys.executable}, which lacks packages from PyPI that they need, PyTorch among them; "
        "build with the colcon of the environment that make venv makes: .venv/bin/colcon build",
        file=sys.stderr,
    )

setup(
    name=PACKAGE,
    version="0.1.0",
    description="One-step diffusion policies (OneDP) for Franka arms: collect, train, distil, and run closed loop at 60 Hz",
    author="onedp_ros maintainers",
    author_email="maintainers@onedp-ros.invalid",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={f"{PACKAGE}.teleop.devices.phone": ["page/*"]},
    zip_safe=False,
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        *shared_files("launch", "config", "models"),
    ],
    # franky-sim (the FR3 model) is installed beside these without its own dependencies: only its files are used, and they
    # would pull in Pinocchio, about 500 MB.
    install_requires=[
        "accelerate",
        "aiohttp",
        "backports-zstd",
        "cryptography",
        "diffusers",
        "gymnasium",
        "h5py",
        "imageio",
        "imageio-ffmpeg",
        "lz4",
        "matplotlib",
        "mujoco>=3.9,<3.10",  # later versions drift in scenes rich in contacts
        "numcodecs",
        "numpy<2",  # cv_bridge and tf2 of Humble and Jazzy are compiled against NumPy 1
        "opencv-python-headless<4.12",
        "openvino",
        "psutil",
        "pyarrow>=14.0.1,<26",  # 26 needs NumPy 2
        "pylibfranka",
        "pyspacemouse",
        "PyYAML",
        "rosbags",
        "safetensors",
        "scipy",
        "tensorboard",
        "torch",
        "tqdm",
        "zarr<3.1",  # 3.1 needs NumPy 2
    ],
    extras_require={
        # ROS 2 Jazzy from wheels, for machines without ROS 2.
        "ros": [
            "ros-rclpy[fastrtps]",
            "ros-diagnostic-msgs",
            "ros-geometry-msgs",
            "ros-lifecycle-msgs",
            "ros-sensor-msgs",
            "ros-rosgraph-msgs",
            "ros-std-msgs",
            "ros-std-srvs",
            "ros-trajectory-msgs",
        ],
        # onedp inspect --rerun; newer ones need NumPy 2.
        "rerun": ["rerun-sdk<0.23.2"],
        # --scheduler: episodes on the machines of a Dask cluster.
        "cluster": ["distributed"],
        "test": [
            "colcon-common-extensions",
            "distributed",
            "hypothesis",
            "import-linter",
            "mcap-ros2-support",
            "mypy",
            "playwright",
            "pytest",
            "pytest-rerunfailures",
            "pytest-xdist",
            "ruff",
        ],
    },
    entry_points={
        "console_scripts": [
            f"onedp = {PACKAGE}.cli:main",
            *(f"{node} = {PACKAGE}.nodes.{node}:main" for node in NODES),
        ]
    },
)
