"""Every op of the library once, on data of one device."""

from __future__ import annotations

import torch
from byte_cases import dsm_tables, langevin_table, noisy_table, steps_table
from helpers import randn
from torch import Tensor

from fastscore import ops

DISTRIBUTIONS = ("rademacher", "gaussian", "sphere")


class EveryOp:
    """Each op once, on data that lies on the device already: fit to be captured."""

    def __init__(self, device: torch.device, columns: int = 5001) -> None:
        self.table, self.rows = langevin_table().to(device), steps_table(10, 5).to(device)
        self.noise, self.loss = (table.to(device) for table in dsm_tables())
        self.x, self.s = (randn(6, columns, seed=seed).to(device) for seed in (1, 2))
        self.noisy_loss = noisy_table().to(device)
        self.labels = torch.arange(6, device=device)

    def __call__(self, key: Tensor) -> list[Tensor]:
        x, s, labels = self.x, self.s, self.labels
        jvp, raw = torch.stack([x, s]), torch.ops.fastscore
        return [
            ops.normal_(torch.empty_like(x), key),
            ops.uniform_(torch.empty_like(x), key),
            ops.rademacher_(torch.empty_like(x), key),
            ops.langevin_step(x, s, self.table, key),
            ops.langevin_step_(x.clone(), s, self.table, key),
            ops.multistep_step_(x.clone(), s.clone(), s, self.rows, key),
            *ops.perturb(x, self.noise, key),
            ops.dsm_residual(x, self.loss, labels, key),
            raw.dsm_residual_backward(x[:, 0], x, self.loss, labels, key, 0),
            *self.residual_in_advance(key, self.loss),
            ops.dsm_residual(x, self.noisy_loss, labels, key, noisy=s),
            raw.dsm_residual_backward(x[:, 0], x, self.noisy_loss, labels, key, 0, None, s),
            *self.residual_in_advance(key, self.noisy_loss, s),
            *self.runge_kutta_step(),
            *(ops.projections(key, x.shape, 2, distribution=d) for d in DISTRIBUTIONS),
            *(t for d in DISTRIBUTIONS for t in ops.sliced_terms(s, jvp, key, distribution=d)),
            *raw.sliced_terms_backward(jvp[:, :, 0], None, x[:, 0], s, key, 2, 0),
            *ops.dual(x, jvp, "silu"),
            *raw.dual_backward(s, jvp, x, jvp, 1, 0.0, 0.0),
            *ops.dual_slope(x, "gelu"),
            raw.dual_slope_backward(s, x, x, 5, 0.0, 0.0),
            ops.dual_stacked(jvp, "tanh"),
            raw.dual_stacked_backward(jvp, jvp, 2, 0.0, 0.0),
        ]

    def runge_kutta_step(self) -> list[Tensor]:
        x, s, each = self.x, self.s, self.table[:1].expand(6, 4)
        state, first, out = x.clone(), s.clone(), torch.empty_like(x)
        accepted = self.labels % 2 == 0
        ops.rk_stage(x, [s, x, s], self.table[0], out=out)
        ops.rk_advance_(state, first, s, x, accepted, out=out, coefficients=each[:, :2])
        stage, error = (
            ops.rk_stage(x, [s, x, s], each),
            ops.rk_error(x, s, [s, x, s], each, each[:, :2]),
        )
        return [stage, error, state, first, out]

    def residual_in_advance(
        self, key: Tensor, table: Tensor, noisy: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        args, raw = (self.x, table, self.labels, key, 0), torch.ops.fastscore
        loss, grad = raw.dsm_residual_with_grad(*args, 0.5, noisy=noisy)
        raw.dsm_residual_regrad_(grad, self.x[:, 0], 0.5, *args, noisy=noisy)
        return loss, grad
