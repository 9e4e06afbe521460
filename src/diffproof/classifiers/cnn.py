"""A small convolutional network for small images."""

from __future__ import annotations

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Three 3×3 convolutions, with batch normalisation or not, one halving of the resolution, mean, linear.

    Args:
        channels: input channels.
        num_classes: outputs.
        width: channels of the first layer; the others have twice as many.
        batch_norm: normalise over the batch.
    """

    def __init__(self, channels: int, num_classes: int, width: int, *, batch_norm: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *self._layer(channels, width, 1, batch_norm),
            *self._layer(width, 2 * width, 2, batch_norm),
            *self._layer(2 * width, 2 * width, 1, batch_norm),
        )
        self.head = nn.Linear(2 * width, num_classes)

    @staticmethod
    def _layer(inputs: int, outputs: int, stride: int, batch_norm: bool) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=not batch_norm)
        return [convolution, *[nn.BatchNorm2d(outputs)] * batch_norm, nn.ReLU()]

    def forward(self, images: Tensor) -> Tensor:
        """N×C×H×W → N×num_classes logits."""
        features: Tensor = self.features(images)
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits
