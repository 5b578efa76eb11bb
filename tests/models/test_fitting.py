"""Names of checkpoints brought to a model's: wrappers taken off only where the rest then fits, and said."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ckpt_probe.errors import DataError
from ckpt_probe.models import fitting_names, load_weights, wrapper_note


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def note(model: nn.Module, held: dict[str, Tensor]) -> str | None:
    return wrapper_note(held, set(model.state_dict()))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "encoder.", "backbone.", "module.model.", "a.b.c.", "ema."]
)
def test_a_prefix_is_taken_off_and_told(prefix: str) -> None:
    model, state = network(), network(1).state_dict()
    held = under(prefix, state)
    load_weights(model, held, source="x")
    assert torch.equal(model[0].weight, state["0.weight"])
    told = note(model, held)
    assert told is not None
    assert told.startswith("tensor names lose ")
    assert repr(prefix) in told or prefix == "_orig_mod."
    assert note(model, state) is None


def test_what_lies_beside_the_prefix_is_left_out_and_told() -> None:
    model, state = network(), network(1).state_dict()
    held = under("model.", state) | {"loss.weight": torch.ones(2), "step": torch.ones(())}
    load_weights(model, held, source="x")
    assert note(model, held) == (
        "tensor names lose their prefix 'model.' to fit the model; 2 tensors outside it are left out: loss.weight, step"
    )
    # Below the prefix, and where there is none, everything has to be the model's.
    for more in (under("model.", state) | {"model.more": torch.ones(2)}, state | {"more": torch.ones(2)}):
        with pytest.raises(DataError, match="unexpected"):
            load_weights(model, more, source="x")


def test_wrappers_within_names() -> None:
    model = network(1)
    compiled = copy.deepcopy(model)
    compiled[0] = torch.compile(compiled[0])
    assert "0._orig_mod.weight" in compiled.state_dict()
    load_weights(network(), compiled.state_dict(), source="x")
    # A model that is compiled itself has these names, and keeps them.
    load_weights(compiled, compiled.state_dict(), source="x")
    both = under("module.", compiled.state_dict())
    assert fitting_names(both, set(model.state_dict()))["module.0._orig_mod.weight"] == "0.weight"


def test_two_networks_that_fit_are_an_error_that_names_both() -> None:
    model = network()
    held = under("query.", network(1).state_dict()) | under("key.", network(2).state_dict())
    with pytest.raises(DataError, match=r"under several prefixes: key\., query\.; choose one with --state-key key"):
        load_weights(model, held, source="x")


def test_counters_of_batch_norm_and_tied_tensors_may_be_absent() -> None:
    model, state = network(), network(1).state_dict()
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    for held in (old, under("module.", old)):
        load_weights(model, held, source="x")
        assert torch.equal(model[2].weight, state["2.weight"])
    tied = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    tied[1].weight = tied[0].weight
    load_weights(tied, {"0.weight": torch.ones(5, 3)}, source="x")
    assert tied[1].weight.eq(1).all()


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ({"weight": torch.ones(8, 1, dtype=torch.uint8), "weight.absmax": torch.ones(1)}, "'weight' is uint8"),
        (
            {"weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "weight_scale_inv": torch.ones(1)},
            "'weight_scale_inv' belongs to",
        ),
        ({"m.qweight": torch.ones(1, 4, dtype=torch.int32), "m.scales": torch.ones(1, 4)}, "'m.qweight' belongs to"),
    ],
)
def test_quantised_weights_are_told_before_what_does_not_fit(held: dict[str, Tensor], told: str) -> None:
    with pytest.raises(DataError, match=told):
        load_weights(nn.Linear(4, 4, bias=False), held, source="x")


def test_what_compilation_put_before_the_names_is_said() -> None:
    names = ["_orig_mod.0.weight", "_orig_mod.0.bias"]
    assert wrapper_note(names, {"0.weight", "0.bias"}) == "tensor names lose '_orig_mod' to fit the model"
