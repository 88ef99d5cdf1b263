"""The rules of fastscore.jvp, function by function, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from jvp_checks import DIM, IMAGE, SEQUENCE, check_model, point, reverse_twice, tangents_of
from torch import Tensor

from fastscore.derivatives.forward import jvps

NEWER = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
P = torch.linspace(0.5, 2.0, 6, dtype=torch.float64)
Q = torch.linspace(-1.0, 1.0, 24, dtype=torch.float64).reshape(4, 6)
MASK = Q.sin() > 0.1
INDEX = torch.tensor([2, 0, 3])
A = 5 * torch.eye(4, dtype=torch.float64) + Q[:, :4]
GRID = torch.linspace(-0.9, 0.9, 48, dtype=torch.float64).reshape(2, 3, 4, 2)


def in_place(x: Tensor) -> Tensor:
    y = x * 1.5
    y += P
    y.mul_(x).sub_(0.5)
    y /= 2
    y.clamp_(max=3.0)
    y[:, 1] = 0.0
    y[1:3, 2:4] = x[1:3, :2]
    y[0] *= 2
    y.relu_()
    z = y + x
    return z.sin_().exp_() * x


def through_a_view(x: Tensor) -> Tensor:
    y = x * 2.0
    left = y[:, :3]
    left.mul_(3.0)
    y.view(-1)[4:9].add_(left.sum())
    left[1].neg_()
    y.T[5].mul_(x[:, 0])
    y.diagonal().sub_(1.0)
    y.unfold(1, 2, 4)[0].add_(0.5)
    left[2:].zero_()
    return y.cos() * x


def copies(x: Tensor) -> Tensor:
    y = torch.zeros_like(x) + x
    y[1:].copy_(x[:-1])
    z = x.clone()
    z.fill_(2.0)
    return y * z + x.new_ones(6)


def queries(x: Tensor) -> Tensor:
    assert isinstance(x, Tensor)
    assert x.shape == torch.Size(DIM)
    assert x.size(1) == 6
    assert x.dim() == x.ndim == 2
    assert x.numel() == 24
    assert len(x) == 4
    assert x.dtype == torch.float64
    assert x.device == torch.device("cpu")
    assert x.is_floating_point()
    assert not x.is_cuda
    assert x.is_contiguous()
    assert x.stride() == (6, 1)
    assert "tensor" in repr(x)
    scale = float(x.detach().abs().max()) + x.detach().sum().item()
    noise = torch.zeros(x.size(), dtype=x.dtype, device=x.device)
    rows = torch.stack([row * 2 for row in x])
    return rows.to(noise) * scale + noise if (x > -100).all() else x


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "add": (lambda x: x + P + 1 + x + Q.to(torch.float32), DIM),
    "add_alpha": (lambda x: torch.add(x, Q, alpha=3) + torch.add(Q, x, alpha=2), DIM),
    "add_broadcasts": (lambda x: x + torch.ones(2, 1, 6, dtype=x.dtype) + x[0], DIM),
    "sub": (lambda x: x - P - x.sin() + (Q - x) + (2 - x), DIM),
    "mul": (lambda x: x * P * 2 * x * (3 * x) * x[:, :1] * torch.ones(3, 1, 1), DIM),
    "div": (lambda x: x / P / 2 + 1 / (x + 5) + P / (x + 7) + x / (x + 6), DIM),
    "div_floor": (lambda x: x * torch.div(x, 0.3, rounding_mode="floor"), DIM),
    "pow": (lambda x: x**3 + x**2 + (x + 5) ** 0.5 + 2**x + (x + 5) ** P + x**0, DIM),
    "pow_both": (lambda x: (x + 5) ** x.sin(), DIM),
    "neg": (lambda x: -x + (+x) * 2, DIM),
    "matmul": (lambda x: x @ Q.mT + Q @ x.mT + (x @ x.mT), DIM),
    "matmul_vector": (lambda x: x @ P + (P @ x.mT) + x @ x[0] + x[0] @ x[1], DIM),
    "bmm": (lambda x: torch.bmm(x, x.mT) @ torch.ones(2, 4, 3, dtype=x.dtype), SEQUENCE),
    "matmul_batched": (lambda x: x[0] @ torch.ones(5, 9, 2, dtype=x.dtype), SEQUENCE),
    "addmm": (lambda x: torch.addmm(P[:4], x, Q.mT, beta=2, alpha=0.5), DIM),
    "einsum": (lambda x: torch.einsum("bi,ji->bj", x, Q), DIM),
    "einsum_three": (lambda x: torch.einsum("bi,bj,ij->b", x, x.sin(), Q.mT @ Q), DIM),
    "outer": (lambda x: torch.outer(x[0], x[1]) + torch.outer(P, x[2]), DIM),
    "bilinear": (lambda x: F.bilinear(x, x.cos(), torch.ones(2, 6, 6, dtype=x.dtype)), DIM),
    "hyper_linear": (lambda x: F.linear(Q, x, x[:, 0]) + F.linear(x, x), DIM),
    "hyper_conv": (lambda x: F.conv1d(x, x[:, :, :3], x[0, :2, 0]), (2, 2, 9)),
    "sdpa": (lambda x: F.scaled_dot_product_attention(x, x.sin(), x * 2), SEQUENCE),
    "sdpa_causal": (
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3),
        SEQUENCE,
    ),
    "sdpa_mask": (
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=Q[:, :4]),
        SEQUENCE,
    ),
    "exp_log": (lambda x: (x.exp() + 1).log() + torch.log1p(x.abs()) + torch.expm1(x), DIM),
    "sqrt": (lambda x: (x + 5).sqrt() + torch.rsqrt(x + 6) + (x + 7).reciprocal(), DIM),
    "trigonometric": (lambda x: x.sin() * x.cos() + torch.tan(x) + torch.sinh(x) * x.cosh(), DIM),
    "erf": (lambda x: torch.erf(x) + torch.erfc(x) + torch.atan(x) + torch.square(x), DIM),
    "clamp": (lambda x: x.clamp(-0.5, 0.8) * x + torch.clamp(x, min=Q), DIM),
    "maximum": (lambda x: torch.maximum(x, x.roll(1)) + torch.minimum(x, Q), DIM),
    "lerp": (lambda x: torch.lerp(x, x.sin(), 0.3) + torch.addcmul(Q, x, x.cos(), value=2), DIM),
    "addcdiv": (lambda x: torch.addcdiv(x, x, x + 7) + x.clamp_min(-0.3) * x.clamp_max(0.4), DIM),
    "atan2": (lambda x: torch.atan2(x, x.cos() + 2) + torch.hypot(x, Q), DIM),
    "abs": (lambda x: abs(x) * x + x.sign() + x.round(), DIM),
    "nan_to_num": (lambda x: torch.nan_to_num(x) * x, DIM),
    "view": (lambda x: x.view(2, 12).reshape(-1, 3).view(-1).view((4, 6)) * Q, DIM),
    "flatten": (lambda x: x.flatten(1) @ torch.ones(36, 2, dtype=x.dtype), SEQUENCE),
    "flatten_scalar": (lambda x: x.sum().flatten() * x.mean().view(1), DIM),
    "unflatten": (lambda x: x.unflatten(-1, (3, 3)).unflatten(1, (2, -1)).sin(), SEQUENCE),
    "permute": (lambda x: x.permute(2, 0, -2).sin().permute((1, 0, 2)), SEQUENCE),
    "transpose": (lambda x: x.transpose(1, -1).swapaxes(0, 1) + x.movedim(2, 0).sin(), SEQUENCE),
    "matrix_transpose": (lambda x: x.T @ x.t().T + x.mT @ x, DIM),
    "squeeze": (lambda x: x[:, None].squeeze(1).unsqueeze(-1).squeeze().unsqueeze(-3).sin(), DIM),
    "expand": (lambda x: x[:, None].expand(-1, 3, 6).sin() + x.expand(4, 6).mean(), DIM),
    "repeat": (lambda x: x.repeat(2, 1, 2).sin() + x.tile(2).mean(), DIM),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, dim=1).cos(), DIM),
    "flip": (lambda x: x.flip(1) * x.roll(1, 0) * x.rot90(2), DIM),
    "chunk": (lambda x: x.chunk(2, dim=1)[0] * x.chunk(2, 1)[1].sin(), DIM),
    "split": (lambda x: x.split(2)[0] * torch.split(x, [1, 2, 1], dim=0)[1], DIM),
    "unbind": (lambda x: sum(x.unbind(1)) + x.unbind()[0][:4] + x.select(1, -1), DIM),
    "narrow": (lambda x: x.narrow(1, 2, 3).sin() + x.index_select(1, INDEX), DIM),
    "index_basic": (lambda x: x[1:, ::2, None] * x[..., -1][:3, None, None] + x[2, 3], DIM),
    "index_arrays": (lambda x: x[INDEX] * x[INDEX, INDEX][:, None] + x[:, 0][INDEX][:, None], DIM),
    "index_split": (lambda x: x[INDEX[:2] // 2, :, INDEX[:2]].sin(), SEQUENCE),
    "index_mask": (lambda x: x[MASK] * x[MASK].sin(), DIM),
    "gather": (lambda x: x.gather(1, INDEX.expand(4, 3)) * x.take_along_dim(INDEX[None], 1), DIM),
    "scatter_add": (
        lambda x: torch.zeros(6, dtype=x.dtype).scatter_add(0, INDEX, x[0, :3]) + x,
        DIM,
    ),
    "cat": (lambda x: torch.cat([x, Q, x.sin()], dim=-1) * torch.cat((x, x, x), 1), DIM),
    "stack": (lambda x: torch.stack([x, Q, x.sin()], 1) + torch.stack((x,) * 3, -2), DIM),
    "hstack": (lambda x: torch.hstack([x, Q]) @ torch.vstack([x.mT, Q.mT]), DIM),
    "where": (lambda x: torch.where(x > 0, x.sin(), Q) + x.where(MASK, 0.0) * x, DIM),
    "where_plain_first": (lambda x: torch.where(MASK, 2.0, x) + Q.where(MASK, x), DIM),
    "masked_fill": (lambda x: x.masked_fill(Q.abs() < 0.2, -torch.inf).softmax(1) * x, DIM),
    "tril": (lambda x: x.tril() + x.triu(1).diagonal().sum() + torch.diff(x, dim=1).sum(), DIM),
    "sum": (lambda x: x.sum() + x.sum(1) + x.sum((0, 1)) + x.sum(0, keepdim=True).sin().sum(), DIM),
    "mean": (lambda x: x.mean() * x.mean(-1) + torch.mean(x, dim=[0, 1], keepdim=True)[0], DIM),
    "by_keyword": (
        lambda x: (
            torch.sum(input=x, dim=1)
            + torch.relu_(input=x * 2)[:, 0]
            + torch.softmax(input=x, dim=-1)[:, 1]
            + F.linear(input=x, weight=Q).mean(dim=1)
            + torch.flatten(input=x, start_dim=0, end_dim=1)[:4]
            + torch.add(input=x, other=Q)[:, 0]
        ),
        DIM,
    ),
    "cumsum": (lambda x: x.cumsum(1).sin(), DIM),
    "norms": (lambda x: x.norm() + x.norm(dim=1) + torch.linalg.vector_norm(x, 3, dim=1), DIM),
    "normalize": (lambda x: F.normalize(x, dim=1), DIM),
    "logsumexp": (lambda x: x.logsumexp(1) + x.var(1) + x.std() + x.prod(1), DIM),
    "max": (lambda x: x.max(1).values + x.amin(1) + x.sort(1)[0][:, 2] + x.topk(2)[0][:, 1], DIM),
    "softmax": (lambda x: x.softmax(1) * torch.log_softmax(x, 0) + F.softmin(x, -1), DIM),
    "softmax_scalar": (lambda x: x[0, 0].softmax(0) * x, DIM),
    "interpolate": (lambda x: F.interpolate(x, size=(3, 9), mode="bicubic"), IMAGE),
    "interpolate_linear": (lambda x: F.interpolate(x, scale_factor=2, mode="linear"), SEQUENCE),
    "max_pool_indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], IMAGE),
    "pad": (lambda x: F.pad(x, (1, 2)) + F.pad(x, (2, 1), value=3.0), DIM),
    "pad_replicate": (lambda x: F.pad(x, (1, 1), mode="replicate"), SEQUENCE),
    "unfold": (lambda x: F.unfold(x, 3).sin(), IMAGE),
    "fft": (lambda x: torch.fft.rfft(x).abs().square() + torch.fft.irfft(x)[..., :5], SEQUENCE),
    "embedding": (lambda x: x * F.embedding(INDEX.new_tensor([0, 1, 2, 3]), Q), DIM),
    "one_hot": (lambda x: x * F.one_hot(x.argmax(1), 6), DIM),
    "to": (lambda x: x.float().to(torch.float64).double().type_as(x).contiguous().clone(), DIM),
    "to_integers": (lambda x: x * x.long() + x.to(torch.int32) * x.int(), DIM),
    "channels_last": (lambda x: x.contiguous(memory_format=torch.channels_last).sin(), IMAGE),
    "detach": (lambda x: x * x.detach() + x.data, DIM),
    "meshgrid": (lambda x: torch.meshgrid(x[0], x[1], indexing="ij")[1] * x[0], DIM),
    "broadcast_tensors": (lambda x: torch.broadcast_tensors(x, Q[0])[1] * x, DIM),
    "concatenate": (lambda x: torch.concat([x, x]) + torch.concatenate([Q, x], axis=0), DIM),
    "joins": (
        lambda x: (
            torch.row_stack([x, Q]).sum()
            + torch.dstack([x, Q]).sin().sum()
            + torch.column_stack([x, x]).cos().sum()
            + torch.block_diag(x, Q).sin().sum()
        ),
        DIM,
    ),
    "splits": (
        lambda x: (
            x.hsplit(2)[0].sin().sum()
            + x.vsplit(2)[1].cos().sum()
            + x[:, :, None].expand(4, 6, 2).dsplit(2)[0].sum()
            + x.tensor_split(3, dim=1)[2].sin().sum()
            + x.split_with_sizes([2, 4], -1)[1].cos().sum()
        ),
        DIM,
    ),
    "shapes": (
        lambda x: (
            x.expand_as(x).reshape_as(x.mT).view_as(Q)
            + torch.broadcast_to(x[0], (4, 6)).swapdims(0, 1).moveaxis(0, 1)
            + torch.atleast_1d(x) * torch.atleast_2d(x)
            + torch.atleast_3d(x).sum(2)
        ),
        DIM,
    ),
    "diagonals": (
        lambda x: (
            x[0].diag()
            + x[0].diag_embed()
            + x[:, :4].trace()
            + torch.eye(6, dtype=x.dtype).diagonal_scatter(x[1])
        ),
        DIM,
    ),
    "scatters": (
        lambda x: (
            (
                Q.index_add(0, INDEX, x[:3].sin())
                + Q.index_copy(0, INDEX, x[:3])
                + Q.select_scatter(x[0], 0, 1)
                + Q.slice_scatter(x[:2], 0, 1, 3)
                + Q.masked_scatter(MASK, x)
                + x.scatter(1, INDEX.expand(4, 3), 2.0)
                + x.index_fill(0, INDEX, 3.0)
                + x.index_put((INDEX,), Q[0])
            )
            * x
        ),
        DIM,
    ),
    "selections": (lambda x: x.take(INDEX) * x[0, :3] + x.fliplr()[0, :3] + x.flipud()[1, 1], DIM),
    "products": (
        lambda x: (
            x.mv(P).sum()
            + x[0].dot(x[1])
            + torch.inner(x, Q).sum()
            + torch.vdot(P, x[2])
            + torch.tensordot(x, Q, dims=2)
            + torch.kron(x, Q[:2]).sin().sum()
            + torch.linalg.cross(x[:, :3], Q[:, :3]).sin().sum()
            + torch.mm(x, x.mT).sum()
            + torch.addmv(P[:4], x, P).sin().sum()
            + torch.baddbmm(Q[None, :, :4], x[None], x.mT[None]).sin().sum()
        ),
        DIM,
    ),
    "linear_algebra": (
        lambda x: (
            torch.linalg.inv(A + x[:, :4])
            + torch.linalg.det(A + x[:, :4])
            + torch.det(A - x[:, :4])
            + torch.logdet(A + x[:, :4] @ x[:, :4].mT)
            + torch.linalg.slogdet(A + x[:, :4]).logabsdet
            + torch.linalg.matrix_norm(x)
        ),
        DIM,
    ),
    "solve": (
        lambda x: (
            torch.linalg.solve(A + x[:, :4], x[:, :1])
            + torch.linalg.solve(A, x)
            + torch.linalg.solve(A + x[:, :4], Q[:, 0])[:, None]
            + torch.linalg.solve(A, x.mT, left=False).mT
        ),
        DIM,
    ),
    "reductions": (
        lambda x: (
            x.median(1).values
            + x.kthvalue(2, 1).values
            + x.min(1)[0]
            + x.amax(1)
            + torch.var_mean(x, 1)[0]
            + torch.std_mean(x, 1)[1]
            + (torch.aminmax(x, dim=1).max if NEWER else x.amax(1))  # no forward mode before
            + x.nanmean(1)
            + x.nansum(1)
            + x.max()
        ),
        DIM,
    ),
    "cumulative": (lambda x: x.cumprod(1) + x.cummax(1)[0] + x.cummin(1)[0], DIM),
    "distances": (
        lambda x: F.cosine_similarity(x, Q) + F.pairwise_distance(x, Q) + torch.dist(x, Q),
        DIM,
    ),
    "complex": (
        lambda x: torch.view_as_real(torch.view_as_complex(x.reshape(4, 3, 2)) * 2j).conj().sin(),
        DIM,
    ),
    "ffts": (
        lambda x: (
            torch.fft.ifft2(torch.fft.fft2(x)).real * torch.fft.fftshift(x)
            + torch.fft.ifft(torch.fft.fft(x)).imag
            + torch.fft.irfft2(torch.fft.rfft2(x))
        ),
        DIM,
    ),
    "channel_shuffle": (lambda x: torch.channel_shuffle(x, 2).sin(), IMAGE),
    "rsub": (
        lambda x: torch.rsub(x, Q, alpha=2) + torch.subtract(x, Q) + torch.multiply(Q, x),
        DIM,
    ),
    "divide": (lambda x: torch.divide(Q, x + 9) + torch.true_divide(x, P), DIM),
    "constant_pad_nd": (lambda x: torch.constant_pad_nd(x, (1, 1), 2.0).sin(), DIM),
    "scalar": (lambda x: x.sum() * x.mean() / (x[0, 0] + 9) - x.sum().sin(), DIM),
    "in_place": (in_place, DIM),
    "through_a_view": (through_a_view, DIM),
    "copies": (copies, DIM),
    "queries": (queries, DIM),
    "constant": (lambda x: Q * 2, DIM),
    "identity": (lambda x: x, DIM),
    "no_batch": (lambda x: torch.tanh(P * x), (6,)),
    "zero_dimensions": (lambda x: torch.sin(x) * 2, ()),
    "empty": (lambda x: F.silu(F.linear(x, Q)).view(-1, 2, 2).sin(), (0, 6)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name: str) -> None:
    function, shape = FUNCTIONS[name]
    check_model(function, point(shape))


@pytest.mark.skipif(not NEWER, reason="PyTorch 2.11 has no second derivative of grid_sample")
def test_grid_sample() -> None:
    """Without torch.func.jvp, which PyTorch has not for it."""
    x = point(IMAGE).requires_grad_()
    vs = tangents_of(x)

    def model(x: Tensor) -> Tensor:
        return F.grid_sample(x, GRID, padding_mode="border", align_corners=False).sin()

    torch.testing.assert_close(jvps(model, x, vs), reverse_twice(model, x, vs))


UNARY = """absolute acos arccos arcsin arcsinh arctan arctanh asin asinh atanh digamma erfinv exp2
    frac lgamma log10 log2 logit negative sinc special.digamma special.entr special.erf special.erfc
    special.erfinv special.exp2 special.expit special.expm1 special.gammaln special.log1p
    special.log_ndtr special.logit special.ndtr special.ndtri special.psi special.sinc"""

BINARY = """arctan2 copysign fmax fmin fmod ldexp logaddexp logaddexp2 remainder special.xlog1py
    special.xlogy xlogy"""


def torch_function(name: str) -> Callable[..., Tensor]:
    function = torch
    for part in name.split("."):
        function = getattr(function, part)
    return function


@pytest.mark.parametrize("name", [*UNARY.split(), "acosh", "arccosh", "i0", "special.i0"])
def test_unary(name: str) -> None:
    function = torch_function(name)
    lowest = 1.1 if name.endswith("cosh") else 0.1
    check_model(lambda x: function(x) * x, lowest + 0.8 * torch.sigmoid(point(DIM)))


@pytest.mark.parametrize("name", BINARY.split())
def test_binary(name: str) -> None:
    function, other = torch_function(name), 0.3 + Q.abs()
    x = 0.1 + 0.8 * torch.sigmoid(point(DIM))
    check_model(lambda x: function(x, other) * x, x)
    if name not in ("fmod", "remainder", "ldexp"):
        check_model(lambda x: function(other, x) * x, x)


QUERIES = """all any argmax argmin argsort ceil count_nonzero empty_like floor isfinite isinf isnan
    isneginf isposinf isreal logical_not nonzero ones_like rand_like randn_like sgn sign signbit
    trunc zeros_like"""
COMPARISONS = """allclose eq equal floor_divide ge greater greater_equal gt isclose le less
    less_equal logical_and logical_or logical_xor lt ne not_equal"""


@pytest.mark.parametrize("name", [*QUERIES.split(), *COMPARISONS.split()])
def test_query_has_no_tangents(name: str) -> None:
    function, x = getattr(torch, name), point(DIM)
    others = () if name in QUERIES.split() else (Q,)
    results = []

    def model(x: Tensor) -> Tensor:
        results.append(function(x, *others))
        return x

    jvps(model, x, tangents_of(x))
    expected = function(x, *others)
    if "rand" in name or "empty" in name:
        assert results[0].shape == expected.shape
        return
    assert type(results[0]) is type(expected)
    torch.testing.assert_close(results[0], expected)


def test_python_values() -> None:
    def model(x: Tensor) -> Tensor:
        first = x[0, 0]
        assert float(first) == first.item() == x.tolist()[0][0]
        assert int(first * 10) == int(point(DIM)[0, 0] * 10)
        assert bool(first) is True
        assert f"{first:.2f}" == f"{point(DIM)[0, 0]:.2f}"
        assert str(x) == str(point(DIM))
        assert x.type() == "torch.DoubleTensor"
        assert x.grad is None
        assert x.grad_fn is None
        assert x.requires_grad
        x.requires_grad = True
        assert x.requires_grad_() is x
        assert not x.long().is_floating_point()
        return x.half().bfloat16().cpu().double()

    jvps(model, point(DIM), tangents_of(point(DIM)))
