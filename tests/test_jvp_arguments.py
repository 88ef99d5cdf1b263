"""The rules of fastscore.jvp: any argument may depend on x; edges of shapes; PyTorch's errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from jvp_checks import SEQUENCE, point, tangents_of
from torch import Tensor

from fastscore.derivatives.call import Call
from fastscore.derivatives.forward import jvp, jvps, warned
from fastscore.derivatives.forward.whole import whole_model
from fastscore.losses import ssm_loss

C = torch.linspace(-1.0, 2.0, 72, dtype=torch.float64).sin().reshape(2, 4, 9)
W = torch.linspace(-2.0, 1.0, 20, dtype=torch.float64).cos().reshape(5, 4)
STATE = torch.linspace(0.5, 1.5, 4, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _forget_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warned, "_WARNED", set())


def check(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """By differences alone: PyTorch has some of these derivatives wrong."""
    vs = tangents_of(x, 2)
    output, tangents = jvps(function, x, vs)
    torch.testing.assert_close(output, function(x))
    h = 1e-6
    expected = torch.stack([(function(x + h * v) - function(x - h * v)) / (2 * h) for v in vs])
    torch.testing.assert_close(tangents, expected, rtol=1e-6, atol=1e-7)
    leaves = [x.clone().requires_grad_(), vs.requires_grad_()]
    assert torch.autograd.gradcheck(
        lambda x, vs: jvps(function, x, vs), leaves, fast_mode=True, nondet_tol=1e-12
    )


# x is (2, 4, 9); a parameter of 4 channels is x[0, :, 0], of 9 features x[0, 0].
BY_PARAMETER: dict[str, Callable[[Tensor], Tensor]] = {
    "layer_norm": lambda x: F.layer_norm(x, (9,), x[0, 0], x[1, 1]),
    "layer_norm_weight": lambda x: F.layer_norm(C, (9,), x[0, 0]),
    "layer_norm_bias": lambda x: F.layer_norm(C, (9,), C[0, 0], x[0, 1]),
    "layer_norm_input_bias": lambda x: F.layer_norm(x, (4, 9), None, x[0]),
    "group_norm": lambda x: F.group_norm(x, 2, x[0, :, 0], x[1, :, 2]),
    "group_norm_weight": lambda x: F.group_norm(C, 2, x[0, :, 0]),
    "group_norm_bias": lambda x: F.group_norm(C, 2, None, x[0, :, 0]),
    "instance_norm": lambda x: F.instance_norm(x, weight=x[0, :, 0], bias=x[1, :, 0]),
    "instance_norm_weight": lambda x: F.instance_norm(C, weight=x[0, :, 0]),
    "batch_norm": lambda x: F.batch_norm(x, None, None, x[0, :, 0], x[0, :, 1], True),
    "batch_norm_weight": lambda x: F.batch_norm(C, None, None, x[0, :, 0], training=True),
    "batch_norm_eval": lambda x: F.batch_norm(x, STATE, STATE, x[0, :, 0], x[0, :, 1]),
    "batch_norm_eval_weight": lambda x: F.batch_norm(C, STATE, STATE, x[0, :, 0], x[0, :, 1]),
    "batch_norm_state": lambda x: F.batch_norm(C, x[0, :, 0], x[0, :, 0].square()),
    "rms_norm": lambda x: F.rms_norm(x, (9,), x[0, 0]),
    "rms_norm_weight": lambda x: F.rms_norm(C, (9,), x[0, 0]),
    "after_linear": lambda x: F.layer_norm(F.linear(C[..., :4], W), (5,), x[0, 0, :5]),
    "after_softmax": lambda x: F.layer_norm(x.softmax(-1), (9,), x.sum((0, 1))),
    "after_convolution": lambda x: F.group_norm(
        F.conv1d(x, W[:4, :, None]), 2, x.mean((0, 2)), x.sum((0, 2))
    ),
    "linear_bias": lambda x: F.linear(C[..., :4], W, x[0, 0, :5]),
    "linear_weight": lambda x: F.linear(C, x[0], STATE),
    "linear_weight_bias": lambda x: F.linear(C, x[0], x[1, :, 0]),
    "linear_input_bias": lambda x: F.linear(x[..., :4], W, x[1, 0, :5]),
    "conv_bias": lambda x: F.conv1d(C, W[:, :, None], x[0, 0, :5]),
    "addmm_input": lambda x: torch.addmm(x[0, :, :4], W[:4], W[:4], beta=2, alpha=3),
    "addmm_first": lambda x: torch.addmm(W[:4], x[0, :, :4], W[:4]),
    "addmm_second": lambda x: torch.addmm(W[:4], W[:4], x[0, :, :4]),
    "addmv_input": lambda x: torch.addmv(x[0, 0, :5], W, STATE),
    "baddbmm_input": lambda x: torch.baddbmm(x[:, :, :4], C[:, :, :4], C[:, :, :4]),
    "bilinear_bias": lambda x: F.bilinear(W, W, W.new_ones(3, 4, 4), x[0, 0, :3]),
    "bilinear_weight": lambda x: F.bilinear(W[:2], W[:2, :4], x[:, :, :4], x[0, 0, :2]),
    "bilinear_second": lambda x: F.bilinear(W[:2], x[0, :2, :4], W[:4, None] * W[:4, :, None]),
    "prelu": lambda x: F.prelu(x, x[0, :, 0]),
    "prelu_weight": lambda x: F.prelu(C, x[0, :, 0]),
    "prelu_one_weight": lambda x: F.prelu(C[0, 0], x[0, 0, 0]),
    "prelu_matrix": lambda x: F.prelu(x[0].mT, x[1, :, 2]),
    "attention_mask": lambda x: F.scaled_dot_product_attention(C, C, C, x[:, :, :4]),
    "attention_key": lambda x: F.scaled_dot_product_attention(C, x, C),
    "index_fill": lambda x: C.index_fill(1, torch.tensor([0, 2]), x[0, 0, 0]),
    "index_fill_both": lambda x: x.index_fill(1, torch.tensor([0, 2]), x[0, 0, 0]),
    "masked_fill_value": lambda x: C.masked_fill(C > 0.3, x[0, 0, 0]),
    "as_strided_scatter": lambda x: C.as_strided_scatter(x[0, :2, :2], (2, 2), (9, 1)),
    "native_layer_norm": lambda x: torch.cat(
        [t.flatten() for t in torch.native_layer_norm(x, (9,), x[0, 0], x[0, 1], 1e-5)]
    ),
    "native_group_norm": lambda x: torch.cat(
        [
            t.flatten()
            for t in torch.native_group_norm(x, x[0].sum(1), x[1].sum(1), 2, 4, 9, 2, 1e-5)
        ]
    ),
    "native_batch_norm": lambda x: torch.cat(
        [
            t.flatten()
            for t in torch.native_batch_norm(x, x[0, :, 0], None, None, None, True, 0.1, 1e-5)
        ]
    ),
    "solve_ex": lambda x: (
        torch.linalg.solve_ex(x[:, :, :4] + 5 * torch.eye(4, dtype=x.dtype), x[:, :, 4:6]).result
    ),
}


@pytest.mark.parametrize("name", BY_PARAMETER)
def test_parameters_that_depend_on_x(name: str) -> None:
    check(BY_PARAMETER[name], point(SEQUENCE))


def test_layer_norm_scaled_by_x() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    _, tangent = jvp(lambda x: F.layer_norm(x, (2,), x[0]), x, torch.ones_like(x))
    torch.testing.assert_close(tangent, torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]), rtol=0, atol=1e-4)


def test_ssm_loss_of_adaptive_normalisation() -> None:
    x = point((4, 6))

    def score(x: Tensor) -> Tensor:
        return F.layer_norm(x, (6,), 1 + x.mean(0), x[1])

    forward, reverse = (ssm_loss(score, x, method=m, seed=3) for m in ("forward", "reverse"))
    torch.testing.assert_close(forward, reverse)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_half_precision_is_as_near_as_the_plain_call(
    dtype: torch.dtype, masked: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 32, 16, generator=generator).mul(2).to(dtype)
    mask = torch.ones(32, 32).tril().bool() if masked else None

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    exact = attend(q.double(), k.double(), v.double())
    output, _ = jvps(lambda q: attend(q, k, v), q, torch.randn(1, *q.shape).to(dtype))
    error, plain = ((y.double() - exact).norm() for y in (output, attend(q, k, v)))
    assert error <= 1.1 * plain


def test_attention_that_may_look_nowhere_is_0() -> None:
    x = point(SEQUENCE)
    mask = torch.ones(4, 4).tril(-1).bool()
    for given in (mask, torch.zeros(4, 4, dtype=x.dtype).masked_fill(~mask, -torch.inf)):
        check(lambda x, m=given: F.scaled_dot_product_attention(x, x.sin(), x, attn_mask=m), x)


def test_rms_norm_of_small_values_in_bfloat16() -> None:
    x = torch.full((2, 4), 0.01, dtype=torch.bfloat16)
    output, _ = jvp(lambda x: F.rms_norm(x, (4,)), x, torch.ones_like(x))
    torch.testing.assert_close(output, F.rms_norm(x, (4,)))


EDGES: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "transpose_of_a_number": (lambda x: x.transpose(0, -1) * x.swapaxes(0, 0), ()),
    "clone_of_a_number": (lambda x: x.clone(memory_format=torch.contiguous_format) * x, ()),
    "double_of_a_number": (lambda x: x.double(memory_format=torch.preserve_format) * x, ()),
    "cat_with_an_empty_vector": (lambda x: torch.cat([x.new_zeros(0), x, x.sin()], 1), (2, 3)),
    "cat_of_empty_vectors": (lambda x: torch.cat([x, x]), (0,)),
    "squeeze_of_no_dimension": (lambda x: x.squeeze(()).sin(), (2, 1)),
    "sum_over_no_dimension": (lambda x: x.sum(()).sin() * x, (2, 3)),
    "cumprod_with_zeros": (lambda x: (x * torch.tensor([1.0, 0.0, 2.0, 0.0])).cumprod(1), (2, 4)),
    "unique": (lambda x: x.unique() ** 2, (2, 3)),
    "unique_with_ties": (lambda x: torch.unique(torch.cat([x, x])) ** 2, (5,)),
    "unique_rows": (lambda x: torch.unique(x, return_inverse=True, dim=0)[0].sin(), (3, 2)),
    "unique_consecutive": (lambda x: x.unique_consecutive(return_counts=True)[0].sin(), (5,)),
    "index_fill_in_place": (
        lambda x: torch.ones(2, 3, dtype=x.dtype).index_fill_(1, torch.tensor([1]), x[0, 0]) * x,
        (2, 3),
    ),
    "householder": (lambda x: torch.linalg.householder_product(x, x[0, :2]), (4, 3)),
    "number_does_not_decide_the_dtype": (
        lambda x: (
            x * torch.ones(2) + torch.ones(2) / x - torch.where(x > 9, x, torch.ones(2))
        ).double(),
        (),
    ),
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.filterwarnings("ignore:fastscore.jvp")
def test_edge(name: str) -> None:
    function, shape = EDGES[name]
    x = point(shape)
    if name.startswith("number"):
        tangents = jvp(function, x, torch.ones_like(x))
        torch.testing.assert_close(tangents, torch.func.jvp(function, (x,), (torch.ones_like(x),)))
        return
    check(function, x)


def test_a_shape_changed_in_place() -> None:
    def model(x: Tensor) -> Tensor:
        return (x * 2).as_strided_((2, 2), (1, 2)) ** 2

    with pytest.warns(UserWarning, match="as_strided_"):
        check(model, point((3, 2)))


def test_frexp_in_bfloat16() -> None:
    x = torch.tensor([3.0, 0.4], dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="frexp"):
        output, tangent = jvp(lambda x: torch.frexp(x).mantissa, x, torch.ones_like(x))
    assert output.dtype == tangent.dtype == torch.bfloat16
    torch.testing.assert_close(tangent.float(), torch.tensor([0.25, 2.0]))


M3, M4, V4 = torch.ones(2, 3), torch.ones(4, 4), torch.ones(4)
REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "layer_norm_shape": (lambda x: F.layer_norm(x, (3,)), (2, 4)),
    "layer_norm_no_shape": (lambda x: F.layer_norm(x, ()), (2, 4)),
    "layer_norm_weight": (lambda x: F.layer_norm(x, (4,), torch.ones(1)), (2, 4)),
    "layer_norm_weight_of_x": (lambda x: F.layer_norm(M4, (4,), x), (1,)),
    "rms_norm_shape": (lambda x: F.rms_norm(x, (2,)), (2, 4)),
    "rms_norm_weight": (lambda x: F.rms_norm(x, (4,), torch.ones(1)), (2, 4)),
    "group_norm_groups": (lambda x: F.group_norm(x, 3), (2, 4, 3)),
    "group_norm_vector": (lambda x: F.group_norm(x, 1), (4,)),
    "group_norm_one_value": (lambda x: F.group_norm(x, 4), (1, 4)),
    "group_norm_weight": (lambda x: F.group_norm(x, 2, torch.ones(1)), (2, 4, 3)),
    "instance_norm_one_value": (lambda x: F.instance_norm(x), (2, 4, 1)),
    "instance_norm_weight": (lambda x: F.instance_norm(x, weight=torch.ones(3)), (2, 4, 5)),
    "batch_norm_one_value": (lambda x: F.batch_norm(x, None, None, training=True), (1, 4)),
    "batch_norm_no_statistics": (lambda x: F.batch_norm(x, None, None), (2, 4)),
    "batch_norm_weight": (lambda x: F.batch_norm(x, V4, V4, torch.ones(1)), (2, 4)),
    "batch_norm_statistics": (lambda x: F.batch_norm(x, torch.ones(1), torch.ones(1)), (2, 4)),
    "batch_norm_eps": (lambda x: F.batch_norm(x, None, None, training=True, eps=0.0), (3, 4)),
    "glu_odd": (lambda x: F.glu(x), (2, 3)),
    "glu_of_a_number": (lambda x: F.glu(x), ()),
    "gelu_approximate": (lambda x: F.gelu(x, approximate="cubic"), (2, 3)),
    "prelu_channels": (lambda x: F.prelu(x, torch.ones(3)), (2, 4)),
    "prelu_channels_of_x": (lambda x: F.prelu(M4, x), (3,)),
    "attention_mask_and_causal": (
        lambda x: F.scaled_dot_product_attention(x, x, x, M4, is_causal=True),
        (2, 4, 3),
    ),
    "attention_features": (lambda x: F.scaled_dot_product_attention(x, x[..., :2], x), (2, 4, 3)),
    "attention_positions": (lambda x: F.scaled_dot_product_attention(x, x, x[:, :3]), (2, 4, 3)),
    "attention_vector": (lambda x: F.scaled_dot_product_attention(x[0, 0], x, x), (2, 4, 3)),
    "attention_dtypes": (lambda x: F.scaled_dot_product_attention(x, x.double(), x), (2, 4, 3)),
    "mm_batches": (lambda x: torch.mm(x, x), (2, 4, 4)),
    "mm_vector": (lambda x: torch.mm(x, V4), (4, 4)),
    "bmm_matrices": (lambda x: torch.bmm(x, x), (4, 4)),
    "bmm_broadcasts": (lambda x: torch.bmm(x, x[:1]), (2, 4, 4)),
    "mv_matrix": (lambda x: x.mv(M4), (4, 4)),
    "dot_matrix": (lambda x: torch.dot(x, M4), (4,)),
    "addmm_too_large": (lambda x: torch.addmm(x, M4, M4), (2, 4, 4)),
    "addmm_batches": (lambda x: torch.addmm(M4, x, x), (2, 4, 4)),
    "linear_bias": (lambda x: F.linear(M4, M4, x), (3,)),
    "linear_bias_too_large": (lambda x: F.linear(M4, M4, x), (2, 4, 4)),
    "bilinear_rows": (lambda x: F.bilinear(x, M4[:1], torch.ones(2, 4, 4)), (4, 4)),
    "bilinear_features": (lambda x: F.bilinear(x, M4, torch.ones(2, 1, 4)), (4, 4)),
    "masked_fill_vector": (lambda x: V4.masked_fill(V4 > 0, x), (1,)),
    "index_fill_vector": (lambda x: V4.index_fill(0, torch.tensor([1]), x), (1,)),
    "cat_of_numbers": (lambda x: torch.cat([x, x]), ()),
    "transpose_of_a_number": (lambda x: x.transpose(0, 1), ()),
    "channels_last_of_a_matrix": (
        lambda x: x.contiguous(memory_format=torch.channels_last),
        (2, 3),
    ),
    "embedding_of_a_vector": (lambda x: F.embedding(torch.tensor([1]), x, padding_idx=9), (3, 2)),
    "pixel_shuffle_channels": (lambda x: F.pixel_shuffle(x, 2), (1, 3, 2, 2)),
    "channel_shuffle_groups": (lambda x: torch.channel_shuffle(x, 3), (1, 4, 2, 2)),
    "max_pool_kernel": (lambda x: F.max_pool2d(x, 5), (1, 1, 3, 3)),
    "avg_pool_rank": (lambda x: F.avg_pool2d(x, 2), (4, 4)),
    "conv_rank": (lambda x: F.conv2d(x, torch.ones(2, 3, 1, 1)), (1, 1, 3, 2, 2)),
    "interpolate_rank": (lambda x: F.interpolate(x, 4, mode="bilinear"), (1, 2, 3)),
    "pad_too_wide": (lambda x: F.pad(x, (5, 5), mode="reflect"), (1, 2, 3)),
    "dropout_probability": (lambda x: F.dropout(x, 1.5), (2, 3)),
    "softmax_dim": (lambda x: x.softmax(2), (2, 3)),
    "expand_size": (lambda x: x.expand(2, 4), (2, 3)),
    "reshape_size": (lambda x: x.reshape(4, 2), (2, 3)),
    "repeat_too_few": (lambda x: x.repeat(2), (2, 3)),
    "permute_twice": (lambda x: x.permute(0, 0), (2, 3)),
    "add_size": (lambda x: x + V4, (3,)),
    "where_size": (lambda x: torch.where(x > 0, x, V4), (3,)),
    "solve_rectangle": (lambda x: torch.linalg.solve(x, x), (2, 3)),
    "det_rectangle": (lambda x: torch.linalg.det(x), (2, 3)),
    "einsum_size": (lambda x: torch.einsum("ij,jk->ik", x, M4), (2, 3)),
    "stack_sizes": (lambda x: torch.stack([x, M4]), (2, 3)),
    "index_size": (lambda x: x[5], (2, 3)),
    "setitem_size": (lambda x: x.sin().__setitem__(0, V4), (2, 3)),
    "unflatten_size": (lambda x: x.unflatten(1, (2, 2)), (2, 3)),
    "chunk_dim": (lambda x: x.chunk(2, 3)[0], (2, 3)),
    "narrow_length": (lambda x: x.narrow(1, 1, 4), (2, 3)),
    "tril_vector": (lambda x: x.tril(), (3,)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_as_by_pytorch(name: str) -> None:
    function, shape = REFUSED[name]
    x = point(shape, torch.float32)
    try:
        function(x)
    except Exception as error:
        plain = type(error)
    else:
        pytest.skip("this PyTorch accepts it")
    with pytest.raises(plain):
        jvps(function, x, tangents_of(x, 2))


def regular(x: Tensor) -> Tensor:
    return x[:, :, :4] + 5 * torch.eye(4, dtype=x.dtype)


WHOLE: dict[str, Callable[[Tensor], Tensor]] = {
    "solve": lambda x: torch.linalg.solve(regular(x), x),
    "solve_vectors": lambda x: torch.linalg.solve(regular(x), x[:, :, 0]),
    "solve_right": lambda x: torch.linalg.solve(regular(x), x.mT, left=False),
    "det": lambda x: torch.linalg.det(regular(x)) + torch.det(-regular(x)[:, [1, 0, 2, 3]]),
    "slogdet": lambda x: torch.slogdet(regular(x)).logabsdet,
    "logdet": lambda x: (regular(x) @ regular(x).mT).logdet(),
    "householder": lambda x: torch.linalg.householder_product(x[..., :3], x[:, 0, :2]),
    "index_fill": lambda x: C.index_fill(1, torch.tensor([0, 2]), x[0, 0, 0]),
    "group_norm": lambda x: F.group_norm(x, 2, x[0, :, 0]),
    "layer_norm": lambda x: F.layer_norm(x, (9,), x[0, 0]),
}


@pytest.mark.parametrize("name", WHOLE)
def test_gradients_of_the_whole_model(name: str) -> None:
    """On the way of models that dual tensors can't pass through, functions are right as well."""
    function, x = WHOLE[name], point(SEQUENCE).requires_grad_()
    vs = tangents_of(x.detach(), 2).requires_grad_()

    def call(x: Tensor, vs: Tensor) -> tuple[Tensor, Tensor]:
        return whole_model(Call("jvps", function), x, vs)

    torch.testing.assert_close(call(x, vs), jvps(function, x, vs))
    assert torch.autograd.gradcheck(call, [x, vs], fast_mode=True)
