"""Checkpoint files: a kind (`parent` or `quantised`), the architecture, the weights, and a run's state."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from int4core.install import install_command
from tools.finetune.errors import FinetuneError
from tools.finetune.qresnet import QuantResNet
from tools.finetune.resnet import ARCHITECTURES, Architecture, ResNet, load_parent
from tools.finetune.train import save_atomically


def architecture(name: str, classes: int | None) -> Architecture:
    """One of `ARCHITECTURES`, with its own number of classes if given."""
    arch = ARCHITECTURES[name]
    return arch if classes is None else replace(arch, classes=classes)


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        why = "no such file: run the step before this one, or fix the path"
        raise FinetuneError(f"{path}: {why}") from error
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise FinetuneError(f"{path}: is not a checkpoint that torch.save wrote ({error})") from error


def save(path: Path, model: ResNet | QuantResNet, extra: dict[str, Any] | None = None) -> None:
    kind = "parent" if isinstance(model, ResNet) else "quantised"
    state = {"kind": kind, "arch": model.arch.as_dict(), "state": model.state_dict(), "extra": extra or {}}
    save_atomically(state, path)


def load_fp32(path: Path, fallback: Architecture) -> ResNet:
    """The parent in `path`: one of our checkpoints, or a bare state_dict of architecture `fallback`."""
    data = _read(path)
    if isinstance(data, dict) and "kind" in data:
        if data["kind"] != "parent":
            raise FinetuneError(f"{path}: is a {data['kind']} checkpoint, but an FP32 parent is needed")
        arch, weights, _ = _parts(path, data)
        return load_parent(weights, arch, str(path))
    state = data.get("state_dict", data) if isinstance(data, dict) else None
    if not isinstance(state, dict):
        raise FinetuneError(f"{path}: holds no state_dict")
    return load_parent(state, fallback, str(path))


def load_quantised(path: Path) -> tuple[QuantResNet, dict[str, Any]]:
    """The fake-quantised network in `path`, and the state of the run that wrote it."""
    data = _read(path)
    if not (isinstance(data, dict) and data.get("kind") == "quantised"):
        raise FinetuneError(f"{path}: is no quantised checkpoint: `calibrate` and `train` write those")
    arch, weights, extra = _parts(path, data)
    model = QuantResNet(ResNet(arch))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:  # a headline, and a line for each way in which names or shapes differ
        first = str(error).splitlines()[1:2]
        raise FinetuneError(f"{path}: is not whole: {''.join(first).strip() or error}") from error
    return model, extra


def _parts(path: Path, data: dict[str, Any]) -> tuple[Architecture, dict[str, Any], dict[str, Any]]:
    """The architecture, the weights and what else is in one of our checkpoints."""
    try:
        arch, weights, extra = (
            Architecture.from_dict(dict(data["arch"])),
            dict(data["state"]),
            dict(data.get("extra", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FinetuneError(f"{path}: is not whole: {type(error).__name__}: {error}") from error
    return arch, weights, extra


def kind(path: Path) -> str:
    """`parent`, `quantised`, or `state_dict` for a bare file of weights."""
    data = _read(path)
    return str(data["kind"]) if isinstance(data, dict) and "kind" in data else "state_dict"


def load_extra(path: Path) -> dict[str, Any]:
    """What `save` was given beside the model."""
    data = _read(path)
    return dict(data.get("extra", {})) if isinstance(data, dict) else {}


def torchvision_parent(name: str) -> ResNet:
    """torchvision's pretrained weights (IMAGENET1K_V1: the ones trained with the plain recipe)."""
    try:
        from torchvision import models
    except ImportError as error:
        raise FinetuneError(f"its weights need torchvision: {install_command('train')}") from error
    if name == "tiny":
        raise FinetuneError("torchvision has no weights for --arch tiny: take one of the others")
    source = getattr(models, name)(weights="IMAGENET1K_V1")
    return load_parent(source.state_dict(), ARCHITECTURES[name], f"torchvision {name}")
