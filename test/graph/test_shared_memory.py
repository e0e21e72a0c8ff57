"""A node that was killed leaves nothing behind for long, and its neighbours do not notice."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sensor_msgs.msg import Image

from onedp_ros.graph import shm
from onedp_ros.graph.processes import graph_environment

NODE = """
import array, rclpy, sys, time
from sensor_msgs.msg import Image
rclpy.init(args=[])
publisher = rclpy.create_node(sys.argv[1]).create_publisher(Image, sys.argv[1], 1)
message = Image(height=480, width=640, encoding="rgb8", step=1920, data=array.array("B", bytes(921600)))
while True:
    publisher.publish(message)
    time.sleep(0.05)
"""


class Publisher:
    """A process that publishes images, with the profile of our graphs."""

    def __init__(self, rig, name):
        environment = {**os.environ, **graph_environment(os.environ), "ROS_DOMAIN_ID": str(rig.domain)}
        self.process = subprocess.Popen([sys.executable, "-c", NODE, name], env=environment)
        self.images = rig.listen(Image, name)
        rig.until(lambda: self.images, f"images of {name}")

    def segments(self):
        """Of shared memory, that it made."""
        mapped = re.findall(r"/dev/shm/(fastrtps_[0-9a-f]{16})$", Path(f"/proc/{self.process.pid}/maps").read_text(), re.M)
        locked = {os.readlink(link) for link in Path(f"/proc/{self.process.pid}/fd").iterdir()}
        return [shm.FOLDER / name for name in set(mapped) if f"/dev/shm/{name}_el" in locked]


@pytest.fixture
def publisher(rig):
    made = []

    def make(name):
        made.append(Publisher(rig, name))
        return made[-1]

    yield make
    for one in made:
        one.process.kill()
        one.process.wait()
    for one in made:
        for path in one.left:
            path.unlink(missing_ok=True)
            path.with_name(path.name + "_el").unlink(missing_ok=True)


def test_what_a_killed_node_held_is_given_back_and_the_living_go_on(rig, publisher):
    living, dead = publisher("living"), publisher("dead")
    living.left, dead.left = living.segments(), dead.segments()
    assert living.left and dead.left and sum(path.stat().st_size for path in dead.left) > 2**25
    dead.process.kill()
    dead.process.wait()
    assert all(path.exists() for path in dead.left), "nobody else cleans up"
    for path in dead.left:
        os.utime(path.with_name(path.name + "_el"), (0, 0))  # it is not left alone as one that may be about to be locked
    assert shm.remove_dead_segments() > 2**25
    assert not any(path.exists() for path in dead.left) and all(path.exists() for path in living.left)
    rig.more(living.images, 20, "images of the living")
    again = publisher("again")
    again.left = again.segments()
    rig.more(again.images, 5, "images of a new node")
