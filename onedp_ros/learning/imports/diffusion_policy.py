"""Checkpoints of real-stanford/diffusion_policy (Chi et al. 2023): its hybrid image U-Net policy with robomimic's image encoders.

The networks are the same as :mod:`onedp_ros.policy.networks`; what differs is

- the names of the weights;
- the condition: theirs concatenates the observations in the order of shape_meta, ours all cameras in the contract's order and then
  the state, so that the columns of the FiLM layers change places;
- keypoints: theirs are (x, y) pairs, ours all x and then all y, so that the columns of the encoders' last layer change places;
- the normaliser: theirs is ``value * scale + offset``, ours ``(value - offset) / scale``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onedp_ros.config import shown
from onedp_ros.contract import Contract, Normalizer
from onedp_ros.contract.features import slices
from onedp_ros.learning.imports.base import ImportedPolicy, PolicyImportError
from onedp_ros.learning.imports.diffusion_policy_settings import POLICY, Observation, Settings, read_settings
from onedp_ros.learning.imports.inert_pickle import InertPickleError, read_pickle
from onedp_ros.learning.imports.torch_file import StoredTensor, TorchFile, plain
from onedp_ros.policy.networks import ImageEncoder, NetworkConfig, UNet
from onedp_ros.policy.policies import Policy

_UNET = (  # our names -> theirs
    (r"^step\.mlp\.0\.", "diffusion_step_encoder.1."),
    (r"^step\.mlp\.2\.", "diffusion_step_encoder.3."),
    (r"^(down|up)\.(\d+)\.2\.", r"\1_modules.\2.2.conv."),
    (r"^(down|up)\.(\d+)\.", r"\1_modules.\2."),
    (r"^middle\.", "mid_modules."),
    (r"^final\.0\.", "final_conv.0.block."),
    (r"^final\.1\.", "final_conv.1."),
    (r"\.conv1\.", ".blocks.0.block."),
    (r"\.conv2\.", ".blocks.1.block."),
    (r"\.film\.1\.", ".cond_encoder.1."),
    (r"\.shortcut\.", ".residual_conv."),
)
_ENCODER = (
    (r"^stem\.", "backbone.nets."),
    (r"^pool\.conv\.", "pool.nets."),
    (r"^head\.", "nets.3."),
    (r"\.norm([12])\.", r".bn\1."),
    (r"\.shortcut\.", ".downsample."),
)
# The encoder's parts are registered a second time in a sequence; the grids and a parameter without values hold nothing of interest.
_REPEATED = re.compile(
    r"obs_encoder\.obs_nets\.[^.]+\.(nets\.[01]\..+|pool\.(temperature|pos_x|pos_y))|(mask_generator\.)?_dummy_variable"
)
_NORMALIZER = "normalizer.params_dict."


def read_policy(file: Path, contract: Contract, names: Mapping[str, str]) -> ImportedPolicy:
    """Read a ``.ckpt``; see :data:`onedp_ros.learning.imports.base.ReadPolicy`. The EMA weights are taken where there are any."""
    with TorchFile(file) as saved:
        try:
            content = saved.content if isinstance(saved.content, dict) else {}
            states = content.get("state_dicts")
            if not isinstance(states, dict) or not {"ema_model", "model"} & set(states):
                raise PolicyImportError(
                    "it holds neither state_dicts.ema_model nor state_dicts.model; give a .ckpt of diffusion_policy"
                )
            settings = read_settings(plain(content.get("cfg")), contract, names)
            weights = "ema_model" if "ema_model" in states else "model"
            state = _Weights(saved, states[weights])
            policy, notes = state.policy(settings, contract), settings.notes + state.notes(settings, contract)
        except ValueError as error:
            raise PolicyImportError(f"{file}: {error}") from error
    counts = {name: _count(content.get("pickles"), name) for name in ("epoch", "global_step")}
    origin = {
        "class": POLICY,
        "weights": weights,
        **{name: value for name, value in counts.items() if value is not None},
        "observations": {o.key: o.name for o in settings.observations},
    }
    return ImportedPolicy(policy, origin, counts["global_step"], notes)


def _count(pickles: Any, name: str) -> int | None:
    """A number that is stored as a pickle of its own; None: it is not there."""
    data = pickles.get(name) if isinstance(pickles, dict) else None
    try:
        value = read_pickle(data, {}) if isinstance(data, bytes) else None
    except InertPickleError:
        return None
    return value if type(value) is int else None


class _Weights:
    """A policy's state dictionary.

    Args:
        file: it is in.
        tensors: by their names.
    """

    def __init__(self, file: TorchFile, tensors: Any) -> None:
        if not isinstance(tensors, dict) or not all(isinstance(tensor, StoredTensor) for tensor in tensors.values()):
            raise PolicyImportError("its weights are no dictionary of tensors; fetch the file again")
        self.file, self.tensors = file, tensors

    def policy(self, settings: Settings, contract: Contract) -> Policy:
        """The policy with these weights, in evaluation mode. PolicyImportError: they are not those of ``settings``."""
        keys = {o.name: o.key for o in settings.observations}
        for key in (keys[camera] for camera in contract.cameras):
            self._check_camera(key)
        network = self._network(settings, [keys[camera] for camera in contract.cameras])
        network.check_horizon(contract.horizon)
        with torch.device("meta"):  # takes no memory, whatever sizes the settings name
            unet = UNet(contract.action_dim, network.condition_dim(contract), network).state_dict()
            encoder = ImageEncoder(network).state_dict() if contract.cameras else {}
        sources = {f"unet.{name}": (f"model.{_rename(name, _UNET)}", tensor.shape) for name, tensor in unet.items()}
        for camera in contract.cameras:
            prefix = f"obs_encoder.obs_nets.{keys[camera]}."
            sources |= {f"encoders.{camera}.{n}": (prefix + _encoder_name(n), tensor.shape) for n, tensor in encoder.items()}
        self._check_shapes(sources.values())
        columns = _condition_columns(settings.observations, contract, network)
        loaded = {}
        for ours, (theirs, _) in sources.items():
            tensor = self.read(theirs)
            if ours.endswith(".film.1.weight"):
                tensor = tensor[:, columns]
            elif ours.endswith(".head.weight"):
                tensor = tensor.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1)
            loaded[ours] = tensor
        policy = Policy(contract, network, self._normalizer(keys, contract), settings.method)
        policy.load_state_dict(loaded)
        return policy.eval()

    def notes(self, settings: Settings, contract: Contract) -> tuple[str, ...]:
        """In what the values that the policy was trained on differ from those that it will be given or asked for here."""
        keys = {o.name: o.key for o in settings.observations if not o.camera}
        parts = [(keys[feature.name], feature, slice(None)) for feature in contract.state]
        parts += [("action", f, at) for f, at in zip(contract.action, slices(contract.action).values(), strict=True)]
        found = []
        for key, feature, at in parts:
            limits = [f"{_NORMALIZER}{key}.input_stats.{name}" for name in ("min", "max")]
            low, high = (self.read(n)[at].tolist() if n in self.tensors else [] for n in limits)
            if not len(low) == len(high) == feature.dim:  # one value may stand for all, and says nothing
                continue
            if feature.kind == "quaternion" and key != "action" and low[0] < -0.01:
                found.append(
                    f"the quaternions of {key} have x from {low[0]:.2f} in its training data, those measured here x >= 0: the same "
                    f"orientation may have the opposite sign"
                )
            if feature.range is not None:
                least, most = sorted(feature.range)
                if min(low) < least - 0.1 * (most - least) or max(high) > most + 0.1 * (most - least):
                    found.append(
                        f"{key} spans {min(low):.3g} to {max(high):.3g} in its training data, {feature.name} in the task file "
                        f"{least:g} to {most:g}: the gripper's units or signs differ"
                    )
        return tuple(found)

    def read(self, name: str) -> Tensor:
        """A tensor, float32. PolicyImportError: it is missing, or holds NaN or infinity."""
        if name not in self.tensors:
            raise PolicyImportError(f"its weights lack '{name}'; fetch the file again")
        tensor = self.file.tensor(self.tensors[name])
        if not torch.isfinite(tensor).all():
            raise PolicyImportError(f"its weights '{name}' hold NaN or infinity: its training diverged; use an earlier checkpoint")
        return tensor

    def _check_camera(self, key: str) -> None:
        """PolicyImportError: the camera's images, or its keypoints' softmax, are scaled otherwise than here."""
        for name, value in (("scale", 2.0), ("offset", -1.0)):
            if not torch.allclose(found := self.read(f"{_NORMALIZER}{key}.{name}"), torch.tensor(value)):
                raise PolicyImportError(
                    f"its normaliser's {name} of the images of {key} is {shown(found.tolist())}, expected {value:g} (images "
                    f"from 0 to 1 become -1 to 1); train it with get_image_range_normalizer()"
                )
        if not torch.allclose(found := self.read(f"obs_encoder.obs_nets.{key}.pool.temperature"), torch.ones(1)):
            raise PolicyImportError(
                f"its SpatialSoftmax of {key} has the temperature {shown(found.tolist())}, expected 1; train it so"
            )

    def _network(self, settings: Settings, cameras: Sequence[str]) -> NetworkConfig:
        """The networks' sizes; those of the encoders are told by the first camera's weights."""
        sizes = {"encoder_width": "backbone.nets.0.weight", "keypoints": "pool.nets.weight", "features": "nets.3.weight"}
        shapes = {size: self._shape(f"obs_encoder.obs_nets.{key}.{name}") for key in cameras[:1] for size, name in sizes.items()}
        try:
            return NetworkConfig(
                unet_channels=settings.down_dims,
                kernel=settings.kernel_size,
                step_dim=settings.step_dim,
                **{size: shape[0] for size, shape in shapes.items()},
            )
        except ValueError as error:
            raise PolicyImportError(f"its networks cannot be built here: {error}; train it with such sizes") from error

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = self.tensors[name].shape if name in self.tensors else ()
        if not shape:
            raise PolicyImportError(
                f"its image encoder lacks '{name}', so it is not robomimic's VisualCore of ResNet-18, SpatialSoftmax and a linear "
                f"layer, the only one that can be imported; train it with that encoder"
            )
        return shape

    def _check_shapes(self, sources: Any) -> None:
        """PolicyImportError unless the weights are those that the networks have, and no others."""
        expected: dict[str, tuple[int, ...]] = {name: tuple(shape) for name, shape in sources}
        found = {name: tensor.shape for name, tensor in self.tensors.items()}
        others = {n for n in found if n not in expected and not n.startswith(_NORMALIZER) and not _REPEATED.fullmatch(n)}
        if wrong := sorted(others | {name for name in expected if found.get(name) != expected[name]}):
            raise PolicyImportError(
                f"{len(wrong)} of its weights do not fit its settings and the task, first '{shown(wrong[0])[1:-1]}': shape "
                f"{found.get(wrong[0], 'missing')}, expected {expected.get(wrong[0], 'none')}; only a U-Net with robomimic's "
                f"ResNet-18 encoders can be imported"
            )
        if sum(self.tensors[name].bytes for name in expected) > self.file.size:  # tensors may share their storage
            raise PolicyImportError("its weights take more than the file's size: it is damaged; fetch it again")

    def _normalizer(self, keys: Mapping[str, str], contract: Contract) -> Normalizer:
        """Ours, of the state's features and the action. ContractError: an implausible range."""
        parts = [self._affine(keys[feature.name], feature.dim) for feature in contract.state]
        offset, scale = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        action_offset, action_scale = self._affine("action", contract.action_dim)
        fields = {"state_offset": offset, "state_scale": scale, "action_offset": action_offset, "action_scale": action_scale}
        return Normalizer.from_dict({name: [float(v) for v in values] for name, values in fields.items()}, contract)

    def _affine(self, key: str, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Our offset and scale (size,), float64, of one of their entries; one value may stand for all."""
        scale, offset = (self.read(f"{_NORMALIZER}{key}.{name}").double() for name in ("scale", "offset"))
        if scale.shape != offset.shape or tuple(scale.shape) not in ((1,), (size,)) or not torch.all(scale > 0):
            raise PolicyImportError(
                f"its normaliser of {key} has the scale {shown(scale.tolist())}, expected {size} positive numbers"
            )
        return (-offset / scale).expand(size).numpy(), (1 / scale).expand(size).numpy()


def _rename(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _encoder_name(name: str) -> str:
    """Our encoder's name of a weight -> theirs; our blocks 0 to 7 are two in each of their layers 4 to 7."""
    name = re.sub(r"^blocks\.(\d)\.", lambda found: f"backbone.nets.{4 + int(found[1]) // 2}.{int(found[1]) % 2}.", name)
    return _rename(name, _ENCODER)


def _condition_columns(observations: Sequence[Observation], contract: Contract, network: NetworkConfig) -> list[int]:
    """For each column of our FiLM layers, after the step's embedding the observations, the column in theirs."""
    places: dict[str, range] = {}
    width = 0
    for o in observations:
        size = network.features if o.camera else o.shape[0]
        places[("camera " if o.camera else "state ") + o.name] = range(width, width + size)
        width += size
    order = [f"camera {name}" for name in contract.cameras] + [f"state {feature.name}" for feature in contract.state]
    step = [place for name in order for place in places[name]]
    return [
        *range(network.step_dim),
        *(network.step_dim + t * width + place for t in range(contract.n_obs_steps) for place in step),
    ]
