"""What a folder of transformers holds: refused where the library would pass it over in silence."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffproof.errors import ArgumentError


def check_folder(folder: Path, name: str) -> None:
    """Raise ValueError for files that are missing, and for weights that are no whole model's in floats.

    Args:
        folder: the model's.
        name: what it is called in messages.
    """
    problem = None
    if (folder / "adapter_config.json").is_file():
        problem = (
            "it holds an adapter (adapter_config.json), as LoRA's; save the whole model with it merged"
            " (peft's merge_and_unload, then save_pretrained)"
        )
    elif not (folder / "config.json").is_file():
        problem = "config.json is missing"
    elif not any((folder / f"{part}_config.json").is_file() for part in ("preprocessor", "processor")):
        problem = (
            "preprocessor_config.json is missing, which says how images are prepared; the model's image"
            " processor writes it by save_pretrained"
        )
    elif integers := _integers(folder):
        problem = f"its weights are quantised, such as {integers[0]}; save it in floats"
    if problem is not None:
        raise ArgumentError("hf", f"cannot load {name}: {problem}")


def _integers(folder: Path) -> list[str]:
    """Tensors of small integers, which quantised weights are; counters have 64 bits."""
    from safetensors import SafetensorError, safe_open

    found = []
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            continue  # whoever reads it says what is wrong
        found += [name for name, kind in kinds.items() if kind[0] in "IU" and kind != "I64"]
    return found


def check_configuration(files: Mapping[str, str], name: str) -> None:
    """Raise ValueError for what transformers passes over in configurations, though another function is meant.

    Args:
        files: see `configuration`.
        name: what it is called in messages.
    """
    for file, text in files.items():
        try:
            settings = json.loads(text)
        except (ValueError, RecursionError):
            continue  # transformers says what is wrong
        settings = settings if isinstance(settings, dict) else {}
        part = settings.get("image_processor")
        for own in (settings.get("auto_map"), part.get("auto_map") if isinstance(part, dict) else None):
            if own:
                code = next(iter(own.values())) if isinstance(own, dict) else own
                raise ArgumentError(
                    "hf",
                    f"cannot load {name}: by its {file} it is made by code of its own ({code}), which never"
                    " runs; import that in a module of yours and give module.path:factory",
                )
        if file != "config.json":
            continue
        if settings.get("quantization_config"):
            raise ArgumentError(
                "hf",
                f"cannot load {name}: its weights are quantised (quantization_config); save it in floats",
            )
        if settings.get("problem_type") == "regression":
            raise ArgumentError(
                "hf", f"{name} predicts numbers, not classes: problem_type in its config.json is regression"
            )
        if settings.get("problem_type") == "multi_label_classification":
            warnings.warn(
                f"hf: {name} was trained for several classes an image; a label is its largest logit alone",
                stacklevel=4,
            )


def check_weights(model: Any, found: Mapping[str, Any], name: str) -> None:
    """Raise ValueError unless the file filled the model with numbers and no part of it was left over.

    Args:
        model: of transformers, loaded.
        found: what it says of the loading.
        name: what it is called in messages.
    """
    unused = sorted(found["unexpected_keys"])
    shapes = {
        key: f"{key} ({list(stored)} in the file, not {list(own)})"
        for key, stored, own in found["mismatched_keys"]
    }
    misfits = sorted([*found["missing_keys"], *shapes])
    if misfits:
        prefixes = (key.removesuffix(misfits[0]) for key in unused if key.endswith(f".{misfits[0]}"))
        prefix = next(prefixes, "")
        named = ", ".join(shapes.get(key, key) for key in misfits[:3])
        hint = f"; names in its file begin with {prefix!r}: save the bare model" * bool(prefix)
        gaps = numbering(model.config.id2label)
        hint += f"; id2label in its config.json {gaps}" * bool(gaps)
        raise ArgumentError(
            "hf", f"{name} has no fitting weights for {named}: it is no trained classifier{hint}"
        )
    inside = [key for key in unused if _is_inside(model, key)]
    if inside:
        raise ArgumentError(
            "hf", f"{name}: its config.json makes no network that takes all weights: {', '.join(inside[:3])}"
        )
    if unused:
        warnings.warn(
            f"hf: {name} holds weights that its classifier does not use: {', '.join(unused[:3])}",
            stacklevel=3,
        )
    wrong = [
        key
        for key, value in model.state_dict().items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if wrong:
        raise ArgumentError("hf", f"{name} holds NaN or infinite weights: {', '.join(wrong[:3])}")


def _is_inside(model: Any, key: str) -> bool:
    """Whether a weight belongs in a module of the model's body, not to a head or branch that it lacks."""
    if key.endswith("mask_token"):  # of its pretraining
        return False
    modules = dict(model.named_modules())
    parents = (key[:cut] for cut in range(len(key) - 1, 0, -1) if key[cut] == ".")
    return next((parent for parent in parents if parent in modules), "") not in (
        "",
        getattr(model, "base_model_prefix", ""),
    )


def numbering(labels: Mapping[int, str]) -> str:
    """How classes are numbered, if not from 0 without a gap; else nothing."""
    numbers = sorted(labels)
    if numbers == list(range(len(numbers))):
        return ""
    return f"numbers {len(numbers)} classes {', '.join(map(str, numbers[:4]))}" + ", …" * (len(numbers) > 4)
