"""Small builtin networks; each takes the shape of one input and the number of classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


def mlp(
    input_shape: Sequence[int],
    classes: int,
    hidden: Sequence[int] = (64, 64),
    activation: str = "relu",
    dropout: float = 0.0,
) -> nn.Module:
    """Return a multilayer perceptron on flattened inputs: (n, …) → (n, classes).

    Args:
        input_shape: Shape of one input.
        classes: Number of classes.
        hidden: Widths of the hidden layers.
        activation: One of `ACTIVATIONS`.
        dropout: Probability of dropout after each hidden layer.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, found {activation!r}")
    layers: list[nn.Module] = [nn.Flatten()]
    width = int(torch.Size(input_shape).numel())
    for size in hidden:
        layers += [nn.Linear(width, size), ACTIVATIONS[activation]()]
        layers += [nn.Dropout(dropout)] if dropout else []
        width = size
    return nn.Sequential(*layers, nn.Linear(width, classes))


def cnn(input_shape: Sequence[int], classes: int, channels: Sequence[int] = (32, 64), hidden: int = 128) -> nn.Module:
    """Return 3 × 3 convolutions with pooling and one hidden layer, without batch norm: (n, c, h, w) → (n, classes).

    Args:
        input_shape: Shape (c, h, w) of one image.
        classes: Number of classes.
        channels: Channels of the convolutions; each halves height and width.
        hidden: Width of the hidden layer.
    """
    depth, height, width = input_shape
    layers: list[nn.Module] = []
    for size in channels:
        layers += [nn.Conv2d(depth, size, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        depth, height, width = size, height // 2, width // 2
    features = [nn.Flatten(), nn.Linear(depth * height * width, hidden), nn.ReLU()]
    return nn.Sequential(*layers, *features, nn.Linear(hidden, classes))


class Residual(nn.Module):
    """A block of two 3 × 3 convolutions with batch norm and a shortcut (He et al. 2016, CIFAR form)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(y)) + self.shortcut(x))


def resnet(input_shape: Sequence[int], classes: int, blocks: Sequence[int] = (1, 1, 1), width: int = 16) -> nn.Module:
    """Return a small residual network with batch norm: (n, c, h, w) → (n, classes).

    Args:
        input_shape: Shape (c, h, w) of one image.
        classes: Number of classes.
        blocks: Number of blocks of each stage.
        width: Channels of the first stage; they double at each stage.
    """
    layers: list[nn.Module] = [nn.Conv2d(input_shape[0], width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for stage, count in enumerate(blocks):
        outputs = width * 2**stage
        for number in range(count):
            layers.append(Residual(inputs, outputs, 2 if stage and not number else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


BUILTIN = {"mlp": mlp, "cnn": cnn, "resnet": resnet}
