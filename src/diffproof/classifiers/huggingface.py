"""Image classifiers of transformers, with the preprocessing that their image processor states."""

from __future__ import annotations

import json
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffproof.classifiers.base import Classifier
from diffproof.classifiers.huggingface_files import (
    check_configuration,
    check_folder,
    check_weights,
    numbering,
)
from diffproof.classifiers.preprocessing import Interpolation, Resize
from diffproof.errors import ArgumentError, failing_network
from diffproof.files import read_text
from diffproof.formats import check_fetched
from diffproof.hub import snapshot
from diffproof.optional import import_optional, one_line
from diffproof.weights import no_larger_than, stored_bytes
from diffproof.wording import counted

# Pillow's codes.
_INTERPOLATIONS = {2: Interpolation.BILINEAR, 3: Interpolation.BICUBIC}
_FILES = ("*.json", "*.safetensors")
_CONFIGURATION = ("config.json", "preprocessor_config.json", "processor_config.json")
# Pillow rounds to 8 bits after each of its two passes; what is off by more is prepared in another way.
_LEVELS = 2.5
# Pixels of a side; what is larger would only fill the memory.
_LONGEST = 4096
# Keys of a configuration that say nothing of the function from images to logits.
_APART = (
    *("architectures", "dtype", "torch_dtype", "id2label", "label2id", "problem_type", "return_dict"),
    *("transformers_version", "_name_or_path"),
)


class Logits(nn.Module):
    """A transformers model as a function from pixel values N×C×H×W to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """N×C×H×W → N×num_classes."""
        with failing_network("classifier", self.model):
            logits: Tensor = self.model(pixel_values=pixel_values).logits
        return logits


def load(name: str) -> Classifier:
    """An image classifier of transformers (ViT, BEiT, DeiT, Swin, ConvNeXt, ResNet, …).

    Its image processor's size, crop, interpolation, rescaling and normalisation are done inside the
    classifier, differentiably, and compared with the processor on one image. No code of a repository runs.

    Args:
        name: a folder of `save_pretrained`, model and image processor; or a Hub id ("owner/name"), the
            newest of it or, where the Hub is out of reach, what its cache holds.

    Raises:
        ValueError: transformers is missing, no such folder or Hub id, a model without a trained
            classification head, weights that do not fit or are quantised or not finite, adapters or code
            beside it, or images prepared in a way that is not supported.
    """
    transformers = import_optional("transformers", "hf")
    folder = _folder(name)
    check_folder(folder, name)
    check_configuration(_texts(folder), name)
    found: dict[str, Any]
    with _quiet(transformers):
        try:
            with no_larger_than(stored_bytes(folder)):
                model, found = transformers.AutoModelForImageClassification.from_pretrained(
                    folder,
                    local_files_only=True,
                    trust_remote_code=False,
                    dtype=torch.float32,
                    output_loading_info=True,
                    # They are named below.
                    ignore_mismatched_sizes=True,
                )
            processor = transformers.AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, backend="pil"
            )
        except MemoryError:
            raise
        except Exception as error:  # a damaged or foreign file ends in almost any exception
            check_fetched("hf", folder)
            raise ArgumentError("hf", f"cannot load {name}: {one_line(error)}") from None
    check_weights(model, found, name)
    return _classifier(model, processor, name)


def configuration(name: str) -> dict[str, str]:
    """The files, by name, that make a model without its weights: its configuration and its processor's.

    Args:
        name: see `load`.

    Raises:
        ValueError: no such folder or Hub id, or a file that is no text.
    """
    return _texts(_folder(name))


def _texts(folder: Path) -> dict[str, str]:
    return {file: read_text("hf", folder / file) for file in _CONFIGURATION if (folder / file).is_file()}


def build(files: Mapping[str, str], name: str) -> Classifier:
    """The classifier of such files, without weights; no code of a repository runs.

    Args:
        files: see `configuration`.
        name: what it is called in messages.

    Raises:
        ValueError: see `load`.
    """
    transformers = import_optional("transformers", "hf")
    check_configuration(files, name)
    plain = {"local_files_only": True, "trust_remote_code": False}
    with tempfile.TemporaryDirectory() as folder, _quiet(transformers), torch.random.fork_rng(devices=[]):
        for file in _CONFIGURATION:
            if file in files:
                (Path(folder) / file).write_text(files[file], encoding="utf-8")
        try:
            config = transformers.AutoConfig.from_pretrained(folder, **plain)
            auto = transformers.AutoModelForImageClassification
            model = auto.from_config(config, trust_remote_code=False).float().eval()
            processor = transformers.AutoImageProcessor.from_pretrained(folder, **plain, backend="pil")
        except (MemoryError, ArgumentError):
            raise
        except Exception as error:  # a damaged or foreign configuration ends in almost any exception
            raise ArgumentError("hf", f"cannot build {name}: {one_line(error)}") from None
    return _classifier(model, processor, name)


def _classifier(model: Any, processor: Any, name: str) -> Classifier:
    """A transformers model as a classifier."""
    labels = {int(index): str(name) for index, name in model.config.id2label.items()}
    gaps = numbering(labels)
    if gaps:
        warnings.warn(
            f"hf: id2label of {name} {gaps}, not from 0: classes are the network's outputs in their order,"
            " without names",
            stacklevel=4,
        )
    # Without it, parts of a model cannot read each other's outputs.
    model.config.return_dict = True
    channels = getattr(getattr(model.config, "vision_config", model.config), "num_channels", 3)
    try:
        prepared = preprocessing(processor, channels)
        classifier = Classifier(
            Logits(model),
            len(labels),
            class_names=None if gaps else _names(labels, model.config.label2id, name),
            **prepared,
        )
    except ArgumentError as error:
        raise ArgumentError("hf", f"{name}: {error.problem if error.argument == 'hf' else error}") from None
    except (KeyError, TypeError, ValueError) as error:  # a configuration without a number where one belongs
        raise ArgumentError("hf", f"cannot read the image processor of {name}: {one_line(error)}") from None
    stated = {key: value for key, value in model.config.to_diff_dict().items() if key not in _APART}
    classifier.structure = json.dumps(stated, sort_keys=True, default=str)
    check_agreement(classifier, processor, name)
    return classifier


def _names(labels: dict[int, str], label2id: Any, name: str) -> list[str] | None:
    """The class names; None for those that transformers makes up, or where label2id says otherwise."""
    names = [labels[index] for index in range(len(labels))]
    if names == [f"LABEL_{index}" for index in range(len(labels))]:
        return None
    back = label2id if isinstance(label2id, Mapping) else {}
    for index, label in enumerate(names):
        # ImageNet has two cranes.
        if names.count(label) == 1 and str(back.get(label, index)) != str(index):
            warnings.warn(
                f"hf: by config.json of {name} {label!r} is {index} in id2label, {back[label]} in label2id:"
                " classes are the network's outputs in their order, without names",
                stacklevel=5,
            )
            return None
    return names


def preprocessing(processor: Any, channels: int) -> dict[str, Any]:
    """`mean`, `std` and `resize` of a Classifier that do what an image processor does.

    Args:
        processor: an image processor of transformers.
        channels: channels of the model's images.

    Raises:
        ValueError: a size or interpolation that Resize does not have.
    """
    settings = processor.to_dict()
    # The processor works on 8-bit levels: x·255·factor, then normalised.
    factor = float(settings["rescale_factor"]) if settings.get("do_rescale") else 1.0
    if not 0 < factor < math.inf:
        raise ArgumentError("hf", f"expected a rescale_factor > 0, got {factor}")
    scale = 255.0 * factor
    mean, std = [0.0] * channels, [1.0] * channels
    if settings.get("do_normalize"):
        mean, std = (_per_channel(name, settings[name], channels) for name in ("image_mean", "image_std"))
    resize = _resize(settings) if settings.get("do_resize") else None
    if resize is None and settings.get("do_center_crop"):
        raise ArgumentError("hf", "a centre crop without resizing is not supported")
    return {
        "mean": [value / scale for value in mean],
        "std": [value / scale for value in std],
        "resize": resize,
    }


def _per_channel(name: str, value: Any, channels: int) -> list[float]:
    values = [value] * channels if isinstance(value, int | float) else list(value)
    if len(values) != channels:
        raise ArgumentError("hf", f"expected {counted(channels, 'value')} of {name}, got {len(values)}")
    return [float(part) for part in values]


def _resize(settings: dict[str, Any]) -> Resize:
    resample = settings.get("resample", 2)
    interpolation = next((name for code, name in _INTERPOLATIONS.items() if code == resample), None)
    if interpolation is None:
        raise ArgumentError("hf", f"expected bilinear (2) or bicubic (3), got Pillow's filter {resample!r}")
    wanted = {key: value for key, value in dict(settings["size"]).items() if value is not None}
    if not all(isinstance(value, int) and 1 <= value <= _LONGEST for value in wanted.values()):
        raise ArgumentError("hf", f"expected a size of 1 to {_LONGEST} pixels, got {wanted}")
    crop = None
    if settings.get("do_center_crop"):
        crop = settings["crop_size"]["height"], settings["crop_size"]["width"]
    if set(wanted) == {"height", "width"}:
        return Resize((wanted["height"], wanted["width"]), crop=crop, interpolation=interpolation)
    if set(wanted) != {"shortest_edge"}:
        raise ArgumentError("hf", f"expected a size by height and width or by shortest_edge, got {wanted}")
    edge = wanted["shortest_edge"]
    if settings.get("crop_pct") is None:
        return Resize(edge, crop=crop, interpolation=interpolation)
    # ConvNeXt's rule: below 384 the centre of a larger image, from 384 on the whole image, squeezed.
    if edge >= 384:
        return Resize((edge, edge), crop=crop, interpolation=interpolation)
    return Resize(int(edge / settings["crop_pct"]), crop=(edge, edge), interpolation=interpolation)


def check_agreement(classifier: Classifier, processor: Any, name: str) -> None:
    """Compare the classifier's preprocessing with the processor's on one 8-bit image that is not square.

    Raises:
        ValueError: they differ by more than the rounding of 8-bit images.
    """
    channels = classifier.channels or 3
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(56.0), indexing="ij")
    waves = [torch.sin(rows / (3.0 + c)) * torch.cos(columns / (4.0 + c)) for c in range(channels)]
    levels = (127.5 + 60.0 * torch.stack(waves)).round().to(torch.uint8)
    try:
        theirs = processor(images=[levels.numpy()], input_data_format="channels_first", return_tensors="pt")
        expected = theirs["pixel_values"].float()
    except Exception as error:  # whatever the processor asks for that is not there
        raise ArgumentError("hf", f"the image processor of {name} does not run: {one_line(error)}") from None
    ours = classifier.network_input(levels[None].float() / 255)
    same = ours.shape == expected.shape
    if not same or bool(((ours - expected).abs() * classifier.std > _LEVELS / 255).any()):
        raise ArgumentError(
            "hf",
            f"{type(processor).__name__} prepares images in a way that is not supported; build the"
            " classifier in a module of your own and give module.path:factory",
        )


def _folder(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        return path
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ArgumentError(
            "hf", f"expected a folder of save_pretrained or a Hub id (owner/name), got {name!r}"
        )
    return snapshot(name, _FILES)


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the library's progress bar and reports: what matters of them becomes errors here."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
