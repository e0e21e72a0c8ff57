"""A policy's inputs and outputs: cameras, state, action, rates, normalisation, and how messages become observations.

The same code turns messages into a policy's input in the live node, in the bag converter and in a replay, so a converted bag equals
what the live policy saw. No ROS here: stamps are integer nanoseconds, images are arrays.
"""

from onedp_ros.contract.arm import MAX_OPENING, Arm
from onedp_ros.contract.features import ContractError, Feature, Floats
from onedp_ros.contract.normalizer import Normalizer
from onedp_ros.contract.pairing import LARGEST, Observation, ObservationAssembler, ObservationHistory
from onedp_ros.contract.spec import MAX_HZ, MAX_PIXELS, NANOSECONDS, RESERVED, Camera, Contract, Image, task_contract

__all__ = [
    "LARGEST",
    "MAX_HZ",
    "MAX_OPENING",
    "MAX_PIXELS",
    "NANOSECONDS",
    "RESERVED",
    "Arm",
    "Camera",
    "Contract",
    "ContractError",
    "Feature",
    "Floats",
    "Image",
    "Normalizer",
    "Observation",
    "ObservationAssembler",
    "ObservationHistory",
    "task_contract",
]
