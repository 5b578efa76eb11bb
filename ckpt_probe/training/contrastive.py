"""The loss that draws two encoders' features of one thing together and those of different things apart."""

from torch import Tensor
from torch.nn import functional as F

from ckpt_probe.errors import DataError


def contrastive_loss(image_features: Tensor, text_features: Tensor, labels: Tensor, scale: Tensor | float) -> Tensor:
    """Symmetric cross-entropy of scale · cosines, in nats, where rows of one label share the target evenly; a scalar.

    With P(i) the rows of label y_i and s_ij = scale · u_i · v_j: the mean over i and both directions of
    −(1/|P(i)|) Σ_{k in P(i)} log softmax_j(s_ij)_k (Yang et al. 2022, UniCL). Where all labels differ it is CLIP's loss
    (Radford et al. 2021).

    image_features, text_features: unit rows u, v (n, features), row i of both of class labels[i]; labels: (n,) int64.
    Raises DataError for other shapes.
    """
    if image_features.shape != text_features.shape or image_features.shape[:1] != labels.shape:
        shapes = ", ".join(str(tuple(given.shape)) for given in (image_features, text_features, labels))
        raise DataError(f"contrastive loss: expected (n, features) twice and labels (n,), found {shapes}")
    logits = scale * image_features @ text_features.T
    same = (labels[:, None] == labels).to(logits.dtype)
    targets = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
