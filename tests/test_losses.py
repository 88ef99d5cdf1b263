"""The denoising score matching loss: closed forms, the reference, cost, bad input."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same_bytes, make_key, randn
from memory import peak_bytes
from torch import Tensor, nn

import fastscore
from fastscore import DSMLoss, dsm_loss
from fastscore.losses.dsm import likelihood_weighting
from fastscore.random import Stream, normal

SIGMAS = torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=torch.float64)

Loss = Callable[..., Tensor]


def expand(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.reshape(-1, *[1] * (x.dim() - 1))


def gaussian_score(x: Tensor, sigma: Tensor) -> Tensor:
    """Of N(0, 1) data under noise sigma."""
    return -x / (1 + expand(sigma, x) ** 2)


def by_function(model: Any, x: Tensor, sigmas: Any = SIGMAS, **options: Any) -> Tensor:
    return dsm_loss(model, x, sigmas, **options)


def by_module(model: Any, x: Tensor, sigmas: Any = SIGMAS, **options: Any) -> Tensor:
    call = ("levels", "seed", "generator", "key", "sample_offset")
    ours = {name: options.pop(name) for name in call if name in options}
    loss = DSMLoss(sigmas, **options)
    return loss.to(x.device)(model, x, **ours) if isinstance(x, Tensor) else loss(model, x, **ours)


both = pytest.mark.parametrize("loss", [by_function, by_module])


# ---- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_closed_form_of_the_exact_score(device: torch.device, level: int, scale: float) -> None:
    """1/2 d s0^2/(s0^2 + sigma^2) for data from N(0, s0^2 I)."""
    x = scale * fastscore.random.normal(fastscore.random.key(0, device=device), (100_000, 3))
    sigma = float(SIGMAS[level])

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return -x / (scale**2 + expand(sigma, x) ** 2)

    labels = torch.full((100_000,), level, device=device)
    values = dsm_loss(score, x, SIGMAS, levels=labels, reduction="none", seed=1)
    expected = 1.5 * scale**2 / (scale**2 + sigma**2)
    error = float(values.double().mean()) - expected
    assert abs(error) < 5 * float(values.double().std()) / math.sqrt(100_000)


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigma2": torch.square,
    "none": torch.ones_like,
    "likelihood": likelihood_weighting,
}


def expected_losses(
    model: Any, x: Tensor, labels: Tensor, key: Tensor, weighting: Any, prediction: str, offset: int
) -> Tensor:
    """1/2 lambda |s(x~) + z/sigma|^2 in float64, with the noise written down."""
    sigmas = SIGMAS.to(x.device)
    z = normal(key, x.shape, stream=Stream.PERTURB, sample_offset=offset).double()
    sigma = sigmas[labels]
    noisy = x.double() + expand(sigma, x) * z
    output = model(noisy, sigma)
    score = output if prediction == "score" else -output / expand(sigma, x)
    weight = WEIGHTS.get(weighting, weighting)(sigmas)[labels]
    return weight / 2 * (score + z / expand(sigma, x)).square().flatten(1).sum(dim=1)


@both
@pytest.mark.parametrize("prediction", ["score", "eps"])
@pytest.mark.parametrize("weighting", ["sigma2", "none", "likelihood", torch.sqrt])
def test_value_and_gradient_against_the_formula(
    device: torch.device, loss: Loss, weighting: Any, prediction: str
) -> None:
    torch.manual_seed(0)
    x = randn(7, 3, 5, dtype=torch.float64).to(device)
    layer = nn.Linear(5, 5, dtype=torch.float64, device=device)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return layer(x) / expand(sigma, x)

    labels = torch.tensor([0, 1, 2, 3, 3, 2, 0], device=device)
    options: dict[str, Any] = {"weighting": weighting, "prediction": prediction}
    got = loss(model, x, levels=labels, seed=5, reduction="none", sample_offset=2, **options)
    key = make_key(5, 0, device)
    want = expected_losses(model, x, labels, key, weighting, prediction, 2)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    mine = torch.autograd.grad(got.sum(), layer.weight)[0]
    torch.testing.assert_close(mine, torch.autograd.grad(want.sum(), layer.weight)[0])


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_give_a_float32_loss(
    device: torch.device, loss: Loss, dtype: torch.dtype
) -> None:
    x = randn(7, 33).to(device)
    exact = loss(gaussian_score, x.double(), seed=2)
    got = loss(gaussian_score, x.to(dtype), seed=2)
    assert got.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(got, exact.float(), rtol=tolerance, atol=0)


@both
def test_reductions(device: torch.device, loss: Loss) -> None:
    x = randn(7, 3, 2, 2).to(device)
    each = loss(gaussian_score, x, seed=0, reduction="none")
    assert each.shape == (7,)
    torch.testing.assert_close(loss(gaussian_score, x, seed=0, reduction="sum"), each.sum())
    torch.testing.assert_close(loss(gaussian_score, x, seed=0, reduction="mean"), each.mean())
    assert_same_bytes(loss(gaussian_score, x, seed=0), loss(gaussian_score, x, seed=0))
    assert loss(gaussian_score, x[:0], reduction="none").shape == (0,)


def test_the_module_and_the_function_agree_to_the_last_bit(device: torch.device) -> None:
    x = randn(7, 33).to(device)
    for options in ({}, {"weighting": "likelihood"}, {"prediction": "eps"}, {"reduction": "none"}):
        a = by_function(gaussian_score, x, seed=4, **options)
        assert_same_bytes(by_module(gaussian_score, x, seed=4, **options), a)


def test_the_likelihood_weighting_integrates_the_bound() -> None:
    """The loss of a wrong Gaussian model, less that of the right one, is half an integral.

    For data N(0, 1) and the score of N(0, 4), 1/2 integral E|s - s'|^2 d(sigma^2) with
    E|s - s'|^2 = (1/(1 + u) - 1/(4 + u))^2 (1 + u), u = sigma^2.
    """

    def difference(u: Tensor) -> Tensor:
        return (1 / (1 + u) - 1 / (4 + u)).square() * (1 + u) / 2

    fine = torch.linspace(0.01**2, 10.0**2, 2_000_001, dtype=torch.float64)
    integral = torch.trapezoid(difference(fine), fine)
    geometric = fastscore.geometric_sigmas(10.0, 0.01, 60, dtype=torch.float64)
    uneven = torch.cat([geometric[:20], geometric[20::2]])
    for sigmas in (geometric, uneven):
        mean = (likelihood_weighting(sigmas) * difference(sigmas.square())).mean()
        torch.testing.assert_close(mean, integral, rtol=0.02, atol=0)
    ratio = likelihood_weighting(geometric) / geometric.square()
    inner = torch.full_like(ratio[1:-1], 2 * math.log(1000.0) * 60 / 59)
    torch.testing.assert_close(ratio[1:-1], inner)


# ---- noise, labels -----------------------------------------------------------------------------


@both
def test_seeds(loss: Loss) -> None:
    x = randn(7, 3)
    assert not torch.equal(loss(gaussian_score, x, seed=1), loss(gaussian_score, x, seed=2))
    torch.manual_seed(3)
    a, b = loss(gaussian_score, x), loss(gaussian_score, x)
    assert not torch.equal(a, b)
    torch.manual_seed(3)
    assert_same_bytes(loss(gaussian_score, x), a)
    generator = torch.Generator().manual_seed(3)
    c = loss(gaussian_score, x, generator=generator)
    assert_same_bytes(loss(gaussian_score, x, generator=generator.manual_seed(3)), c)
    key = make_key(1, 4)
    assert not torch.equal(loss(gaussian_score, x, key=key), loss(gaussian_score, x, seed=1))
    assert_same_bytes(loss(gaussian_score, x, key=make_key(1)), loss(gaussian_score, x, seed=1))
    assert key.tolist() == [1, 4]


@both
def test_shards_meet_the_noise_and_labels_of_the_whole(device: torch.device, loss: Loss) -> None:
    x = randn(9, 3, 5).to(device)
    whole = loss(gaussian_score, x, seed=1, reduction="none")
    for cut in (1, 4):
        parts = [
            loss(gaussian_score, x[:cut], seed=1, reduction="none"),
            loss(gaussian_score, x[cut:], seed=1, reduction="none", sample_offset=cut),
        ]
        assert_same_bytes(torch.cat(parts), whole)


@both
def test_what_the_model_is_told(device: torch.device, loss: Loss) -> None:
    x = torch.zeros(4000, 2, device=device)
    seen: dict[str, tuple[Tensor, ...]] = {}
    for conditioning in ("sigma", "index", "log_sigma", "none"):

        def spy(x: Tensor, *condition: Tensor, name: str = conditioning) -> Tensor:
            seen[name] = condition
            seen["x"] = (x,)
            return x

        loss(spy, x, seed=0, conditioning=conditioning)
    labels = seen["index"][0]
    assert labels.dtype == torch.int64
    counts = torch.bincount(labels.cpu(), minlength=4)
    assert int((counts - 1000).abs().max()) < 5 * math.sqrt(4000 * 0.25 * 0.75)
    sigma = SIGMAS.float().to(device)[labels]
    torch.testing.assert_close(seen["sigma"][0], sigma)
    torch.testing.assert_close(seen["log_sigma"][0], sigma.log())
    assert seen["none"] == ()
    spread = (seen["x"][0] / sigma[:, None]).square().mean()
    assert abs(float(spread) - 1) < 5 * math.sqrt(2 / 8000)
    given = labels.flip(0)
    loss(lambda x, index: seen.update(index=(index,)) or x, x, levels=given, conditioning="index")
    assert torch.equal(seen["index"][0], given)


# ---- training ----------------------------------------------------------------------------------


@both
def test_training_finds_the_score(loss: Loss) -> None:
    """Of N(m, 1): s(x, sigma) = (m - x)/(1 + sigma^2), with m the only parameter."""
    mean = nn.Parameter(torch.zeros(2))
    x = randn(2000, 2) + torch.tensor([3.0, -1.0])
    optimizer = torch.optim.SGD([mean], lr=1.0)
    torch.manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        loss(lambda x, sigma: (mean - x) / (1 + sigma[:, None] ** 2), x).backward()
        optimizer.step()
    assert float((mean.detach() - torch.tensor([3.0, -1.0])).abs().max()) < 0.15


@both
def test_the_callers_tensors_are_left_alone(device: torch.device, loss: Loss) -> None:
    x, sigmas = randn(5, 3).to(device), SIGMAS.clone()
    x_copy = x.clone()
    loss(gaussian_score, x, sigmas, seed=0)
    assert not x.requires_grad
    assert_same_bytes(x, x_copy)
    assert_same_bytes(sigmas, SIGMAS)
    x.requires_grad_()
    value = loss(gaussian_score, x, sigmas, seed=0)
    assert x.grad is None
    (grad,) = torch.autograd.grad(value, x)
    assert bool(grad.isfinite().all())
    assert bool(grad.abs().sum() > 0)


@both
def test_under_autocast(device: torch.device, loss: Loss) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(33, 33).to(device)
    x = randn(7, 33).to(device)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return layer(x)

    exact = loss(model, x, seed=0)
    want = torch.autograd.grad(exact, layer.weight)[0]
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert model(x, x).dtype == torch.bfloat16
        value = loss(model, x, seed=0)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact, rtol=0.03, atol=0)
    got = torch.autograd.grad(value, layer.weight)[0]
    assert float((got - want).norm() / want.norm()) < 0.03


def test_a_training_step_compiles_whole() -> None:
    loss_fn = DSMLoss(SIGMAS)
    layer = nn.Linear(3, 3)
    key = make_key(3)

    def step(x: Tensor, key: Tensor) -> Tensor:
        return loss_fn(lambda x, sigma: layer(x) / sigma[:, None], x, key=key)

    x = randn(6, 3)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got, want = compiled(x, key), step(x, key)
    torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad(value, layer.weight)[0] for value in (got, want)]
    torch.testing.assert_close(*grads)
    key[1] += 1
    torch.testing.assert_close(compiled(x, key), step(x, key))


# ---- the module --------------------------------------------------------------------------------


def test_the_tables_stay_exact() -> None:
    loss = DSMLoss(SIGMAS / 3, weighting="likelihood")
    tables = [buffer.clone() for buffer in loss.buffers()]
    assert len(tables) == 3
    for changed in (loss.half(), loss.bfloat16(), loss.float(), loss.to("cpu", torch.float16)):
        for buffer, exact in zip(changed.buffers(), tables, strict=True):
            assert_same_bytes(buffer, exact)
    assert loss.state_dict() == {}
    assert list(loss.parameters()) == []
    x = randn(5, 3)
    value = loss(gaussian_score, x, seed=0)
    assert_same_bytes(copy.deepcopy(loss)(gaussian_score, x, seed=0), value)
    assert "weighting='likelihood'" in repr(loss)
    assert loss.to("meta").sigmas.is_meta


# ---- cost --------------------------------------------------------------------------------------


class Free(torch.autograd.Function):
    """A model that needs no memory of its own: a stored output, and a gradient of one number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parameter: Tensor, output: Tensor) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        return None, grad.sum(), None


@pytest.mark.parametrize("given", [True, False])
def test_memory_beyond_the_model_is_the_noisy_data_and_one_gradient(given: bool) -> None:
    x, output = randn(64, 3, 32, 32), randn(64, 3, 32, 32, seed=1)
    parameter = nn.Parameter(torch.zeros(()))
    loss_fn = DSMLoss(SIGMAS)
    labels = torch.zeros(64, dtype=torch.int64) if given else None

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return Free.apply(x, parameter, output)

    def step() -> None:
        loss_fn(model, x, levels=labels).backward()

    step()
    size = x.numel() * x.element_size()
    assert size <= peak_bytes(step) < 2 * size + 100_000
    with torch.no_grad():
        assert size <= peak_bytes(lambda: loss_fn(model, x, levels=labels)) < size + 100_000


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_memory_on_a_gpu() -> None:
    x, output = randn(64, 3, 32, 32).cuda(), randn(64, 3, 32, 32, seed=1).cuda()
    parameter = nn.Parameter(torch.zeros((), device="cuda"))
    loss_fn = DSMLoss(SIGMAS).cuda()

    def step() -> None:
        loss_fn(lambda x, sigma: Free.apply(x, parameter, output), x).backward()

    step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() - before < 2 * x.numel() * 4 + 200_000


# ---- bad input ---------------------------------------------------------------------------------


def never(x: Tensor, sigma: Tensor) -> Tensor:
    raise AssertionError("the model was called before the arguments were checked")


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": [[1.0]]}, TypeError, "x must be a torch.Tensor"),
    ({"x": torch.zeros(2, 3, dtype=torch.int64)}, ValueError, "x must be a floating-point"),
    ({"x": torch.tensor(1.0)}, ValueError, "x must be a tensor with at least 1 dim"),
    ({"x": torch.tensor([[1.0], [math.nan]])}, ValueError, "x must be finite everywhere"),
    ({"x": torch.tensor([[1.0], [math.inf]])}, ValueError, "x must be finite everywhere"),
    ({"sigmas": [1.0, 1.0]}, ValueError, "sigmas must be strictly decreasing"),
    ({"sigmas": [0.5, 1.0]}, ValueError, "sigmas must be strictly decreasing"),
    ({"sigmas": [1.0, 0.0]}, ValueError, "sigmas must be positive"),
    ({"sigmas": [math.nan]}, ValueError, "sigmas must be positive and finite"),
    ({"sigmas": []}, ValueError, "sigmas must be a 1-D tensor"),
    ({"sigmas": 1.0}, TypeError, "sigmas must be a torch.Tensor, or a sequence or an array"),
    ({"sigmas": ["a"]}, TypeError, "sigmas must be a torch.Tensor, or a sequence or an array"),
    ({"sigmas": np.array([2j, 1j])}, TypeError, "sigmas must be a torch.Tensor, or a sequence"),
    ({"sigmas": {2.0, 1.0}}, TypeError, "sigmas must be a torch.Tensor, or a sequence"),
    ({"weighting": "sigma"}, ValueError, "weighting must be one of .* or a function of the sigmas"),
    ({"levels": [0, 1]}, TypeError, "levels must be a torch.Tensor"),
    ({"levels": torch.zeros(2)}, ValueError, "levels must be a tensor of torch.int64"),
    ({"levels": torch.zeros(3, dtype=torch.int64)}, ValueError, r"levels must be of shape \(2,\)"),
    ({"levels": torch.tensor([0, 4])}, ValueError, r"levels must be in \[0, 4\), got .* 0 to 4"),
    ({"levels": torch.tensor([0, -1])}, ValueError, r"levels must be in \[0, 4\), got .* -1 to 0"),
    ({"weighting": "sigma"}, ValueError, "weighting must be one of 'sigma2'"),
    ({"weighting": 2}, TypeError, "weighting must be one of"),
    ({"weighting": lambda s: 1.0}, TypeError, "weighting must be a function that returns"),
    ({"weighting": lambda s: s[:2]}, ValueError, r"weighting must be of shape \(4,\)"),
    ({"weighting": lambda s: -s}, ValueError, "weighting must be finite and at least 0"),
    ({"weighting": lambda s: s / 0}, ValueError, "weighting must be finite and at least 0"),
    ({"weighting": "likelihood", "sigmas": [1.0]}, ValueError, "sigmas must be at least 2 levels"),
    ({"reduction": "max"}, ValueError, "reduction must be one of"),
    ({"prediction": "noise"}, ValueError, "prediction must be one of"),
    ({"conditioning": "time"}, ValueError, "conditioning must be one of"),
    ({"sample_offset": -1}, ValueError, "sample_offset must be at least 0"),
    ({"key": 3}, TypeError, "key must be a torch.Tensor"),
    ({"key": torch.zeros(2)}, ValueError, "key must be an int64 tensor"),
    ({"key": make_key(1), "seed": 1}, ValueError, "seed must be None when key is given"),
    ({"model": None}, TypeError, "model must be callable"),
]


@both
@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments(
    loss: Loss, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"model": never, "x": torch.zeros(2, 3), **arguments}
    name = {by_function: "dsm_loss", by_module: "DSMLoss"}[loss]
    with pytest.raises(error, match=f"^{name}: {message}"):
        loss(**arguments)


@both
def test_bad_models(loss: Loss) -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"model must be a model whose output .* \(2, 3\)"):
        loss(lambda x, sigma: x[:, :2], x)
    with pytest.raises(TypeError, match="model must be a model whose output"):
        loss(lambda x, sigma: None, x)


def test_large_finite_data_pass() -> None:
    x = torch.full((4, 4), 3e38)
    assert dsm_loss(lambda x, sigma: torch.zeros_like(x), x, SIGMAS).isfinite()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_a_bad_label_makes_its_sample_nan() -> None:
    x = torch.zeros(4, 3, device="cuda")
    labels = torch.tensor([0, 4, -1, 3], device="cuda")
    each = DSMLoss(SIGMAS, reduction="none").cuda()(gaussian_score, x, levels=labels)
    assert each.isnan().tolist() == [False, True, True, False]
    with pytest.raises(ValueError, match="x must be on cpu"):
        DSMLoss(SIGMAS)(gaussian_score, x)


@pytest.mark.parametrize(
    "sigmas",
    [range(3, 0, -1), np.array([3.0, 2.0, 1.0]), (3, 2, 1), [torch.tensor(3), 2.0, np.float32(1)]],
)
def test_sigmas_from_other_sequences(sigmas: Any) -> None:
    assert DSMLoss(sigmas).sigmas.tolist() == [3.0, 2.0, 1.0]


def test_the_function_compiles_whole_with_a_key() -> None:
    model = fastscore.nn.ScoreMLP(2, hidden=(8,))
    x, key = randn(6, 2), make_key(3, 1)

    def loss(x: Tensor, key: Tensor) -> Tensor:
        return dsm_loss(model, x, SIGMAS, key=key, weighting=lambda sigmas: sigmas.square())

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, key), loss(x, key))
