"""How models are told the noise level, and what happens when their output is wrong."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import Tensor, nn

import fastscore
from fastscore import conditioning
from fastscore.conditioning import CONDITIONINGS, LEVEL_CONDITIONINGS, call_model, condition

X = torch.arange(12.0).reshape(3, 4)
SIGMA = torch.tensor([4.0, 2.0, 0.5])
LABELS = torch.tensor([0, 1, 3])


class Recorder:
    """A model that keeps what it was called with."""

    def __init__(self) -> None:
        self.args: tuple[Tensor, ...] = ()

    def __call__(self, *args: Tensor) -> Tensor:
        self.args = args
        return -args[0]


@pytest.mark.parametrize(
    ("name", "extra"),
    [("sigma", SIGMA), ("index", LABELS), ("log_sigma", SIGMA.log()), ("none", None)],
)
def test_model_receives_what_conditioning_names(name: str, extra: Tensor | None) -> None:
    model = Recorder()
    out = call_model("dsm_loss", model, X, SIGMA, LABELS, name)
    assert torch.equal(out, -X)
    assert torch.equal(model.args[0], X)
    assert len(model.args) == (1 if extra is None else 2)
    if extra is not None:
        assert torch.equal(model.args[1], extra)
        assert model.args[1].dtype == extra.dtype


def test_every_conditioning_is_known_to_condition() -> None:
    assert (*LEVEL_CONDITIONINGS, "time") == CONDITIONINGS
    for name in CONDITIONINGS:
        assert len(condition(name, SIGMA, LABELS, SIGMA / 50)) == (name != "none")
    with pytest.raises(ValueError, match="time must be given for"):
        condition("time", SIGMA, LABELS)


def test_time_is_told_where_there_is_one() -> None:
    model, time = Recorder(), torch.tensor([0.1, 0.5, 0.9])
    call_model("sde_loss", model, X, SIGMA, LABELS, "time", time=time)
    assert torch.equal(model.args[1], time)
    with pytest.raises(ValueError, match=r"dsm_loss: conditioning must be one of .*sde_loss"):
        call_model("dsm_loss", model, X, SIGMA, LABELS, "time")


@pytest.mark.parametrize("name", ["sigmas", "", "Index"])
def test_unknown_conditioning(name: str) -> None:
    with pytest.raises(ValueError, match=r"^dsm_loss: conditioning must be one of 'sigma'"):
        call_model("dsm_loss", Recorder(), X, SIGMA, LABELS, name)
    with pytest.raises(ValueError, match=r"conditioning must be one of"):
        condition(name, SIGMA, LABELS)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda x, s: x[:, :2], id="narrower"),
        pytest.param(lambda x, s: x.sum(1), id="one number per sample"),
        pytest.param(lambda x, s: x[None], id="one dimension more"),
        pytest.param(lambda x, s: x[:1], id="broadcastable"),
        pytest.param(lambda x, s: x.long(), id="integers"),
    ],
)
def test_wrong_output_names_function_model_and_both_shapes(wrong) -> None:
    expected = r"^langevin: model must be .* shape \(3, 4\), got a torch\.\w+ tensor of shape \("
    with pytest.raises(ValueError, match=expected):
        call_model("langevin", wrong, X, SIGMA, LABELS, "sigma")


def test_output_on_another_device() -> None:
    with pytest.raises(ValueError, match=r"langevin: model .* on cpu.* on meta"):
        call_model("langevin", lambda x, s: x.to("meta"), X, SIGMA, LABELS, "sigma")


def test_output_that_is_no_tensor_and_model_that_is_no_function() -> None:
    with pytest.raises(TypeError, match=r"langevin: model must be .*\(3, 4\), got tuple"):
        call_model("langevin", lambda x, s: (x, s), X, SIGMA, LABELS, "sigma")
    with pytest.raises(TypeError, match=r"langevin: model must be callable, got Tensor"):
        call_model("langevin", X, X, SIGMA, LABELS, "sigma")  # type: ignore[arg-type]


def test_output_may_have_another_floating_dtype() -> None:
    out = call_model("langevin", lambda x, s: x.bfloat16(), X, SIGMA, LABELS, "sigma")
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize("name", CONDITIONINGS)
def test_no_value_is_read_from_the_device(name: str) -> None:
    # A meta tensor has no values: reading one, as a host sync would, raises.
    x, sigma, labels = X.to("meta"), SIGMA.to("meta"), LABELS.to("meta")
    time = sigma if name == "time" else None
    out = call_model("langevin", lambda x, *_: -x, x, sigma, labels, name, time=time)
    assert out.shape == X.shape


@pytest.mark.parametrize("name", CONDITIONINGS)
def test_traces_as_one_graph(name: str) -> None:
    def scaled(x: Tensor, level: Tensor | None = None) -> Tensor:
        return x if level is None else x * level[:, None]

    def step(x: Tensor) -> Tensor:
        return call_model("langevin", scaled, x, SIGMA, LABELS, name, time=time)

    time = SIGMA if name == "time" else None
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    assert torch.equal(compiled(X), step(X))


def test_docstring_examples() -> None:
    assert doctest.testmod(conditioning).failed == 0


@pytest.mark.parametrize("call", ["dsm_loss", "ssm_loss", "annealed_langevin"])
def test_a_model_that_fails_for_a_plain_reason_is_explained(call: str) -> None:
    sigmas = fastscore.geometric_sigmas(1.0, 0.1, 4)
    x, run = torch.zeros(3, 2, dtype=torch.float64), getattr(fastscore, call)
    options = {"sigmas": sigmas}

    class ByLabel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Embedding(4, 2).double()

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return x * self.scale(labels)

    with pytest.raises(ValueError, match=f'^{call}: conditioning must be "index" for a model'):
        run(ByLabel(), x=x, **options)
    run(ByLabel(), x=x, conditioning="index", **options)
    wide = fastscore.nn.ScoreMLP(2, hidden=(8,))
    with pytest.raises(ValueError, match=f"^{call}: x must be of the model's dtype torch.float32"):
        run(wide, x=x, **options)
    run(wide.double(), x=x, **options)

    def broken(x: Tensor, sigma: Tensor) -> Tensor:
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        run(broken, x=x, **options)

    class BrokenHalf(nn.Module):
        """Of another dtype than x, as it may be, and failing for a reason of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2).bfloat16()

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        run(BrokenHalf(), x=x, **options)
