"""OpenVINO on the CPU in bfloat16, which some processors compute twice as fast."""

from __future__ import annotations

from onedp_ros.policy.engines.openvino import OpenVinoEngine


class OpenVinoBf16Engine(OpenVinoEngine):
    priority = 20
    precision = "bf16"


ENGINE = OpenVinoBf16Engine
