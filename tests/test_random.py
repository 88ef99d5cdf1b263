"""Philox, the random fills and the public random functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from helpers import (
    DTYPES,
    LAYOUTS,
    RAGGED_SIZES,
    TINY_ALPHA,
    assert_same_bytes,
    known_answers,
    make_key,
    ragged_shapes,
    with_layout,
)
from torch import Tensor

import fastscore
from fastscore import ops, random, reference
from fastscore._support.streams import Stream
from fastscore.reference import random as reference_random

FILLS = ("normal_", "uniform_", "rademacher_")
# The logarithm, cos and sin are within 2 units in the last place. A normal is the product of a
# square root and one of the latter: half the first error, the second, and two roundings.
POLYNOMIAL_ULPS, NORMAL_ULPS = 2, 4
KEYS = ((0, 0), (1, 0), (-1, 7), (2**62 + 12345, 2**31 + 5), (-(2**63), 2**32 - 1))


def ulps(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Error in float32 units in the last place of the exact value."""
    unit = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return np.abs(got.astype(np.float64) - exact) / unit


def exact_normals(words: np.ndarray) -> np.ndarray:
    """Float64 normals of pairs of words, shape (n, 2)."""
    even, odd = torch.from_numpy(words.astype(np.int64)).unbind(-1)
    return torch.stack(reference_random.normal_from_words(even, odd), dim=-1).numpy()


def fill(name: str, shape: tuple[int, ...], key: Tensor, **options: object) -> Tensor:
    """A float32 tensor filled by the op of that name."""
    return getattr(ops, name)(torch.empty(shape, device=key.device), key, **options)


# ---- known answers ---------------------------------------------------------------------------


def test_streams_have_their_numbers() -> None:
    assert fastscore.random.Stream is Stream
    names = [stream.name for stream in sorted(Stream)]
    assert names == [
        "USER", "LANGEVIN", "PERTURB", "PROJECTION", "LABEL", "INIT", "TIME", "DROP",
        "DEQUANTIZE", "MEASURE",
    ]  # fmt: skip
    assert [int(stream) for stream in sorted(Stream)] == list(range(10))


@pytest.mark.parametrize("row", known_answers())
def test_reference_philox_known_answers(row: list[int]) -> None:
    words = [torch.tensor(word) for word in row]
    got = reference_random.philox4x32(tuple(words[:4]), tuple(words[4:6]))
    assert [int(word) for word in got] == row[6:]


@pytest.mark.parametrize("row", known_answers())
def test_compiled_philox_known_answers(row: list[int]) -> None:
    counter, key = np.array(row[:4], np.uint32), np.array(row[4:6], np.uint32)
    assert fastscore._C.philox4x32(counter, key).tolist() == row[6:]


def test_zero_key_gives_the_published_words(device: torch.device) -> None:
    key = make_key(0, 0, device)
    words = np.array([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8], np.uint32)
    uniform = fill("uniform_", (4,), key, stream=Stream.USER, sample_offset=0)
    assert uniform.cpu().numpy().tolist() == ((words >> 8) * 2.0**-24).tolist()
    signs = fill("rademacher_", (128,), key, stream=Stream.USER, sample_offset=0)
    bits = np.packbits(signs.cpu().numpy() > 0, bitorder="little").view(np.uint32)
    assert bits.tolist() == words.tolist()


# ---- values against the reference ------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", ["uniform_", "rademacher_"])
def test_bits_equal_the_reference(name: str, key: tuple[int, int], device: torch.device) -> None:
    for shape in ragged_shapes():
        got = fill(name, shape, make_key(*key, device), stream=Stream.INIT, sample_offset=3)
        want = getattr(reference, name)(
            torch.empty(shape), make_key(*key), stream=Stream.INIT, sample_offset=3
        )
        assert_same_bytes(got.cpu(), want)


@pytest.mark.parametrize("key", KEYS)
def test_normals_are_accurate(key: tuple[int, int], device: torch.device) -> None:
    words = reference_random.random_words(
        make_key(*key), Stream.LANGEVIN, torch.arange(5_000)
    ).numpy()
    exact = exact_normals(words.reshape(-1, 2)).reshape(-1)
    for n in (*RAGGED_SIZES, exact.size):
        got = fill("normal_", (n,), make_key(*key, device), stream=Stream.LANGEVIN, sample_offset=0)
        assert ulps(got.cpu().numpy(), exact[:n]).max(initial=0) <= NORMAL_ULPS


def word_pairs(which: str) -> np.ndarray:
    """Pairs (radius word, angle word) to try the normals on, shape (n, 2)."""
    if which == "random":
        return np.random.default_rng(0).integers(0, 2**32, (1_500_000, 2), np.uint32)
    if which == "ends":
        step = np.arange(200_000, dtype=np.uint32)
        radius = np.concatenate([step, 0xFFFFFFFF - step])
        angle = np.concatenate([0x20000000 + 3 * step, 0x60000000 - 5 * step])
        return np.stack([radius, angle], axis=-1).astype(np.uint32)
    corners = [0, 2**31, 2**32 - 1, *(q * 2**29 for q in range(8)), *(2**n for n in range(32))]
    # Where the logarithm is small, and where its argument's reduction turns.
    corners += [int(2**32 * f) for f in (2**-0.5, 0.75, 2 / 3, 0.999, 1 - 2**-12, 1 - 2**-24)]
    edges = np.unique([(c + d) % 2**32 for c in corners for d in range(-9, 10)]).astype(np.uint32)
    return np.stack(np.meshgrid(edges, edges), axis=-1).reshape(-1, 2)


@pytest.mark.parametrize("which", ["random", "ends", "corners"])
def test_box_muller_is_accurate(which: str) -> None:
    words = word_pairs(which)
    log, cos, sin, normals = fastscore._C.box_muller_words(words)
    radius, angle = torch.from_numpy(words.astype(np.int64)).unbind(-1)
    exact_log = -2 * np.log((radius.numpy() + 0.5) * 2.0**-32)
    assert ulps(log, exact_log).max() <= POLYNOMIAL_ULPS
    exact_cos, exact_sin = (t.numpy() for t in reference_random.cos_sin_of_turn(angle))
    assert ulps(cos, exact_cos).max() <= POLYNOMIAL_ULPS
    assert ulps(sin, exact_sin).max() <= POLYNOMIAL_ULPS
    assert np.isfinite(normals).all()
    assert ulps(normals, exact_normals(words)).max() <= NORMAL_ULPS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FILLS)
def test_made_in_float32_then_converted(
    name: str, dtype: torch.dtype, device: torch.device
) -> None:
    key = make_key(5, 6, device)
    for n in RAGGED_SIZES:
        single = fill(name, (n,), key, stream=Stream.USER, sample_offset=1)
        out = torch.empty(n, dtype=dtype, device=device)
        getattr(ops, name)(out, key, stream=Stream.USER, sample_offset=1)
        assert_same_bytes(out, single.to(dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FILLS)
def test_any_memory_layout(name: str, layout: str, device: torch.device) -> None:
    key = make_key(5, 6, device)
    for shape in ((2, 3, 5, 7), (3, 16, 4, 4), (1, 1, 1, 1), (2, 0, 3, 3)):
        want = fill(name, shape, key, stream=Stream.USER, sample_offset=2)
        out = with_layout(torch.full(shape, torch.nan, device=device), layout)
        got = getattr(ops, name)(out, key, stream=Stream.USER, sample_offset=2)
        assert got is out
        assert_same_bytes(out, want)


@pytest.mark.parametrize("name", FILLS)
def test_writes_nothing_between_the_strides(name: str, device: torch.device) -> None:
    buffer = torch.full((5, 40), 7.0, device=device)
    getattr(ops, name)(
        buffer[1:4, 3:37:2], make_key(1, 0, device), stream=Stream.USER, sample_offset=0
    )
    untouched = torch.ones_like(buffer, dtype=torch.bool)
    untouched[1:4, 3:37:2] = False
    assert bool((buffer[untouched] == 7.0).all())
    assert not bool((buffer[~untouched] == 7.0).any())


# ---- where the numbers lie -------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(11,), (11, 3), (11, 1, 65), (11, 129), (11, 4, 32)])
@pytest.mark.parametrize("name", FILLS)
def test_a_shard_draws_what_the_whole_batch_draws(
    name: str, shape: tuple[int, ...], device: torch.device
) -> None:
    key = make_key(3, 1, device)
    whole = fill(name, shape, key, stream=Stream.USER, sample_offset=100)
    for cut in range(12):
        parts = [
            fill(name, (cut, *shape[1:]), key, stream=Stream.USER, sample_offset=100),
            fill(name, (11 - cut, *shape[1:]), key, stream=Stream.USER, sample_offset=100 + cut),
        ]
        assert_same_bytes(torch.cat(parts), whole)


@pytest.mark.parametrize("offset", [2**34 // 7, 2**36 + 1, 2**45 // 3, 2**50 - 3])
@pytest.mark.parametrize("name", FILLS)
def test_flat_indices_far_beyond_32_bits(name: str, offset: int, device: torch.device) -> None:
    shape = (5, 7)
    want = getattr(reference, name)(
        torch.empty(shape), make_key(4, 2), stream=Stream.USER, sample_offset=offset
    )
    got = fill(name, shape, make_key(4, 2, device), stream=Stream.USER, sample_offset=offset)
    torch.testing.assert_close(got.cpu(), want, rtol=5e-7, atol=0)


@pytest.mark.parametrize("name", FILLS)
def test_a_run_across_the_carry_into_the_high_word(name: str, device: torch.device) -> None:
    """Blocks on both sides of 2^32."""
    per_block = 128 if name == "rademacher_" else 4
    offset = per_block * 2**32 - 1003
    want = getattr(reference, name)(
        torch.empty(2006), make_key(4, 2), stream=Stream.USER, sample_offset=offset
    )
    got = fill(name, (2006,), make_key(4, 2, device), stream=Stream.USER, sample_offset=offset)
    torch.testing.assert_close(got.cpu(), want, rtol=5e-7, atol=0)


def test_the_draw_counts_modulo_2_to_the_32(device: torch.device) -> None:
    options = {"stream": Stream.USER, "sample_offset": 0}
    low = fill("uniform_", (100,), make_key(1, 5, device), **options)
    assert_same_bytes(fill("uniform_", (100,), make_key(1, 5 + 2**32, device), **options), low)


# ---- statistics ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 123456789012345])
def test_normals_are_normal(seed: int, device: torch.device) -> None:
    z = fastscore.random.normal(make_key(seed, 0, device), (1_000_003,)).cpu().double().numpy()
    assert scipy.stats.kstest(z, "norm").pvalue > TINY_ALPHA
    for part in (z[0::2], z[1::2]):
        assert scipy.stats.kstest(part, "norm").pvalue > TINY_ALPHA
    chi2 = z[0:-1:2] ** 2 + z[1::2] ** 2
    assert scipy.stats.kstest(chi2, scipy.stats.chi2(2).cdf).pvalue > TINY_ALPHA
    tails = np.array([(np.abs(z) > t).sum() for t in (3.0, 4.0)])
    expected = 2 * scipy.stats.norm.sf([3.0, 4.0]) * z.size
    assert (np.abs(tails - expected) < 5 * np.sqrt(expected)).all()


@pytest.mark.parametrize("seed", [0, 1, 123456789012345])
def test_uniforms_are_uniform(seed: int, device: torch.device) -> None:
    u = fastscore.random.uniform(make_key(seed, 0, device), (1_000_003,)).cpu().numpy()
    assert u.min() >= 0
    assert u.max() < 1
    assert scipy.stats.kstest(u, "uniform").pvalue > TINY_ALPHA


@pytest.mark.parametrize("seed", [0, 1, 123456789012345])
def test_rademacher_bits_are_fair_and_independent(seed: int, device: torch.device) -> None:
    v = fastscore.random.rademacher(make_key(seed, 0, device), (10_000, 128)).cpu().numpy()
    assert set(np.unique(v)) == {-1.0, 1.0}
    n = v.shape[0]
    bound = scipy.stats.norm.isf(TINY_ALPHA / (2 * 128 * 128))
    assert np.abs(v.sum(0)).max() < bound * np.sqrt(n)
    products = v.T @ v
    np.fill_diagonal(products, 0)
    assert np.abs(products).max() < bound * np.sqrt(n)


def test_neighbours_draws_streams_and_seeds_are_uncorrelated(device: torch.device) -> None:
    n = 500_000
    options = {"stream": Stream.USER, "sample_offset": 0}
    keys = [(9, 0), (9, 1), (10, 0), (9 + 2**32, 0), (9, 2**31)]
    columns = [fill("normal_", (n,), make_key(*key, device), **options) for key in keys]
    columns += [
        fill("normal_", (n,), make_key(9, 0, device), stream=stream, sample_offset=0)
        for stream in Stream
        if stream != Stream.USER
    ]
    first = columns[0]
    columns += [first.roll(lag) for lag in (1, 2, 3, 4, 8, 16, 64)]
    z = torch.stack(columns).double().cpu()
    for power in (1, 2):  # squares too: Box-Muller pairs share a radius, but not its value
        y = z**power
        correlation = torch.corrcoef(y).fill_diagonal_(0)
        assert float(correlation.abs().max()) < 5.5 / n**0.5


# ---- the public functions --------------------------------------------------------------------


PUBLIC = {"normal_": "normal", "uniform_": "uniform", "rademacher_": "rademacher"}


@pytest.mark.parametrize("name", FILLS)
def test_public_functions_are_the_ops(name: str, device: torch.device) -> None:
    public = getattr(fastscore.random, PUBLIC[name])
    key = fastscore.random.key(11, draw=4, device=device)
    assert_same_bytes(key, make_key(11, 4, device))
    for dtype in DTYPES:
        got = public(key, (3, 5), dtype=dtype, stream=Stream.INIT, sample_offset=2)
        want = torch.empty(3, 5, dtype=dtype, device=device)
        getattr(ops, name)(want, key, stream=Stream.INIT, sample_offset=2)
        assert got.device == key.device
        assert_same_bytes(got, want)
    assert public(key, (0, 5)).shape == (0, 5)
    assert_same_bytes(public(key, (7,)), fill(name, (7,), key, stream=Stream.USER, sample_offset=0))


def test_key_draws_its_seed_from_torch() -> None:
    torch.manual_seed(3)
    first, second = fastscore.random.key(), fastscore.random.key()
    torch.manual_seed(3)
    assert torch.equal(fastscore.random.key(), first)
    assert not torch.equal(first, second)
    generator = torch.Generator().manual_seed(5)
    state = torch.get_rng_state()
    mine = fastscore.random.key(generator=generator)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(mine, fastscore.random.key(generator=torch.Generator().manual_seed(5)))
    assert mine.dtype == torch.int64
    assert mine.shape == (2,)
    assert int(mine[1]) == 0


def test_key_takes_any_64_bit_seed() -> None:
    assert fastscore.random.key(-5).tolist() == [-5, 0]
    assert fastscore.random.key(2**63 - 1, draw=3).tolist() == [2**63 - 1, 3]


def test_a_fixed_seed_leaves_torchs_generator_alone() -> None:
    state = torch.get_rng_state()
    fastscore.random.normal(fastscore.random.key(1), (10,))
    assert torch.equal(torch.get_rng_state(), state)


# ---- what PyTorch must know ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random_normal_", "random_uniform_", "random_rademacher_"])
def test_opcheck(name: str, device: torch.device) -> None:
    op = getattr(torch.ops.fastscore, name).default
    for shape in ((4, 5), (0,), (3, 2, 2, 2)):
        out = torch.empty(shape, device=device)
        torch.library.opcheck(op, (out, make_key(1, 2, device), int(Stream.USER), 3))


@pytest.mark.parametrize("name", FILLS)
def test_autograd_notices_the_fill(name: str, device: torch.device) -> None:
    x = torch.ones(3, device=device)
    weight = torch.ones_like(x).requires_grad_()
    product = (weight * x).sum()  # saves x
    getattr(ops, name)(x, make_key(1, 0, device), stream=Stream.USER, sample_offset=0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_compile_fullgraph(device: torch.device) -> None:
    def noisy(x: Tensor, key: Tensor) -> Tensor:
        return x + fastscore.random.normal(key, x.shape, stream=Stream.USER)

    compiled = torch.compile(noisy, fullgraph=True, backend="aot_eager")
    x = torch.ones(6, 5, device=device)
    for draw in (0, 1):
        key = make_key(2, draw, device)
        assert_same_bytes(compiled(x, key), noisy(x, key))


def test_messages_name_the_function_that_was_called() -> None:
    x, sigmas = torch.zeros(3, 2), [1.0, 0.5]
    with pytest.raises(TypeError, match=r"^annealed_langevin: seed must be"):
        fastscore.annealed_langevin(lambda x, s: -x, sigmas, x, seed="a")
    with pytest.raises(TypeError, match=r"^dsm_loss: generator must be"):
        fastscore.dsm_loss(lambda x, s: -x, x, sigmas, generator=3)
    with pytest.raises(ValueError, match=r"^normal: stream must be"):
        fastscore.random.normal(fastscore.random.key(0), (2, 2), stream=-1)


# ---- seeds in place of keys ---------------------------------------------------------------------


@pytest.mark.parametrize("draw", [random.normal, random.uniform, random.rademacher])
def test_a_seed_in_place_of_a_key(draw: Any) -> None:
    of_key = draw(random.key(5), (4, 3))
    for got in (
        draw((4, 3), seed=5),
        draw(shape=(4, 3), seed=5),
        draw(torch.Size([4, 3]), seed=5),
        draw(key=random.key(5), shape=(4, 3)),
    ):
        assert_same_bytes(got, of_key)
    assert_same_bytes(draw((2, 3), seed=5, sample_offset=2), of_key[2:])
    assert_same_bytes(draw((2, 3), seed=[9, 5])[1:], of_key[:1])
    assert draw((4, 3), seed=5, dtype=torch.float64).dtype == torch.float64
    torch.manual_seed(0)
    first = draw((64, 3))
    assert not torch.equal(first, draw((64, 3)))  # a seed from PyTorch's generator
    torch.manual_seed(0)
    assert_same_bytes(draw((64, 3)), first)
    of_generator = [draw((64, 3), generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert_same_bytes(*of_generator)


def test_a_key_and_a_seed_exclude_one_another() -> None:
    for name, value in {
        "seed": 1,
        "generator": torch.Generator(),
        "device": "cpu",
    }.items():
        with pytest.raises(ValueError, match=f"normal: {name} must be None when key is given"):
            random.normal(random.key(0), (2, 2), **{name: value})
    with pytest.raises(TypeError, match="normal: shape must be a sequence of integers"):
        random.normal(seed=0)
    with pytest.raises(TypeError, match="normal: shape must be a sequence of integers"):
        random.normal(4, seed=0)
    with pytest.raises(ValueError, match=r"^normal: seed must be .* for each of 2 samples, got 3"):
        random.normal((2, 2), seed=[1, 2, 3])
    with pytest.raises(ValueError, match=r"^normal: samples must be of shape \(2,\)"):
        random.normal((2, 2), seed=0, samples=torch.tensor([0]))
    with pytest.raises(TypeError, match="normal: there is no option 'sede'"):
        random.normal((2, 2), sede=0)
