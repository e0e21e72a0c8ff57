"""What a policy sees and outputs: cameras, state, action, rates, normalisation, and how messages become observations.

The same code turns messages into a policy's input in the live node, in the bag converter and in a replay, so that a converted bag
equals what the live policy saw. No ROS here: stamps are integer nanoseconds, images are arrays.
"""

from onedp_ros.contract.encoding import decode_action, encode_action, encode_state
from onedp_ros.contract.normalizer import Normalizer
from onedp_ros.contract.pairing import LARGEST, Observation, ObservationAssembler, ObservationHistory
from onedp_ros.contract.spec import (
    ACTION_NAMES,
    MAX_HZ,
    MAX_OPENING,
    MAX_PIXELS,
    NANOSECONDS,
    RESERVED,
    STATE_NAMES,
    Camera,
    Contract,
    ContractError,
    Floats,
    Image,
    task_contract,
)

__all__ = [
    "ACTION_NAMES",
    "LARGEST",
    "MAX_HZ",
    "MAX_OPENING",
    "MAX_PIXELS",
    "NANOSECONDS",
    "RESERVED",
    "STATE_NAMES",
    "Camera",
    "Contract",
    "ContractError",
    "Floats",
    "Image",
    "Normalizer",
    "Observation",
    "ObservationAssembler",
    "ObservationHistory",
    "decode_action",
    "encode_action",
    "encode_state",
    "task_contract",
]
