"""Residual networks for 32×32 images (He et al. 2016, section 4.2, shortcut option A)."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from diffproof.checks import check_known
from diffproof.classifiers.base import Classifier
from diffproof.errors import ArgumentError
from diffproof.weights import load_into, load_weights

# Blocks in each of the three stages; the depth is 6n + 2.
BLOCKS = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: stride of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self._before = (outputs - inputs) // 2
        self._after = outputs - inputs - self._before

    def forward(self, x: Tensor) -> Tensor:
        """N×inputs×H×W → N×outputs×H/stride×W/stride."""
        # Option A: every stride-th pixel, new channels zero, half of them before and half behind.
        shortcut = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self._before, self._after))
        return relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))) + shortcut)


class CifarResNet(nn.Module):
    """Convolution to 16 channels, three stages of 16, 32 and 64 channels, global mean, linear.

    Args:
        blocks: blocks in each stage.
        num_classes: outputs.
    """

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks)
        self.layer2 = self._stage(16, 32, blocks)
        self.layer3 = self._stage(32, 64, blocks)
        self.linear = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, outputs // inputs)
        return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        """N×3×H×W → N×num_classes logits."""
        features = self.layer3(self.layer2(self.layer1(relu(self.bn1(self.conv1(images))))))
        logits: Tensor = self.linear(features.mean((2, 3)))
        return logits


def build(name: str, num_classes: int) -> Classifier:
    """A CIFAR ResNet with fresh weights, for 3×32×32 images.

    Args:
        name: "resnet20", "resnet32", "resnet44", "resnet56" or "resnet110".
        num_classes: number of classes, ≥ 2.

    Raises:
        ValueError: another name.
    """
    network = CifarResNet(check_known("classifier", name, BLOCKS), num_classes)
    return Classifier(network, num_classes, image_shape=(3, 32, 32), mean=_MEAN, std=_STD)


def load(name: str, path: Path) -> Classifier:
    """A CIFAR ResNet with the weights of akamaster/pytorch_resnet_cifar10 or of a file like those.

    On the first 512 CIFAR-10 test images its ResNet-20 is right 467 times and its ResNet-56 482 times. Images
    are normalised with mean (0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225), as in its training.

    Args:
        name: see `build`.
        path: a state dict, or a training checkpoint that holds one; its keys may begin with the prefix of a
            wrapper, such as "module.".

    Raises:
        ValueError: unknown name, unreadable file, or weights that do not fit.
    """
    loaded = load_weights(path).tensors
    # What a wrapper put before every name: "module.", "model.", "_orig_mod.".
    prefix = next((key for key in loaded if key.endswith("linear.weight")), "").removesuffix("linear.weight")
    tensors = {key.removeprefix(prefix): tensor for key, tensor in loaded.items()}
    head = tensors.get("linear.weight")
    if head is None or head.ndim != 2:
        raise ArgumentError("weights", f"{path} is no CIFAR ResNet: it has no matrix linear.weight")
    classifier = build(name, len(head))
    # Files older than torch 0.4.1 lack batch normalisation's step counters, which only training reads.
    for key, tensor in classifier.network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            tensors.setdefault(key, tensor)
    load_into(classifier.network, tensors, str(path))
    return classifier
