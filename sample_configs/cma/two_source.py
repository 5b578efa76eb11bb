"""Model of the CMA study: an image encoder and a caption encoder with a common output space (Radford et al. 2021)."""

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INITIAL_SCALE = 1 / 0.07
LARGEST_SCALE = 100.0
PADDING = 0
"""Token after the end of a caption; words are numbered from 1."""


def two_source(
    input_shape: Sequence[int],
    classes: int,
    captions: Sequence[Sequence[str]],
    channels: Sequence[int] = (16, 32),
    features: int = 64,
    text_width: int = 64,
) -> nn.Module:
    """Return a model whose logits are the scaled cosines of images with the captions of each class.

    Args:
        input_shape: Shape of one image.
        classes: Number of classes.
        captions: Descriptions of each class, in the order of the classes.
        channels: Channels of the convolutions; [] for one hidden layer on flattened inputs of any shape.
        features: Width of the common space.
        text_width: Width of word embeddings and of the hidden layer of the caption encoder.

    Raises:
        ValueError: If the captions or the shape do not fit.
    """
    _require_captions(captions, classes)
    image = _image_encoder(input_shape, channels, features)
    return ImagesAndCaptions(image, CaptionEncoder(captions, text_width, features))


class ImagesAndCaptions(nn.Module):
    """A `TwoSource` whose last linear layer, `classifier`, has the outputs of the caption encoder as its weights."""

    def __init__(self, image: nn.Module, text: "CaptionEncoder") -> None:
        super().__init__()
        self.image = image
        self.classifier = ZeroShotClassifier(text)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.encode_images(images))

    def encode_images(self, images: Tensor) -> Tensor:
        """Return unit rows (n, features) for images (n, …)."""
        return F.normalize(self.image(images), dim=1)

    def encode_captions(self, classes: Tensor, which: Tensor | None = None) -> Tensor:
        """Return unit rows (n, features) of one caption of each class.

        Args:
            classes: Classes, shape (n,).
            which: Index of the caption within its class, shape (n,). If None, training mode draws captions from torch's
                global generator of the CPU, and evaluation mode returns the anchors.

        Raises:
            IndexError: If a class has no such caption.
        """
        text = self.classifier.text
        if which is None and not self.training:
            return self.anchors()[classes]
        return text(classes, text.draw(classes) if which is None else which)

    def anchors(self) -> Tensor:
        """Return the normalised mean of the captions of each class, shape (classes, features)."""
        return self.classifier.text.anchors()

    def scale(self) -> Tensor:
        """Return the exponential of a learned logarithm, at most 100, as a scalar."""
        return self.classifier.scale()


class ZeroShotClassifier(nn.Linear):
    """A layer from unit rows (n, features) to logits (n, classes): scaled cosines with the anchor of each class.

    It is a linear layer, so that it is found as the model's classifier. Its weights are computed from the captions at
    each access, so that gradients reach the caption encoder.
    """

    def __init__(self, text: "CaptionEncoder") -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = text.features, len(text.tokens)
        self.register_parameter("bias", None)
        self.text = text
        self.log_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the scaled anchors, shape (classes, features)."""
        return self.scale() * self.text.anchors()

    def scale(self) -> Tensor:
        """Return the exponential of a learned logarithm, at most 100, as a scalar."""
        return self.log_scale.clamp(max=math.log(LARGEST_SCALE)).exp()


class CaptionEncoder(nn.Module):
    """A network from captions to unit rows: the mean of a caption's word embeddings, then one hidden layer.

    The buffer `tokens`, shape (classes, captions, words), int64, is padded for short captions and for missing ones.
    """

    tokens: Tensor

    def __init__(self, captions: Sequence[Sequence[str]], width: int, features: int) -> None:
        super().__init__()
        tokens = tokenise(captions)
        self.features = features
        self.register_buffer("tokens", tokens)
        self.words = nn.EmbeddingBag(int(tokens.max()) + 1, width, mode="mean", padding_idx=PADDING)
        self.hidden = nn.Linear(width, width)
        self.projection = nn.Linear(width, features)

    def forward(self, classes: Tensor, which: Tensor) -> Tensor:
        """Return unit rows (n, features) of the captions `which` (n,) of the classes (n,).

        Raises:
            IndexError: If a class has no such caption.
        """
        wrong = (which < 0) | (which >= self.counts()[classes])
        if wrong.any():
            first = int(wrong.nonzero()[0])
            raise IndexError(f"class {int(classes[first])} has no caption {int(which[first])}")
        return self._encoded(self.tokens[classes, which])

    def anchors(self) -> Tensor:
        """Return the normalised mean of the captions of each class, shape (classes, features)."""
        encoded = self._encoded(self.tokens[self._present()])
        sums = encoded.new_zeros(len(self.tokens), self.features).index_add(0, self.owners(), encoded)
        return F.normalize(sums, dim=1)

    def owners(self) -> Tensor:
        """Return the class of each caption, in the order in which `anchors` encodes them."""
        return self._present().nonzero()[:, 0]

    def counts(self) -> Tensor:
        """Return the number of captions of each class, shape (classes,), int64."""
        return self._present().sum(dim=1)

    def draw(self, classes: Tensor) -> Tensor:
        """Return a random caption index for each of the classes (n,), from torch's global generator of the CPU."""
        drawn = torch.randint(1 << 31, (len(classes),)).to(self.tokens.device)
        return drawn % self.counts()[classes]

    def _present(self) -> Tensor:
        return (self.tokens != PADDING).any(dim=2)

    def _encoded(self, tokens: Tensor) -> Tensor:
        hidden = torch.relu(self.hidden(self.words(tokens)))
        return F.normalize(self.projection(hidden), dim=1)


def tokenise(captions: Sequence[Sequence[str]]) -> Tensor:
    """Return captions as numbers of their lower-case words, shape (classes, captions, words), int64, padded with 0.

    The vocabulary is the sorted set of all words of all captions, numbered from 1.
    """
    words = [[_words(caption) for caption in group] for group in captions]
    vocabulary = sorted({word for group in words for caption in group for word in caption})
    number = {word: index for index, word in enumerate(vocabulary, start=1)}
    most = max(len(group) for group in words)
    longest = max(len(caption) for group in words for caption in group)
    tokens = torch.full((len(words), most, longest), PADDING)
    for row, group in enumerate(words):
        for column, caption in enumerate(group):
            tokens[row, column, : len(caption)] = torch.tensor([number[word] for word in caption])
    return tokens


def _words(caption: str) -> list[str]:
    return re.findall(r"\w+(?:[-'’]\w+)*", caption.lower())


def _image_encoder(input_shape: Sequence[int], channels: Sequence[int], features: int) -> nn.Module:
    if not channels:
        width = math.prod(input_shape)
        return nn.Sequential(nn.Flatten(), nn.Linear(width, 2 * features), nn.ReLU(), nn.Linear(2 * features, features))
    if len(input_shape) != 3 or min(input_shape[1:]) < 2 ** len(channels):
        shape = tuple(input_shape)
        raise ValueError(f"channels: {len(channels)} convolutions with pooling need images larger than {shape}; try []")
    depth, height, width = input_shape
    layers: list[nn.Module] = []
    for size in channels:
        layers += [nn.Conv2d(depth, size, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        depth, height, width = size, height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(depth * height * width, features))


def _require_captions(captions: Sequence[Sequence[str]], classes: int) -> None:
    if isinstance(captions, str) or not isinstance(captions, Sequence) or len(captions) != classes:
        count = len(captions) if isinstance(captions, list | tuple) else type(captions).__name__
        raise ValueError(f"captions: expected one list of descriptions for each of {classes} classes, found {count}")
    for number, group in enumerate(captions):
        if isinstance(group, str) or not isinstance(group, Sequence) or not group:
            raise ValueError(f"captions of class {number}: expected a list of descriptions, found {group!r}")
        for caption in group:
            if not isinstance(caption, str) or not _words(caption):
                raise ValueError(f"captions of class {number}: {caption!r} contains no words")
