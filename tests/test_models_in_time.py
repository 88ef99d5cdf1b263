"""What a sampler in continuous time makes of how a model is called, and of the levels it knows."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from continuous import VARIANCE, InTime, Sees, gaussian, run
from helpers import randn
from torch import Tensor

import fastscore
from fastscore import reverse_sde, sde
from fastscore.sde import Process


def test_a_run_stays_within_what_the_model_knows() -> None:
    def ranged(y: Tensor, s: Tensor) -> Tensor:
        levels.append(float(s[0]))
        return gaussian(y, s)

    ranged.sigma_range = (0.05, 4.0)  # type: ignore[attr-defined]
    for process in (sde.VE(0.01, 50.0), sde.VP(), sde.RectifiedFlow()):
        levels: list[float] = []
        x = run(shape=(4000,), model=ranged, process=process, conditioning="sigma", steps=150)
        assert levels[0] == pytest.approx(4, rel=1e-5)
        assert levels[-1] == pytest.approx(0.05, rel=1e-5)
        assert float(x.var()) == pytest.approx(VARIANCE, rel=0.15)
        levels = []
        run(shape=(4,), model=ranged, process=process, conditioning="sigma", sigma_range=(0.1, 2.0))
        assert levels[0] == pytest.approx(2, rel=1e-5)  # said here
        assert levels[-1] == pytest.approx(0.1, rel=1e-5)
    with pytest.warns(UserWarning, match=r"the model knows those from 0.05 to 4"):
        run(shape=(4,), model=ranged, process=sde.VE(0.01, 50.0), grid=[1.0, 0.5, 0.0], steps=2)
    net = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"sigma_range must be two noise levels, 0 <= lowest < h"):
        run(shape=(4,), sigma_range=(2.0, 1.0))
    with pytest.warns(UserWarning, match="does not say which noise levels it knows"):
        run(shape=(4, 3), model=Sees(net), conditioning="sigma", steps=2)


def test_a_model_in_another_convention_is_noticed() -> None:
    process = sde.VP()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(shape=(8, 4))
        run(shape=(8, 4), model=gaussian, conditioning="sigma")
    with pytest.warns(UserWarning, match="may be called otherwise than it was trained"):
        run(shape=(8, 4), model=lambda x, t: InTime(process, "eps")(x, t))
    with pytest.warns(UserWarning, match="may be called otherwise than it was trained"):
        run(shape=(8, 4), model=lambda x, t: -x / (1 + t[:, None] ** 2))  # one of (x, sigma)
    with pytest.warns(UserWarning, match="time_scale and prediction"):
        run(shape=(8, 4), model=gaussian, process=sde.VE(), conditioning="log_sigma")


def test_a_network_is_told_its_own_index(device: torch.device) -> None:
    levels = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.25])
    seen: list[int] = []

    def indexed(y: Tensor, i: Tensor) -> Tensor:
        assert i.dtype == torch.int64
        seen.append(int(i[0]))
        return gaussian(y, levels.to(i.device)[i])

    how: dict[str, Any] = {"conditioning": "index", "model": indexed, "corrector": None}
    run(
        shape=(3, 2), process=sde.VE(0.25, 8.0), sigmas=levels, steps=5, denoise=True,
        device=device, **how,
    )  # fmt: skip
    assert seen == [0, 1, 2, 3, 4, 5]
    rising = sde.DDPM(torch.linspace(1e-4, 0.02, 1000))
    seen.clear()
    levels = rising.noise_level(torch.arange(1000) / 999).float()
    run(shape=(3, 2), process=rising, steps=999, model=by_index(rising, seen), corrector=None,
        conditioning="index")  # fmt: skip
    assert seen == list(range(999, -1, -1))
    with pytest.raises(ValueError, match="sigmas or betas must be given"):
        run(shape=(3, 2), process=sde.VP(), **how)


def by_index(process: Process, seen: list[int]) -> Any:
    def network(x: Tensor, i: Tensor) -> Tensor:
        seen.append(int(i[0]))
        return InTime(process)(x, i / 999)

    return network


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ((0.0, 5.0), None),
        ((60.0, 100.0), "knows some of the process's noise levels, 0.01 to 10"),
        ((1e-5, 1e-3), "knows some of the process's noise levels, 0.01 to 10"),
    ],
)
@pytest.mark.parametrize("sampler", ["reverse_sde", "probability_flow"])
def test_ranges_that_end_elsewhere(sampler: str, known: Any, message: str | None) -> None:
    def ranged(y: Tensor, s: Tensor) -> Tensor:
        assert float(s.max()) <= known[1]
        return gaussian(y, s)

    ranged.sigma_range = known  # type: ignore[attr-defined]
    run = getattr(fastscore, sampler)
    if message is None:
        assert run(ranged, sde.VE(0.01, 10.0), steps=5, shape=(3, 2), seed=0).isfinite().all()
        return
    with pytest.raises(ValueError, match=f"^{sampler}: model must be one that {message}"):
        run(ranged, sde.VE(0.01, 10.0), steps=5, shape=(3, 2), seed=0)


def test_a_start_above_what_the_model_knows() -> None:
    def ranged(y: Tensor, s: Tensor) -> Tensor:
        return gaussian(y, s)

    ranged.sigma_range = (0.01, 1.0)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"^reverse_sde: t_start must be at most 0\.66666"):
        reverse_sde(ranged, sde.VE(0.01, 10.0), randn(3, 2), t_start=0.9, steps=5, seed=0)


def test_a_mean_that_is_said_is_no_wrong_convention(recwarn: pytest.WarningsRecorder) -> None:
    def far(y: Tensor, s: Tensor) -> Tensor:
        return (100 - y) / (1 + s[:, None] ** 2)

    reverse_sde(far, sde.VE(), steps=5, shape=(3, 2), seed=0, init_mean=100.0)
    assert not recwarn.list
