import os
import sys

# Before OpenCV is imported, which reads it once: a compressed image of a few kilobytes may claim gigabytes. 8192 x 8192.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))

# Before MuJoCo is imported, which reads it once: how to draw without a screen.
if not os.environ.get("DISPLAY") and sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")
