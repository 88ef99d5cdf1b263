"""Under ``torch.func.vmap`` an op gives for each slice what it gives for that slice alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_same_bytes, make_key, randn
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

import fastscore
from fastscore import ops, random
from fastscore.losses.dsm import dsm_tables

pytestmark = pytest.mark.filterwarnings("error:There is a performance drop")

SLICES, SHAPE = 3, (5, 7)
NOISE, LOSS = dsm_tables("test", torch.tensor([2.0, 1.0, 0.5]).double(), "sigma2", "score")
STEP = torch.tensor([[1.0, 0.2, 0.3, 0.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2, 1, 1, 0])


def stacked(device: torch.device, seed: int) -> Tensor:
    return randn(SLICES, *SHAPE, seed=seed).to(device)


def keys(device: torch.device) -> Tensor:
    return torch.stack([make_key(seed, 4, device) for seed in range(SLICES)])


def in_place(x: Tensor, score: Tensor, key: Tensor) -> Tensor:
    return ops.langevin_step_(x.clone(), score, STEP.to(x.device), key)


def functional(x: Tensor, score: Tensor, key: Tensor) -> Tensor:
    return ops.langevin_step(x, score, STEP.to(x.device), key, known=score, mask=x > 0)


TEN = torch.tensor([[1.0, 0.2, 0.3, 0.1, 1.0, 1.0, 0.4, 1.0, 0.5, 0.2]], dtype=torch.float64)
PAIR = torch.tensor([1.5, -0.5], dtype=torch.float64)


def guided(x: Tensor, score: Tensor, key: Tensor) -> Tensor:
    terms = {"second": x, "weights": PAIR.to(x.device)}
    return ops.langevin_step(x, score, TEN[:, :6].contiguous().to(x.device), key, **terms)


def multistep(x: Tensor, score: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    state, history = x.clone(), x.sin()
    options = {"clip": (-1.0, 1.0), "second": x, "weights": PAIR.to(x.device)}
    return ops.multistep_step_(state, history, score, TEN.to(x.device), key, **options), history


def drawn(x: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    return ops.perturb(x, NOISE.to(x.device), key)


def residual(x: Tensor, key: Tensor) -> Tensor:
    return ops.dsm_residual(x, LOSS.to(x.device), LABELS.to(x.device), key, reduction="mean")


def residual_gradient(x: Tensor, key: Tensor) -> Tensor:
    return grad(residual)(x, key)


def terms(score: Tensor, jvp: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    return ops.sliced_terms(score, jvp.unsqueeze(0), key, distribution="gaussian")


def terms_gradient(score: Tensor, jvp: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    return grad(lambda s, j: sum(t.sum() for t in terms(s, j, key)), (0, 1))(score, jvp)


def numbers(key: Tensor) -> tuple[Tensor, ...]:
    fills = (random.normal, random.uniform, random.rademacher)
    return *(fill(key, SHAPE) for fill in fills), ops.projections(key, SHAPE, 2)


# The function, and how many stacked tensors it takes before its key.
CASES: list[tuple[Callable[..., Any], int]] = [
    (in_place, 2),
    (functional, 2),
    (guided, 2),
    (multistep, 2),
    (drawn, 1),
    (residual, 1),
    (residual_gradient, 1),
    (terms, 2),
    (terms_gradient, 2),
    (numbers, 0),
]


@pytest.mark.parametrize("shared", ["nothing", "key", "last tensor"])
@pytest.mark.parametrize(("function", "tensors"), CASES, ids=[case[0].__name__ for case in CASES])
def test_slices_are_what_they_are_alone(
    function: Callable[..., Any], tensors: int, shared: str, device: torch.device
) -> None:
    args = [stacked(device, seed) for seed in range(1, tensors + 1)] + [keys(device)]
    dims: list[int | None] = [0] * len(args)
    position = {"nothing": None, "key": tensors, "last tensor": tensors - 1}[shared]
    if position is not None:
        if position < 0 or dims.count(0) == 1:
            pytest.skip("nothing else to map")
        args[position], dims[position] = args[position][0], None
    if tensors and dims[0] == 0:
        args[0], dims[0] = args[0].movedim(0, -1), -1
    mapped = vmap(function, in_dims=tuple(dims))(*args)

    def alone(i: int) -> Any:
        pairs = zip(args, dims, strict=True)
        return function(*(x if dim is None else x.select(dim, i) for x, dim in pairs))

    for i in range(SLICES):
        want = alone(i)
        got = [m[i] for m in mapped] if isinstance(mapped, tuple) else [mapped[i]]
        for g, w in zip(got, want if isinstance(want, tuple) else (want,), strict=True):
            assert_same_bytes(g, w)


def step_(x: Tensor, score: Tensor) -> Tensor:
    return ops.langevin_step_(x, score, STEP, make_key(0))


CPU = torch.device("cpu")


def test_a_mapped_tensor_changes_in_place() -> None:
    x, score = stacked(CPU, 1), stacked(CPU, 2)
    want = torch.stack([step_(each.clone(), s) for each, s in zip(x, score, strict=True)])
    version = x._version
    got = vmap(step_)(x, score)
    assert_same_bytes(x, want)
    assert_same_bytes(got, want)
    assert x._version > version


def test_autograd_sees_the_change() -> None:
    x, weight = stacked(CPU, 1), torch.ones(SLICES, *SHAPE, requires_grad=True)
    product = (weight * x).sum()  # keeps x for its gradient
    vmap(step_)(x, stacked(CPU, 2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("name", ["x", "score"])
def test_gradients_are_refused_in_place(name: str) -> None:
    x, score = stacked(CPU, 1), stacked(CPU, 2)
    (x if name == "x" else score).requires_grad_()
    before = x.detach().clone()
    with pytest.raises(ValueError, match=f"langevin_step_: {name} must be a tensor that needs no"):
        vmap(step_)(x, score)
    assert_same_bytes(x.detach(), before)
    with torch.no_grad():
        vmap(step_)(x, score)


def test_every_tensor_that_an_op_changes_must_be_mapped() -> None:
    x, score, table = stacked(CPU, 1), stacked(CPU, 2), TEN
    shared = randn(*SHAPE)

    def step(x: Tensor, history: Tensor) -> Tensor:
        return ops.multistep_step_(x, history, score[0], table, make_key(0))

    with pytest.raises(ValueError, match="multistep_step_: history must be mapped by vmap"):
        vmap(step, in_dims=(0, None))(x, shared)
    history = stacked(CPU, 3)
    versions = x._version, history._version
    vmap(step)(x, history)
    assert x._version > versions[0]
    assert history._version > versions[1]


def test_a_tensor_that_every_slice_would_change_is_refused() -> None:
    x, score = randn(*SHAPE), stacked(CPU, 1)
    before = x.clone()
    with pytest.raises(ValueError, match="langevin_step_: x must be mapped by vmap"):
        vmap(lambda s: step_(x, s))(score)
    expected = "langevin_step_: x must be a tensor whose slices have memory of their own"
    with pytest.raises(ValueError, match=expected):
        vmap(step_)(x.expand(SLICES, *SHAPE), score)
    assert_same_bytes(x, before)


def test_no_slices(device: torch.device) -> None:
    empty = torch.empty(0, *SHAPE, device=device)
    key = make_key(1, 2, device)
    noisy, labels = vmap(drawn, in_dims=(0, None))(empty, key)
    assert (noisy.shape, labels.shape) == ((0, *SHAPE), (0, SHAPE[0]))
    assert labels.dtype == torch.int64
    assert vmap(in_place, in_dims=(0, 0, None))(empty, empty, key).shape == (0, *SHAPE)


def test_nested_and_compiled() -> None:
    x, score = randn(2, SLICES, *SHAPE, seed=1), randn(2, SLICES, *SHAPE, seed=2)
    want = torch.stack(
        [vmap(functional, (0, 0, None))(*each, make_key(3)) for each in zip(x, score, strict=True)]
    )
    nested = vmap(vmap(functional, (0, 0, None)), (0, 0, None))
    assert_same_bytes(nested(x, score, make_key(3)), want)
    compiled = torch.compile(nested, fullgraph=True, backend="aot_eager")
    assert_same_bytes(compiled(x, score, make_key(3)), want)


def test_a_batch_of_gradients_of_a_reduced_loss() -> None:
    output = randn(*SHAPE).requires_grad_()
    upstream = torch.tensor([1.0, 0.5])
    loss = residual(output, make_key(1))
    (got,) = torch.autograd.grad(loss, output, upstream, is_grads_batched=True)
    for i, each in enumerate(upstream):
        (want,) = torch.autograd.grad(residual(output, make_key(1)), output, each)
        assert_same_bytes(got[i], want)


@pytest.mark.parametrize("loss", ["dsm", "ssm", "auto", "exact"])
def test_an_ensemble_trains_in_one_call(loss: str) -> None:
    """Losses and gradients of stacked networks, as ``torch.func`` documents ensembles."""
    sigmas = fastscore.geometric_sigmas(1.0, 0.1, 4)
    hidden = (8, 8) if loss in ("dsm", "ssm") else (8, 8, 8)  # which has no closed form
    networks = [fastscore.nn.ScoreMLP(2, hidden=hidden) for _ in range(SLICES)]
    parameters, buffers = stack_module_state(networks)
    skeleton = copy.deepcopy(networks[0])
    loss_fn = {
        "dsm": fastscore.DSMLoss(sigmas),
        "ssm": fastscore.SSMLoss(sigmas, method="forward"),
        "auto": fastscore.SSMLoss(sigmas, projections=2),
        "exact": fastscore.ScoreMatchingLoss(sigmas),
    }[loss]
    x, keys_ = randn(16, 2), keys(CPU)

    def of_member(parameters: Any, buffers: Any, key: Tensor) -> Tensor:
        def model(x: Tensor, sigma: Tensor) -> Tensor:
            return functional_call(skeleton, (parameters, buffers), (x, sigma))

        return loss_fn(model, x, key=key)

    losses = vmap(of_member)(parameters, buffers, keys_)
    gradients = vmap(grad(of_member))(parameters, buffers, keys_)
    for i, network in enumerate(networks):
        want = loss_fn(network, x, key=keys_[i])
        torch.testing.assert_close(losses[i], want)
        for name, each in zip(
            dict(network.named_parameters()),
            torch.autograd.grad(want, list(network.parameters())),
            strict=True,
        ):
            torch.testing.assert_close(gradients[name][i], each, rtol=1e-4, atol=1e-5)
