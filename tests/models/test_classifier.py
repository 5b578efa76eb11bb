"""Tests that heads of every kind are found by running the model, and that features, matrix and bias give its logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.models import find_head, run_once, unsteadiness

IN, D, C = 6, 5, 3


class Body(nn.Module):
    """A hidden layer and a head, whose output the function `after` changes."""

    def __init__(self, head: nn.Module, after: Callable[[Tensor], Any] = lambda out: out) -> None:
        super().__init__()
        self.hidden = nn.Linear(IN, D)
        self.head = head
        self.after = after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.head(torch.tanh(self.hidden(x))))


class Cosine(nn.Module):
    """Cosines with the class vectors times a learned scale, as in CosFace and in few-shot learning."""

    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(D, C) if transposed else torch.randn(C, D))
        self.scale = nn.Parameter(torch.tensor(7.0))
        self.transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        if self.transposed:
            return self.scale * F.normalize(x, dim=1) @ F.normalize(self.weight, dim=0)
        return self.scale * F.linear(F.normalize(x), F.normalize(self.weight))


class CosineLinear(nn.Linear):
    """A layer of type Linear that computes cosines."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x), F.normalize(self.weight))


class NormedWeights(nn.Module):
    """A head that normalises the class vectors but not the features."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(C, D))

    def forward(self, x: Tensor) -> Tensor:
        return x @ F.normalize(self.weight, dim=1).T


class LowRank(nn.Module):
    """A linear layer plus a low-rank correction, like an adapter that is not merged."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(D, C)
        self.down, self.up = nn.Linear(D, 2, bias=False), nn.Linear(2, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * self.up(self.down(x))


def inputs(count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, IN, generator=torch.Generator().manual_seed(seed))


def body(head: nn.Module, after: Callable[[Tensor], Any] = lambda out: out) -> Body:
    torch.manual_seed(1)
    return Body(head, after).eval()


@pytest.mark.parametrize(
    ("head", "name", "kind"),
    [
        (nn.Linear(D, C), "head", "linear"),
        (nn.Linear(D, C, bias=False), "head", "linear"),
        (weight_norm(nn.Linear(D, C)), "head", "linear"),
        (nn.Sequential(nn.Dropout(0.5), nn.Linear(D, C), nn.Dropout(0.5)), "head.1", "linear"),
        (Cosine(), "head", "cosine"),
        (Cosine(transposed=True), "head", "cosine"),
        (CosineLinear(D, C, bias=False), "head", "cosine"),
        (NormedWeights(), "head", "affine"),
    ],
)
def test_heads_of_every_kind_are_found(head: nn.Module, name: str, kind: str, checked_head: Callable[..., Any]) -> None:
    detected, rows = checked_head(body(head), inputs(), inputs(9, seed=1))
    assert detected.name == name
    assert detected.parts[0].kind == kind
    assert rows.features.shape == (9, D)
    if kind == "cosine":
        torch.testing.assert_close(rows.features.norm(dim=1), torch.ones(9))


def test_the_search_in_a_model_in_training_changes_no_spectral_norm() -> None:
    torch.manual_seed(0)
    model = Body(spectral_norm(nn.Linear(D, C)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    head = find_head(model, inputs())
    weights, bias = head.parameters(model)
    assert (head.name, head.parts[0].kind, model.head.training) == ("head", "linear", True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    rows = head.tapped(model.eval(), inputs())
    torch.testing.assert_close(F.linear(rows.features, weights, bias), rows.logits)


def test_a_cosines_weights_are_the_unit_class_vectors_times_the_scale() -> None:
    head = Cosine()
    model = body(head)
    weights, bias = find_head(model, inputs()).parameters(model)
    assert bias is None
    torch.testing.assert_close(weights, 7 * F.normalize(head.weight))
    with torch.no_grad():
        head.scale.fill_(3.0)
    torch.testing.assert_close(find_head(model, inputs()).parameters(model)[0], 3 * F.normalize(head.weight))


@pytest.mark.parametrize(
    ("after", "reading", "scale"),
    [
        (lambda out: F.log_softmax(out, dim=1), "log-softmax", 1),
        (lambda out: F.log_softmax(out / 4, dim=1), "log-softmax", 0.25),
        (lambda out: out.softmax(dim=1), "softmax", 1),
        (torch.sigmoid, "sigmoid", 1),
        (lambda out: 30 * torch.tanh(out / 30), "softcapped", 1),
        (lambda out: 50 * torch.tanh(out / 200), "softcapped", 0.25),
        (torch.tanh, "softcapped", 1),
        (lambda out: 2.5 * out, "", 2.5),
        (lambda out: out.mul_(2.5), "", 2.5),
        (lambda out: out.clone(), "", 1),
        (lambda out: out.double(), "", 1),
        (lambda out: out[:, None].squeeze(1), "", 1),
        (lambda out: {"loss": None, "logits": out}, "", 1),
        (lambda out: {"scores": out + 0}, "", 1),
        (lambda out: (out.relu() + out.exp(), out), "", 1),
    ],
)
def test_operations_after_the_head_are_recognised(
    after: Any, reading: str, scale: float, checked_head: Callable[..., Any]
) -> None:
    model = body(nn.Linear(D, C), after)
    head, rows = checked_head(model, inputs(), inputs(9, seed=1))
    assert (head.name, head.reading) == ("head", reading)
    assert head.parts[0].scale == pytest.approx(scale, rel=1e-5)
    result = run_once(model, inputs(9, seed=1))
    if reading in ("log-softmax", "softmax"):
        expected = result if reading == "log-softmax" else result.log()
        torch.testing.assert_close(F.log_softmax(rows.logits, dim=1), expected, rtol=1e-4, atol=1e-4)


def test_modules_after_the_head_are_not_the_head(checked_head: Callable[..., Any]) -> None:
    for after in (nn.LogSoftmax(dim=1), nn.Sigmoid(), nn.Dropout(0.5), nn.Identity(), nn.Flatten()):
        head, _ = checked_head(body(nn.Sequential(nn.Linear(D, C), after)), inputs())
        assert head.name == "head.0"


def test_a_head_with_one_logit_is_found_from_one_sample(checked_head: Callable[..., Any]) -> None:
    head, rows = checked_head(body(nn.Linear(D, 1), lambda out: torch.sigmoid(3 * out).squeeze(1)), inputs(1))
    assert (head.name, head.reading) == ("head", "sigmoid")
    assert head.parts[0].scale == pytest.approx(3, rel=1e-4)
    assert rows.logits.shape == (1, 1)


def test_a_head_with_zero_weights_is_found(checked_head: Callable[..., Any]) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(IN, C), nn.Linear(IN, C)
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

        def forward(self, x: Tensor) -> Tensor:
            return (self.first(x) + self.second(x.flip(1))) / 2

    head, rows = checked_head(Two(), inputs())
    assert head.layers == ("first", "second")
    assert head.why == "the model's output is the mean of the outputs of first and second"
    assert torch.equal(rows.features, torch.cat([inputs(), inputs().flip(1)], dim=1))


def test_the_head_of_a_diverged_model_is_found() -> None:
    model = body(nn.Linear(D, C))
    with torch.no_grad():
        model.hidden.weight[0] = torch.nan
    assert find_head(model, inputs()).name == "head"
    with torch.no_grad():
        model.head.bias[0] = torch.inf
    assert find_head(model, inputs()).name == "head"


def test_the_last_of_several_square_layers_is_the_head(checked_head: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    square = nn.Sequential(
        nn.Linear(IN, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.LogSoftmax(dim=1)
    )
    assert checked_head(square, inputs())[0].name == "4"


@pytest.mark.parametrize(("pooled", "positions"), [(True, "one"), (False, "mean")])
def test_a_convolution_before_or_after_pooling_is_a_head(
    pooled: bool, positions: str, checked_head: Callable[..., Any]
) -> None:
    head = nn.Conv2d(4, C, 1)
    pool = nn.AdaptiveAvgPool2d(1)
    tail = [pool, head] if pooled else [head, pool]
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), *tail, nn.Flatten())
    images = torch.randn(5, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    detected, rows = checked_head(model, images[:2], images)
    assert detected.name == ("3" if pooled else "2")
    assert (detected.parts[0].kind, detected.positions) == ("convolution", positions)
    with torch.no_grad():
        torch.testing.assert_close(rows.features, model[1](model[0](images)).mean(dim=(2, 3)))


def test_a_convolution_over_the_complete_map_is_a_head(checked_head: Callable[..., Any]) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, C, 7), nn.Flatten())
    images = torch.randn(3, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    head, rows = checked_head(model, images[:2], images)
    assert head.name == "2"
    assert rows.features.shape == (3, 4 * 49)


def test_every_position_is_a_row_if_the_model_has_logits_for_each(checked_head: Callable[..., Any]) -> None:
    tokens = torch.randn(2, 7, IN, generator=torch.Generator().manual_seed(0))
    head, rows = checked_head(nn.Sequential(nn.Linear(IN, D), nn.Linear(D, C)), tokens)
    assert (head.name, head.positions) == ("1", "every")
    assert rows.features.shape == (14, D)
    head, rows = checked_head(nn.Sequential(nn.Linear(IN, D), nn.Linear(D, C), nn.LogSoftmax(dim=2)), tokens)
    assert (head.name, head.positions, head.reading) == ("1", "every", "log-softmax")


class Picking(nn.Module):
    """A model with a head at every position; the inputs name the position whose logits it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.score = nn.Linear(IN, D), nn.Linear(D, C, bias=False)

    def forward(self, tokens: Tensor, last: Tensor) -> Tensor:
        return self.score(torch.tanh(self.hidden(tokens)))[torch.arange(len(tokens)), last]


def test_features_are_those_of_the_position_that_the_model_chooses(checked_head: Callable[..., Any]) -> None:
    model = Picking()
    draw = torch.Generator().manual_seed(0)
    batch = {"tokens": torch.randn(6, 4, IN, generator=draw), "last": torch.tensor([0, 3, 1, 1, 2, 3])}
    head, rows = checked_head(model, {name: tensor[:2] for name, tensor in batch.items()}, batch)
    assert (head.name, head.positions) == ("score", "chosen")
    with torch.no_grad():
        hidden = torch.tanh(model.hidden(batch["tokens"]))
    torch.testing.assert_close(rows.features, hidden[torch.arange(6), batch["last"]])


def test_a_layer_and_its_correction_are_two_terms_of_one_sum(checked_head: Callable[..., Any]) -> None:
    model = body(LowRank())
    head, rows = checked_head(model, inputs(), inputs(9, seed=1))
    assert head.layers == ("head.base", "head.up")
    assert rows.features.shape == (9, D + 2)
    assert [part.scale for part in head.parts] == [1, 2]


def test_heads_are_found_inside_wrappers(checked_head: Callable[..., Any]) -> None:
    model = body(nn.Linear(D, C))
    assert checked_head(nn.DataParallel(model), inputs())[0].name == "module.head"
    assert checked_head(torch.compile(model, backend="eager"), inputs())[0].name == "_orig_mod.head"  # pyright: ignore[reportArgumentType]


def test_a_classifier_named_by_the_caller_is_used_and_checked() -> None:
    model = body(nn.Linear(D, C), torch.square)
    advice = r"likeliest head, which gives 3 numbers a sample as the model does: use `classifier='head'`"
    with pytest.raises(DataError, match=advice):
        find_head(model, inputs())
    head = find_head(model, inputs(), "head")
    assert head.settled
    assert head.why == "named by the caller; what the model returns comes from its output in another way"
    scaled = body(nn.Linear(D, C), lambda out: 3 * out)
    assert find_head(scaled, inputs(), "head").parts[0].scale == pytest.approx(3)
    with pytest.raises(UsageError, match=r"`classifier='after'`: no linear layer has that name; .*: hidden, head"):
        find_head(model, inputs(), "after")
    with pytest.raises(UsageError, match=r"`classifier='head\.1'`: ReLU is no linear layer; .*: hidden, head\.0"):
        find_head(body(nn.Sequential(nn.Linear(D, C), nn.ReLU())), inputs(), "head.1")
    tokens = torch.randn(2, 7, IN)
    with pytest.raises(
        DataError, match=r"classifier 0 takes \(2, 7, 6\) for 2 samples, .* one row of features per sample"
    ):
        find_head(nn.Sequential(nn.Linear(IN, C), nn.Softplus(), nn.Flatten()), tokens, "0")


def test_a_head_is_proposed_whose_logits_are_added_to_the_largest_of_all_tokens() -> None:
    class Volo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.aux_head = nn.Linear(IN, C), nn.Linear(IN, C)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x[:, 0]) + 0.5 * self.aux_head(x[:, 1:]).max(dim=1)[0]

    model, tokens = Volo(), torch.randn(2, 7, IN)
    with pytest.raises(DataError, match=r"aux_head \(2, 6, 3\); likeliest head, .*: use `classifier='head'`"):
        find_head(model, tokens)
    assert find_head(model, tokens, "head").settled


def test_a_head_that_runs_twice_is_an_error() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(IN, IN)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.head(x))

    with pytest.raises(DataError, match="classifier head ran 2 times in one forward pass, not once"):
        find_head(Twice(), inputs(), "head")


def test_a_layer_that_is_not_run_is_named_in_the_error() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(IN, C)

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :C] * 2

    with pytest.raises(DataError, match=r"candidates and their outputs: head \(not run\); pick one"):
        find_head(Unused(), inputs())


def test_inputs_by_name_that_the_model_does_not_take_are_an_error() -> None:
    message = r"does not take inputs of shape a \(6,\) of float32, b \(\) of int64 \(TypeError: "
    with pytest.raises(DataError, match=message):
        find_head(body(nn.Linear(D, C)), {"a": inputs(), "b": torch.tensor([1, 2])})
    with pytest.raises(DataError, match=r"different numbers of samples: {'tokens': 2, 'last': 1}"):
        find_head(Picking(), {"tokens": torch.randn(2, 4, IN), "last": torch.tensor([1])})


def test_a_module_of_torchscript_is_refused() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(IN, D), nn.ReLU(), nn.Linear(D, C)))
    with pytest.raises(UsageError, match="TorchScript module, whose layers cannot be observed"):
        find_head(scripted, inputs())


def test_a_model_that_computes_in_float64_by_itself_gets_advice() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(IN, C)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x * torch.tensor(2.0, dtype=torch.float64)[None])

    with pytest.raises(DataError, match=r"in float64 by itself, run all of it so: `dtype='float64'`"):
        find_head(Wide(), inputs())
    assert find_head(Wide().double(), inputs().double()).name == "head"


class Chosen(nn.Module):
    """Two heads; the sign of a sample's first number chooses one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 0, self.first(x), self.second(x))


def test_a_head_that_gives_the_output_for_some_samples_only_is_an_error() -> None:
    model, samples = Chosen().eval(), torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    positive = samples[samples[:, 0] > 0]
    head = find_head(model, positive)
    assert head.layers == ("first",)
    torch.testing.assert_close(head.tapped(model, positive).logits, model(positive))
    with pytest.raises(
        DataError, match="classifier first: the model's output follows from it for some samples, but no"
    ):
        head.tapped(model, samples)


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0)


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (nn.BatchNorm1d(6), None),
        (nn.Dropout(0.5), None),
        (Centred(), "depends on the other samples of its batch"),
        (nn.BatchNorm1d(6, track_running_stats=False), "depends on the other samples of its batch"),
    ],
)
def test_outputs_that_depend_on_the_other_samples_are_named(layer: nn.Module, sentence: str | None) -> None:
    found = unsteadiness(nn.Sequential(layer, nn.Linear(6, 3)), inputs())
    assert found is None if sentence is None else sentence in (found or "")


def test_outputs_that_are_random_in_evaluation_mode_are_named() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(nn.functional.dropout(x, 0.5))

    assert "two runs of the model on the same samples differ" in (unsteadiness(Noisy(6, 3), inputs()) or "")


def test_any_error_of_the_code_of_a_model_is_reported_with_the_model_as_its_source() -> None:
    class Mistyped(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * {}["scale"]

    with pytest.raises(DataError, match=r"does not take inputs of shape \(6,\) of float32 \(KeyError: 'scale'"):
        find_head(Mistyped(6, 3), inputs())
