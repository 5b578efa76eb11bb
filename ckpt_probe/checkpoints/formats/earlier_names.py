"""Names that transformers gives to tensors in files, which for some models are those of its earlier versions."""

from typing import Any

from ckpt_probe.checkpoints.contents import Contents
from ckpt_probe.checkpoints.folders import config_beside
from ckpt_probe.errors import UsageError
from ckpt_probe.plugins import load_pretrained, loaded_by_transformers, require_extra


def names_today(contents: Contents) -> dict[str, str]:
    """Name in the model that transformers builds today → name in the checkpoint, of the tensors it takes unchanged.

    Empty where no `config.json` lies beside the checkpoint, transformers is absent, or it does not know the model.
    """
    directory = config_beside(contents.path)
    if directory is None:
        return {}
    try:
        transformers = require_extra("transformers", "transformers")
        config = load_pretrained(transformers.AutoConfig, directory)
        model_class = getattr(transformers, (config.architectures or [""])[0])
    except (UsageError, OSError, ValueError, KeyError, AttributeError):
        return {}
    if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        return {}
    return _told_by_loading(model_class, config, contents)


def _told_by_loading(model_class: Any, config: Any, contents: Contents) -> dict[str, str]:
    """Each tensor is loaded as its own number, repeated without taking memory: the one that arrives says the name."""
    import torch

    names = list(contents.layout)
    numbered = {name: torch.tensor(float(number)).expand(contents.layout[name][1]) for number, name in enumerate(names)}
    loaded, _ = loaded_by_transformers(model_class, config, numbered)
    whole = {name: tensor.aminmax() for name, tensor in loaded.items() if tensor.numel()}
    return {name: names[int(low)] for name, (low, high) in whole.items() if low == high}
