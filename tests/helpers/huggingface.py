"""Small random models of transformers, as their folders."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.classifiers import randomised


def tiny_model(kind: str, channels: int = 3, size: int = 32) -> tuple[Any, Any]:
    """A small random transformers model and its image processor of another size rule each."""
    tf = pytest.importorskip("transformers", reason="transformers is not installed")
    labels = {i: f"class {i}" for i in range(10)}
    vit = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "image_size": size, "patch_size": 8, "num_channels": channels, "id2label": labels,
    }  # fmt: skip
    conv = {"num_channels": channels, "hidden_sizes": [16, 16], "depths": [1, 1], "id2label": labels}
    pil = {name: processor(tf, name) for name in ("vit", "beit", "convnext", "deit")}
    square, shorter = {"height": size, "width": size}, {"shortest_edge": size}
    grey = {} if channels == 3 else {"image_mean": [0.4], "image_std": [0.3]}
    table: dict[str, Callable[[], tuple[Any, Any]]] = {
        "vit": lambda: (tf.ViTConfig(**vit), pil["vit"](size=square, **grey)),
        "beit": lambda: (
            tf.BeitConfig(**vit),
            pil["beit"](size={"height": 40, "width": 40}, do_center_crop=True, crop_size=square, resample=3),
        ),
        "deit": lambda: (
            tf.DeiTConfig(**vit),
            pil["deit"](size={"height": 37, "width": 37}, do_center_crop=True, crop_size=square),
        ),
        "shorter": lambda: (
            tf.ViTConfig(**vit),
            pil["deit"](size=shorter, crop_size=square, resample=2, image_mean=[0.4, 0.5, 0.6]),
        ),
        "raw": lambda: (
            tf.ViTConfig(**vit),
            pil["vit"](size=square, do_normalize=False, rescale_factor=1 / 127.5, resample=3),
        ),
        "swin": lambda: (
            tf.SwinConfig(
                image_size=size, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4,
                id2label=labels,
            ),
            pil["vit"](size=square),
        ),
        "convnext": lambda: (
            tf.ConvNextConfig(**conv | {"num_stages": 2}),
            pil["convnext"](size={"shortest_edge": 30}, crop_pct=0.875),
        ),
        "convnext384": lambda: (
            tf.ConvNextConfig(**conv | {"num_stages": 2}),
            pil["convnext"](size={"shortest_edge": 384}, crop_pct=0.875),
        ),
        "resnet": lambda: (
            tf.ResNetConfig(**conv, embedding_size=16),
            pil["convnext"](size=shorter, crop_pct=0.9, image_mean=[0.1, 0.2, 0.3]),
        ),
    }  # fmt: skip
    config, prepare = table[kind]()
    torch.manual_seed(0)
    architecture = type(config).__name__.replace("Config", "ForImageClassification")
    model = getattr(tf, architecture)(config)
    return randomised(model), prepare


def processor(tf: Any, name: str) -> Any:
    """The Pillow processor class, whose name says so since it is no longer the default."""
    classes = {"vit": "ViT", "beit": "Beit", "convnext": "ConvNext", "deit": "DeiT"}
    module = importlib.import_module(f"transformers.models.{name}.image_processing_pil_{name}")
    return getattr(module, f"{classes[name]}ImageProcessorPil")


def save_model(folder: Path, kind: str, **options: Any) -> tuple[Any, Any]:
    model, prepare = tiny_model(kind, **options)
    model.save_pretrained(folder)
    prepare.save_pretrained(folder)
    return model, prepare
