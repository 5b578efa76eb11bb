"""Tests of aligning B with A by weights or activations: symmetries are traced, and permuted copies are restored."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ckpt_probe.alignment import matching
from ckpt_probe.alignment.matching import (
    Alignment,
    _Sums,
    match_activations,
    match_weights,
    output_change,
    permuted,
    read_spec,
)
from ckpt_probe.alignment.symmetry import Segment, Symmetry, trace_symmetry
from ckpt_probe.errors import DataError
from ckpt_probe.models import build_model
from ckpt_probe.paths.shapes import linear


def align(
    a: dict[str, Tensor], b: dict[str, Tensor], symmetry: Symmetry, model: nn.Module, inputs: Tensor, **search: int
) -> Alignment:
    return Alignment(a, b, symmetry, match_weights(a, b, symmetry, **search), model, inputs)


class AllLayers(nn.Module):
    """Grouped and depthwise convolutions, every norm, residual sums, concatenation, flatten, functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.group_norm = nn.GroupNorm(1, 16)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.side = nn.Conv2d(8, 6, 1)
        self.prelu = nn.PReLU(22)
        self.wide = nn.Linear(22 * 4, 20)
        self.layer_norm = nn.LayerNorm(20)
        self.twice = nn.Linear(20, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = self.group_norm(self.depthwise(x)).tanh()
        z = torch.cat([y, self.side(x + self.grouped(x))], 1)
        z = self.prelu(F.max_pool2d(z, 2))
        h = self.layer_norm(self.wide(torch.flatten(z, 1)))
        h = h + self.twice(F.gelu(h))
        return self.head(self.twice(h) + h)


def randomised(model: nn.Module, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
        state[name] = noise.abs() + 0.5 if name.endswith("running_var") else 0.3 * noise
        if not tensor.is_floating_point():
            state[name] = tensor.clone()
    return state


class Shared(nn.Module):
    """A layer with two names, a weight with two, normalisation of tokens, and a gate of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.twice = nn.Linear(8, 8)
        self.again = self.twice
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.twice.weight
        self.tokens, self.root = nn.BatchNorm1d(5), nn.RMSNorm(8)
        self.gate, self.last = nn.Linear(8, 1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(torch.tanh(self.first(x)))
        x = self.root(torch.tanh(self.tied(torch.tanh(self.again(torch.tanh(self.twice(x)))))))
        return self.last(torch.cat([self.gate(x) * x, x], dim=-1)).mean(dim=1)


class Instances(nn.Module):
    """A convolution with instance normalisation and a gate of one channel before the channels that it multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
        self.gate, self.last = nn.Conv2d(8, 1, 1), nn.Conv2d(16, 5, 1)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.head(self.last(torch.cat([torch.sigmoid(self.gate(x)) * x, x], dim=1)).mean(dim=(2, 3)))


class Decoder(nn.Module):
    """Transposed convolutions, one of them depthwise with two outputs for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up = nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.norm, self.depthwise = nn.BatchNorm2d(5), nn.ConvTranspose2d(5, 10, 3, groups=5)
        self.wider, self.head = nn.Upsample(scale_factor=2), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.up(torch.relu(self.first(x)))))
        return self.head(torch.relu(self.depthwise(self.wider(x))).mean(dim=(2, 3)))


MODELS = {
    "mlp": (lambda: build_model("mlp", {"hidden": [24, 12], "input_shape": [1, 8, 8], "classes": 10}), (4, 1, 8, 8)),
    "cnn": (
        lambda: build_model("cnn", {"channels": [6, 8], "hidden": 12, "input_shape": [1, 8, 8], "classes": 10}),
        (4, 1, 8, 8),
    ),
    "resnet": (
        lambda: build_model("resnet", {"blocks": [2, 1], "width": 6, "input_shape": [3, 8, 8], "classes": 10}),
        (4, 3, 8, 8),
    ),
    "everything": (AllLayers, (4, 3, 4, 4)),
    "instances": (Instances, (4, 3, 6, 6)),
    "decoder": (Decoder, (4, 3, 6, 6)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_permuted_copy_has_the_same_outputs_and_is_restored(name: str) -> None:
    build, shape = MODELS[name]
    model = build().eval()
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    symmetry = trace_symmetry(model, inputs)
    assert symmetry.sizes
    a = randomised(model, 1)
    generator = torch.Generator().manual_seed(2)
    shuffled = {group: torch.randperm(size, generator=generator) for group, size in symmetry.sizes.items()}
    b = permuted(a, symmetry, shuffled)
    distance_before = sum(float((a[n] - b[n]).abs().sum()) for n in a)
    assert distance_before > 1
    assert output_change(model, a, b, inputs) < 1e-5
    alignment = align(a, b, symmetry, model, inputs)
    assert alignment.before > 0
    assert alignment.after == 0
    before = {n: tensor.clone() for n, tensor in model.state_dict().items()}
    align(a, model.state_dict(), symmetry, model, inputs, restarts=1)
    assert all(torch.equal(before[n], tensor) for n, tensor in model.state_dict().items())
    assert all(torch.equal(alignment.state[n], a[n]) for n in a)
    middle = linear(a, alignment.state, 0.5)
    assert output_change(model, a, middle, inputs) < 1e-6


def test_the_nearest_of_several_starts_is_returned_of_which_the_first_is_the_present_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a = {"w": torch.arange(12.0).reshape(4, 3)}
    symmetry = Symmetry({0: 4}, {("w", 0): (Segment(0, 4, 1),)})
    orders = [torch.tensor(order) for order in ([3, 2, 1, 0], [0, 1, 3, 2], [1, 0, 3, 2])]
    starts: list[bool] = []

    def matched(*_: object, shuffled: bool) -> dict[int, Tensor]:
        starts.append(shuffled)
        return {0: orders[len(starts) - 1]}

    monkeypatch.setattr(matching, "_matched", matched)
    assert torch.equal(match_weights(a, a, symmetry)[0], orders[1])
    assert starts == [False, True, True]


@pytest.mark.parametrize("name", MODELS)
def test_a_permuted_copy_is_restored_by_its_activations(name: str) -> None:
    build, shape = MODELS[name]
    model = build().eval()
    inputs = torch.randn(64, *shape[1:], generator=torch.Generator().manual_seed(0))
    symmetry = trace_symmetry(model, inputs)
    ordered = {part.group for layout in symmetry.activations.values() for part in layout.segments}
    assert ordered >= set(symmetry.sizes)
    a = randomised(model, 1)
    generator = torch.Generator().manual_seed(2)
    shuffled = {group: torch.randperm(size, generator=generator) for group, size in symmetry.sizes.items()}
    b = permuted(a, symmetry, shuffled)
    before = {n: tensor.clone() for n, tensor in model.state_dict().items()}
    permutations = match_activations(a, b, symmetry, model, inputs.split(20))
    assert all(torch.equal(shuffled[group][order], torch.arange(len(order))) for group, order in permutations.items())
    assert Alignment(a, b, symmetry, permutations, model, inputs).after == 0
    assert all(torch.equal(before[n], tensor) for n, tensor in model.state_dict().items())


def test_activations_are_matched_by_their_correlation() -> None:
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(5 * 4, 3)).eval()
    a, b = randomised(model, 1), randomised(model, 2)
    # A constant channel correlates with no other; it is assigned to the remaining one.
    b["0.weight"][3] = 0
    inputs = torch.randn(30, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    symmetry = trace_symmetry(model, inputs)
    [group] = symmetry.sizes
    order_found = match_activations(a, b, symmetry, model, inputs.split(7))[group]
    rows = []
    for state in (a, b):
        activations = F.conv2d(inputs, state["0.weight"], state["0.bias"]).double()
        rows.append(activations.movedim(1, 0).flatten(1).numpy())
    correlations = np.zeros((5, 5))
    for i, j in itertools.product(range(5), (0, 1, 2, 4)):
        correlations[i, j] = np.corrcoef(rows[0][i], rows[1][j])[0, 1]
    best = max(itertools.permutations(range(5)), key=lambda order: sum(correlations[i, j] for i, j in enumerate(order)))
    assert order_found.tolist() == list(best)
    b["0.weight"][0] = torch.inf
    with pytest.raises(DataError, match="activations at _0 are NaN or infinite"):
        match_activations(a, b, symmetry, model, [inputs])


def groups_of(model: nn.Module, shape: tuple[int, ...]) -> list[tuple[int, set[str]]]:
    symmetry = trace_symmetry(model, torch.randn(shape))
    names = set(model.state_dict())
    return sorted(
        (size, {f"{name}:{axis}" for name, axis in symmetry.of_group(group) if name in names})
        for group, size in symmetry.sizes.items()
    )


def test_the_groups_of_a_multilayer_perceptron_are_its_hidden_layers() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    assert groups_of(model, (2, 4)) == [
        (5, {"3.weight:0", "3.bias:0", "5.weight:1"}),
        (7, {"1.weight:0", "1.bias:0", "3.weight:1"}),
    ]


def test_a_residual_sum_makes_one_group_and_grouped_layers_and_outputs_are_in_none() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.c(x + self.b(x).relu())

    assert groups_of(Block(), (2, 4)) == [
        (6, {"a.weight:0", "a.bias:0", "b.weight:0", "b.weight:1", "b.bias:0", "c.weight:1"})
    ]
    grouped = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(16, 2))
    assert groups_of(grouped, (1, 3, 2, 2)) == []
    normed = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 2))
    assert groups_of(normed, (1, 3, 2, 2)) == []


class Tokens(nn.Module):
    """A network whose channels are the last axis until a mean removes an axis."""

    def __init__(self, **mean: Any) -> None:
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(9, 4), nn.Linear(4, 6), nn.Linear(6, 3)
        self.mean = mean

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.hidden(self.embedding(tokens)).relu().mean(**self.mean))


@pytest.mark.parametrize("mean", [{"dim": 1}, {"dim": 1, "keepdim": True}, {"dim": -2}], ids=str)
def test_a_mean_over_tokens_leaves_the_channels_in_their_group(mean: dict) -> None:
    symmetry = trace_symmetry(Tokens(**mean), torch.arange(10).reshape(2, 5) % 9)
    groups = {symmetry.sizes[group]: set(symmetry.of_group(group)) for group in symmetry.sizes}
    assert groups == {
        4: {("embedding.weight", 1), ("hidden.weight", 1)},
        6: {("hidden.weight", 0), ("hidden.bias", 0), ("head.weight", 1)},
    }


def test_a_mean_over_positions_leaves_the_channels_in_their_group_and_one_over_channels_is_unknown() -> None:
    class Signal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filters, self.head = nn.Conv1d(2, 6, 3), nn.Linear(6, 3)

        def forward(self, signal: Tensor) -> Tensor:
            return self.head(self.filters(signal).mean(-1))

    assert groups_of(Signal(), (2, 2, 8)) == [(6, {"filters.weight:0", "filters.bias:0", "head.weight:1"})]

    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.hidden(x)
            return x - x.mean(-1, keepdim=True)

    with pytest.raises(DataError, match="unknown operation, function mean"):
        trace_symmetry(Centred(), torch.randn(2, 4))


def test_a_change_of_shape_that_splits_channels_is_named_with_both_shapes() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).reshape(-1, 2, 3))

    with pytest.raises(DataError, match=r"a change of shape from \(2, 6\) to \(2, 2, 3\) \(at reshape"):
        trace_symmetry(Split(), torch.randn(2, 4))


def test_a_sum_of_channels_on_different_axes_is_named() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Conv1d(6, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) + self.second(x)

    with pytest.raises(DataError, match=r"a sum of tensors whose channels lie on other axes \(at add"):
        trace_symmetry(Crossed(), torch.randn(2, 6, 6))


def test_an_unknown_operation_is_named() -> None:
    class Flipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.attention = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(self.first(x).flip(1))

    with pytest.raises(DataError, match=r"unknown operation, function flip .*`align_spec=`"):
        trace_symmetry(Flipped(), torch.randn(2, 4))
    with pytest.raises(DataError, match="module 1, a Softmax"):
        trace_symmetry(nn.Sequential(nn.Linear(4, 4), nn.Softmax(1)), torch.randn(2, 4))

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(DataError, match="cannot be traced"):
        trace_symmetry(Branching(), torch.randn(2, 4))


def test_groups_from_a_file_are_checked_against_the_outputs(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    a, inputs = randomised(model, 1), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    good = {"hidden": [["0.weight", 0], ["0.bias", 0], ["2.weight", 1]]}
    spec = tmp_path / "groups.json"
    spec.write_text(json.dumps(good))
    symmetry = read_spec(spec, a)
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    b = permuted(a, symmetry, {0: order})
    assert align(a, b, symmetry, model, inputs).after == 0
    spec.write_text(json.dumps({"hidden": good["hidden"][:2]}))
    with pytest.raises(DataError, match="no symmetries of this model"):
        align(a, b, read_spec(spec, a), model, inputs)
    for text, message in (
        ("{", "not a file of permutation groups"),
        ('{"g": [["9.weight", 0]]}', "no tensor '9.weight' with an axis 0"),
        ('{"g": [["0.weight", 2]]}', "with an axis 2"),
        ('{"g": [["0.weight", 0], ["0.weight", 1]]}', "has 4 entries in a group of 6, or is listed twice"),
    ):
        spec.write_text(text)
        with pytest.raises(DataError, match=message):
            read_spec(spec, a)


def test_arguments_of_the_search_are_used_and_the_error_is_the_change_of_the_outputs() -> None:
    build, shape = MODELS["mlp"]
    model, inputs = build().eval(), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    a, b, symmetry = randomised(model, 1), randomised(model, 2), trace_symmetry(model, inputs)
    alignment = align(a, b, symmetry, model, inputs, restarts=2)
    assert alignment.error == output_change(model, b, alignment.state, inputs)
    assert 0 <= alignment.error < 1e-4
    assert alignment.after < alignment.before == pytest.approx(distance(a, b))
    assert alignment.after == pytest.approx(distance(a, alignment.state))


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[n].double() - b[n].double()).square().sum()) for n in a) ** 0.5


def test_no_swap_of_two_channels_makes_the_distance_smaller() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 5)).eval()
    inputs = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    a, b, symmetry = randomised(model, 1), randomised(model, 2), trace_symmetry(model, inputs)
    [group] = symmetry.sizes
    order = match_weights(a, b, symmetry)[group]
    best = distance(a, permuted(b, symmetry, {group: order}))
    for i, j in itertools.combinations(range(7), 2):
        swapped = order.clone()
        swapped[[i, j]] = order[[j, i]]
        assert distance(a, permuted(b, symmetry, {group: swapped})) >= best


def test_correlations_of_activations_far_from_zero_are_accurate() -> None:
    random = torch.Generator().manual_seed(0)
    first, second = (1e4 + torch.randn(3, 500, generator=random, dtype=torch.float64) for _ in range(2))
    sums = _Sums(3)
    for part in torch.arange(500).split(64):
        sums.update(first[:, part], second[:, part])
    expected = np.corrcoef(first.numpy(), second.numpy())[:3, 3:]
    np.testing.assert_allclose(sums.correlation("x").numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("by_activations", [False, True])
def test_all_names_of_a_shared_tensor_are_permuted_alike(by_activations: bool) -> None:
    model = Shared().eval()
    inputs = torch.randn(40, 5, 6, generator=torch.Generator().manual_seed(0))
    symmetry = trace_symmetry(model, inputs)
    assert {name for name, _ in symmetry.axes if name in {"twice.weight", "again.weight", "tied.weight"}} == {
        "twice.weight",
        "again.weight",
        "tied.weight",
    }
    model.load_state_dict(randomised(model, 1))
    a = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    b = permuted(a, symmetry, {group: torch.arange(n).flip(0) for group, n in symmetry.sizes.items()})
    assert torch.equal(b["twice.weight"], b["tied.weight"])
    assert not torch.equal(a["first.weight"], b["first.weight"])
    assert output_change(model, a, b, inputs) < 1e-5
    if by_activations:
        assert Alignment(a, b, symmetry, match_activations(a, b, symmetry, model, [inputs]), model, inputs).after == 0
    else:
        assert align(a, b, symmetry, model, inputs).error < 1e-5
