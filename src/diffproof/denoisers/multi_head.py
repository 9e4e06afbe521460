"""Networks whose one pass gives the prediction of every class (Chen et al. 2023, multi-head diffusion)."""

from __future__ import annotations

from torch import Tensor, nn

from diffproof.checks import check_at_least
from diffproof.errors import ArgumentError


class MultiHead(nn.Module):
    """An unconditional network with a group of output channels for each label, as a conditional one.

    Args:
        network: module called as network(x, timestep, None), N×C×H×W → N×(heads·C')×H×W; the first C' output
            channels belong to label 0, the next ones to label 1, and so on.
        heads: how many labels it has, a null label included.

    Raises:
        ValueError: heads is no integer ≥ 1.
    """

    def __init__(self, network: nn.Module, heads: int) -> None:
        super().__init__()
        self.network = network
        self.heads = check_at_least("heads", heads, 1)

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        """The predictions of N labels, N×C'×H×W; or, of N×K labels, N×K×C'×H×W from the same pass.

        Raises:
            ValueError: the network's output channels do not divide among the heads.
        """
        output: Tensor = self.network(x, timestep, None)
        if output.shape[1] % self.heads:
            raise ArgumentError(
                "network",
                f"expected output channels that divide among {self.heads} heads,"
                f" got output shape {tuple(output.shape)}",
            )
        each = output.reshape(len(x), self.heads, -1, *output.shape[2:])
        index = label.reshape(len(x), -1, 1, 1, 1).expand(-1, -1, *each.shape[2:])
        return each.gather(1, index).reshape(*label.shape, *each.shape[2:])
