"""Any ε-, x0- or v-predicting network as a denoiser: all conventions are adapted here, once."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffproof.checks import (
    check_at_least,
    check_instance,
    check_listed,
    check_member,
    check_number,
    check_shape_setting,
    shown,
    unchanged,
)
from diffproof.denoisers.base import Denoiser, Estimate, Sigma, per_row
from diffproof.denoisers.multi_head import MultiHead
from diffproof.denoisers.schedules import Schedule
from diffproof.errors import ArgumentError, failing_network
from diffproof.wording import kind_of


class Prediction(StrEnum):
    """What a network outputs, in the names that diffusers gives them."""

    EPSILON = "epsilon"
    CLEAN = "sample"
    V = "v_prediction"


class _Input(NamedTuple):
    """What a network is asked about.

    `data` is the noisy image in the network's pixels, `scaled` that times `scale`; `sigma` and `scale`
    broadcast against it.
    """

    data: Tensor
    sigma: Tensor
    scale: Tensor
    scaled: Tensor
    timestep: Tensor

    def of_each_class(self) -> _Input:
        """As N×1×C×H×W, to broadcast against the outputs of K classes."""
        data, sigma, scale, scaled = (value[:, None] for value in self[:-1])
        return _Input(data, sigma, scale, scaled, self.timestep)


class NetworkDenoiser(Denoiser):
    """A network (scaled input, timestep, label) → prediction, as a denoiser of [0, 1] pixels.

    Args:
        network: module called as network(x, timestep, label): x is N×C×H×W, timestep N values (int64, or
            floats of a continuous schedule), label N integers or None. It runs in the dtype of its
            parameters, whatever the dtype of the images.
        schedule: the noise schedule it was trained with, in units of `data_range`.
        prediction: what it outputs; with 2C output channels, the last C are the learned log-variance mix
            in [−1, 1] (Nichol & Dhariwal 2021, eq. 15).
        data_range: (low, high), the pixel range of its training data.
        image_shape: (C, H, W) that it takes, None for any.
        num_classes: labels it takes, None if unconditional.
        null_label: the label it was trained with for "unconditional", if any.

    Attributes:
        structure: what its files say of the network besides its tensors, for hashes.

    The network is conditioned on the trained timestep nearest to sigma, while its input is scaled and its
    prediction converted with sigma exactly as asked.
    """

    structure: str = ""

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        *,
        prediction: Prediction | str = Prediction.EPSILON,
        data_range: tuple[float, float] = (-1.0, 1.0),
        image_shape: tuple[int, int, int] | None = None,
        num_classes: int | None = None,
        null_label: int | None = None,
    ) -> None:
        super().__init__()
        self.prediction = check_member("prediction", prediction, Prediction)
        ends = [
            check_number("data_range", end, math.isfinite, "numbers")
            for end in check_listed("data_range", data_range)
        ]
        if len(ends) != 2 or not ends[0] < ends[1]:
            raise ArgumentError("data_range", f"expected (low, high) with low < high, got {data_range}")
        if not hasattr(schedule, "sigma_range"):
            raise ArgumentError(
                "schedule", f"expected one such as diffproof.DiscreteSchedule, got {shown(schedule)}"
            )
        self.network = check_instance("network", network, nn.Module, "a torch module")
        self.one_pass = isinstance(network, MultiHead)
        self.schedule = schedule
        self.data_range = data_range
        self.image_shape = check_shape_setting("image_shape", image_shape)
        self.num_classes = None if num_classes is None else check_at_least("num_classes", num_classes, 1)
        self.null_label = None if null_label is None else check_at_least("null_label", null_label, 0)
        self._scale = data_range[1] - data_range[0]
        self.sigmas = None if schedule.sigmas is None else schedule.sigmas / self._scale
        self.origin = getattr(schedule, "origin", None)
        self.first_timestep = schedule.first_timestep
        self.sigma_min, self.sigma_max = (sigma / self._scale for sigma in schedule.sigma_range)

    def estimate(self, noisy: Tensor, sigma: Sigma, label: Tensor | None) -> Estimate:
        """One network evaluation, converted to a clean estimate in pixels."""
        given = self._network_input(noisy, sigma)
        if label is None and self.null_label is not None:
            label = torch.full((len(noisy),), self.null_label, dtype=torch.int64, device=noisy.device)
        return self._converted(self._output(given.scaled, given.timestep, label), given)

    def estimate_per_class(self, noisy: Tensor, sigma: Sigma, classes: Tensor) -> Tensor:
        """One pass for all classes of a MultiHead, else one batch."""
        if not isinstance(self.network, MultiHead):
            return super().estimate_per_class(noisy, sigma, classes)
        given = self._network_input(noisy, sigma)
        output = self._output(given.scaled, given.timestep, classes.expand(len(noisy), -1))
        return self._converted(output, given.of_each_class()).clean

    def _network_input(self, noisy: Tensor, sigma: Sigma) -> _Input:
        # The factor between pixel ranges: [0, 1] pixels and their sigma both stretch by the range's width.
        data = noisy * self._scale + self.data_range[0]
        sigma_data = (
            torch.as_tensor(sigma, dtype=torch.float64, device=noisy.device).reshape(-1) * self._scale
        )
        timestep = self.schedule.timestep(sigma_data).expand(len(noisy)).contiguous()
        scale = per_row(self.schedule.input_scale(sigma_data), noisy)
        return _Input(data, per_row(sigma_data, noisy), scale, data * scale, timestep)

    def _output(self, scaled: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
        """What the network says, run in its own dtype."""
        parameter = next(self.parameters(), None)
        dtype = scaled.dtype if parameter is None else parameter.dtype
        if timestep.is_floating_point():
            # Half precision cannot tell one timestep from the next.
            timestep = timestep.to(torch.promote_types(dtype, torch.float32))
        # What is left of the input is needed afterwards.
        with unchanged("network", scaled), failing_network("denoiser", self.network, self.address):
            output = self.network(scaled.to(dtype), timestep, label)
        if not isinstance(output, Tensor):
            raise ArgumentError(
                "denoiser",
                f"expected a tensor from the network, got {kind_of(output)}; wrap it in a module that returns"
                " its prediction alone",
            )
        # Less would be repeated over the image.
        if not output.is_floating_point() or output.shape[-2:] != scaled.shape[-2:]:
            size = f"{scaled.shape[-2]}×{scaled.shape[-1]}"
            raise ArgumentError(
                "denoiser", f"expected floats of {size} from the network, got {shown(output)}"
            )
        return output.to(scaled.dtype)

    def _converted(self, output: Tensor, given: _Input) -> Estimate:
        """The clean estimate of an output that is batched as its input is."""
        channels = given.data.shape[-3]
        if output.shape[0] != len(given.data) or output.shape[-3] not in (channels, 2 * channels):
            raise ArgumentError(
                "network",
                f"expected {channels} or {2 * channels} output channels,"
                f" got output shape {tuple(output.shape)}",
            )
        mix = (output[..., channels:, :, :] + 1) / 2 if output.shape[-3] == 2 * channels else None
        output = output[..., :channels, :, :]
        if self.prediction is Prediction.EPSILON:
            clean = given.data - given.sigma * output
        elif self.prediction is Prediction.CLEAN:
            clean = output
        else:
            # v = √ᾱ·ε − √(1−ᾱ)·x0 with √ᾱ the input scale (Salimans & Ho 2022, appendix D).
            clean = given.scale * given.scaled - given.scale * given.sigma * output
        return Estimate((clean - self.data_range[0]) / self._scale, mix)

    def describe(self) -> str:
        """The adapter's conventions with the schedule's."""
        own = type(self.schedule)
        schedule = own.__name__
        if self.sigmas is None:
            # What Python says of an object by itself is its address.
            told = None if own.__repr__ is object.__repr__ else repr(self.schedule)
            schedule = self.origin or told or f"{schedule} {torch.tensor(self.schedule.sigma_range).tolist()}"
        network = f", network {self.structure}" * bool(self.structure)
        return f"{super().describe()}, {self.prediction.value}, data {self.data_range}, {schedule}{network}"

    def start_timestep(self, sigma: float) -> float:
        """As the schedule has it, in the network's units of sigma."""
        self.check_sigma(sigma)
        return self.schedule.start_timestep(sigma * self._scale)

    def learned_variance(self, estimate: Estimate, sigma: float, next_sigma: float) -> Tensor | None:
        """exp(mix·log β + (1 − mix)·log β̃) of the step, in noisy = image + sigma·N(0, I) coordinates.

        In √ᾱ coordinates β = 1 − ᾱ(sigma)/ᾱ(next_sigma) and β̃ = β·(1 − ᾱ(next))/(1 − ᾱ(sigma)); dividing
        by ᾱ(next_sigma) changes coordinates.
        """
        if estimate.log_variance_mix is None:
            return None
        high, low = (sigma * self._scale) ** 2, (next_sigma * self._scale) ** 2
        upper = (1 + low) * (high - low) / (1 + high)
        lower = low * (high - low) / high
        log_upper, log_lower = (
            torch.tensor(value, dtype=torch.float64).log().item() for value in (upper, lower)
        )
        log_variance = estimate.log_variance_mix * (log_upper - log_lower) + log_lower
        return torch.exp(log_variance) / self._scale**2
