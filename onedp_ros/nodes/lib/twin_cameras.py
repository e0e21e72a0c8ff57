"""The process that renders the twin's cameras, so that physics never waits for rendering."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Any

import numpy as np
import rclpy
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image

from onedp_ros.contract import Camera
from onedp_ros.graph.processes import enclave
from onedp_ros.messages.encode import camera_info, image_message
from onedp_ros.twin.cell import CellRenderer, Scene, build_model
from onedp_ros.twin.variation import Variation

RELIABLE = QoSProfile(depth=5)  # like a RealSense's, so that RViz and others with reliable subscriptions get the images
OPTICAL_FRAME = "{}_camera_color_optical_frame"  # like a RealSense's


def draw_frames(frames: Any, cameras: dict[str, Camera], topics: dict[str, str], counts: Any, scene: Scene, variation: str) -> None:
    """Render and publish the frames from the physics process. Ends on ``None`` or with its parent.

    Args:
        frames: queue of :class:`~onedp_ros.twin.stepped.Frame` and its stamp in ROS time (ns).
        cameras, topics: by camera name.
        counts: array of the number of frames sent, in the order of ``topics``.
        scene: the task's.
        variation: of the cell.
    """
    ctypes.CDLL("libc.so.6").prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent signals the end
    keys = enclave(os.environ, "twin_node")
    rclpy.init(args=["--ros-args", *keys] if keys else [], signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    node = rclpy.create_node("twin_cameras", use_global_arguments=False, start_parameter_services=False, enable_rosout=False)
    publishers = {camera: node.create_publisher(Image, topic, RELIABLE) for camera, topic in topics.items()}
    informers = {c: node.create_publisher(CameraInfo, f"{t.rpartition('/')[0]}/camera_info", RELIABLE) for c, t in topics.items()}
    import mujoco  # after onedp_ros.twin, which selects the OpenGL backend

    model = build_model(scene, cameras.values())
    varied = Variation(model, variation)
    data, renderer = mujoco.MjData(model), CellRenderer(model, cameras, varied)
    sent = dict.fromkeys(topics, 0)
    while (item := frames.get()) is not None:
        frame, stamp = item
        camera = frame.camera
        varied.apply(frame.variation)
        frame.show(model, data)
        image = image_message(renderer.render(data, camera, frame.stamp), stamp, OPTICAL_FRAME.format(camera))
        info = camera_info(image.height, image.width, float(np.deg2rad(model.camera(camera).fovy[0])))
        info.header = image.header
        publishers[camera].publish(image)
        informers[camera].publish(info)
        sent[camera] += 1
        counts[list(topics).index(camera)] = sent[camera]
    renderer.close()
    node.destroy_node()
    rclpy.shutdown()
