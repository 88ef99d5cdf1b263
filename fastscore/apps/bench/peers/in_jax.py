"""JAX: every side one compiled function, chains by ``lax.scan``, state donated.

JAX runs on as many threads as PyTorch had when it was first used here; cases with another number
of threads go without it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from fastscore.apps.bench.case import NotAvailable, Side
from fastscore.nn import ScoreConvNet, ScoreMLP

Array = Any


@functools.cache
def _start() -> tuple[Any, int]:
    """The module, and the number of threads that its CPU client was made with."""
    threads = torch.get_num_threads()
    os.environ["NPROC"] = str(threads)  # read once, when the client is made
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    jax.devices()
    return jax, threads


def jax_on(device: str) -> Any:
    """The module ``jax``, with ``device`` for its default device.

    Raises:
        ImportError: it is not installed.
        NotAvailable: it has no such device, or its threads are not PyTorch's.
    """
    jax, threads = _start()
    if device == "cpu" and threads != torch.get_num_threads():
        raise NotAvailable(f"JAX runs with {threads} threads")
    try:
        jax.config.update("jax_default_device", jax.devices({"cuda": "gpu"}.get(device, device))[0])
    except RuntimeError as error:
        raise NotAvailable(f"JAX has no device {device}") from error
    return jax


def to_jax(x: Tensor) -> Array:
    """A copy of a tensor on JAX's default device."""
    import jax.numpy as jnp

    if x.dtype == torch.float64:
        raise NotAvailable("JAX computes in float32 unless told otherwise for the whole process")
    if x.dtype in (torch.bfloat16, torch.float16):
        name = str(x.dtype).removeprefix("torch.")
        return jnp.array(x.detach().float().cpu().numpy()).astype(name)
    return jnp.array(x.detach().cpu().numpy())


def to_torch(x: Array) -> Tensor:
    """A copy of an array on the CPU."""
    x = numpy.array(x.astype("float32") if x.dtype == "bfloat16" else x)
    return torch.from_numpy(x)


class Compiled:
    """A jitted function that keeps its first ``carried`` arguments from call to call."""

    def __init__(self, fn: Callable[..., Any], carried: Sequence[Array], *fixed: Array) -> None:
        import jax

        donate = tuple(range(len(carried)))
        lowered = jax.jit(fn, donate_argnums=donate).lower(*carried, *fixed)
        self.call = lowered.compile()
        # Donated buffers are gone after the call: they must not be the caller's.
        self.carried, self.fixed = [jax.numpy.array(x) for x in carried], fixed
        self.out: Any = None

    def __call__(self) -> None:
        *self.carried, self.out = self.call(*self.carried, *self.fixed)

    def wait(self) -> None:
        import jax

        jax.block_until_ready((self.carried, self.out))

    def memory(self) -> int:
        """Of results and temporaries, as the compiler planned it."""
        plan = self.call.memory_analysis()
        new = plan.output_size_in_bytes - plan.alias_size_in_bytes
        return new + plan.temp_size_in_bytes

    def side(self, check: Callable[[], Any] | None) -> Side:
        return Side(self, check=check, wait=self.wait, memory=self.memory)


# ---- noise and Langevin ------------------------------------------------------------------------


def normal(key: Array, like: Array) -> Array:
    """Normals in the shape and dtype of ``like``.

    Drawn in float32: in half precision JAX takes no more random bits than fit, and what it draws is
    visibly not normal (no number beyond 2.7 in bfloat16).
    """
    import jax

    return jax.random.normal(key, like.shape, "float32").astype(like.dtype)


def fill(kind: str, out: Tensor) -> Compiled:
    """Normals, uniform numbers or signs in out's shape and dtype."""
    jax = jax_on(out.device.type)
    shape, dtype = tuple(out.shape), to_jax(out[:1]).dtype
    draw = getattr(jax.random, kind)

    def step(key: Array) -> Any:
        key, now = jax.random.split(key)
        return key, draw(now, shape, dtype="float32").astype(dtype)

    return Compiled(step, [jax.random.key(0)])


def langevin_step(x: Tensor, score: Tensor, b: float, c: float) -> Compiled:
    jax = jax_on(x.device.type)

    def step(x: Array, key: Array, score: Array) -> Any:
        key, now = jax.random.split(key)
        return x + b * score + c * normal(now, x), key, ()

    return Compiled(step, [to_jax(x), jax.random.key(0)], to_jax(score))


def langevin(x: Tensor, steps: int, alpha: float) -> Compiled:
    """Steps of size alpha on N(0, I), all in one ``lax.scan``."""
    jax = jax_on(x.device.type)

    def chain(key: Array, x: Array) -> Any:
        key, now = jax.random.split(key)

        def step(x: Array, key: Array) -> Any:
            return x - alpha * x + (2 * alpha) ** 0.5 * normal(key, x), None

        return key, jax.lax.scan(step, x, jax.random.split(now, steps))[0]

    return Compiled(chain, [jax.random.key(0)], to_jax(x))


def annealed_langevin(
    score: Callable[[Array, Array], Array], sigmas: list[float], x: Tensor, steps: int, size: float
) -> Compiled:
    """``steps`` steps at each level; ``score(x, sigma)`` with a scalar sigma."""
    jax = jax_on(x.device.type)
    levels = to_jax(torch.tensor(sigmas).repeat_interleave(steps))
    smallest = sigmas[-1]

    def chain(key: Array, x: Array) -> Any:
        key, now = jax.random.split(key)

        def step(x: Array, inputs: Any) -> Any:
            sigma, key = inputs
            alpha = size * (sigma / smallest) ** 2
            noise = jax.numpy.sqrt(2 * alpha) * normal(key, x)
            return x + alpha * score(x, sigma) + noise, None

        keys = jax.random.split(now, len(levels))
        return key, jax.lax.scan(step, x, (levels, keys))[0]

    return Compiled(chain, [jax.random.key(0)], to_jax(x))


# ---- losses ------------------------------------------------------------------------------------


def dsm_part(x: Tensor, output: Tensor, sigmas: Tensor) -> Compiled:
    """(x~, labels, loss, gradient with respect to the network's output)."""
    jax = jax_on(x.device.type)
    jnp = jax.numpy

    def step(key: Array, x: Array, output: Array, sigmas: Array) -> Any:
        key, for_labels, for_noise = jax.random.split(key, 3)
        labels = jax.random.randint(for_labels, x.shape[:1], 0, len(sigmas))
        sigma = sigmas[labels].reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
        z = normal(for_noise, x)

        def loss(output: Array) -> Array:
            return 0.5 * jnp.square(sigma * output + z).sum() / len(x)

        return key, (x + sigma * z, labels, *jax.value_and_grad(loss)(output))

    return Compiled(step, [jax.random.key(0)], to_jax(x), to_jax(output), to_jax(sigmas))


def sliced_terms(score: Tensor, jvp: Tensor, kind: str) -> tuple[Compiled, Callable[..., Any]]:
    """The compiled side, and its formula for projections that are given."""
    jax = jax_on(score.device.type)
    jnp = jax.numpy
    draw = {"rademacher": jax.random.rademacher, "gaussian": jax.random.normal}[kind]

    def terms(score: Array, jvp: Array, v: Array) -> Any:
        vjv, vs = (v * jvp).sum(-1), (v * score).sum(-1)
        return vjv, jnp.square(vs) / 2, jnp.square(score).sum(-1) / 2

    def step(key: Array, score: Array, jvp: Array) -> Any:
        key, now = jax.random.split(key)
        return key, terms(score, jvp, draw(now, jvp.shape, dtype=jvp.dtype))

    return Compiled(step, [jax.random.key(0)], to_jax(score), to_jax(jvp)), jax.jit(terms)


def dual(activation: str, h: Tensor, hdot: Tensor) -> Compiled:
    jax = jax_on(h.device.type)
    phi = functools.partial(jax.nn.gelu, approximate=False)
    phi = {"gelu": phi, "tanh": jax.numpy.tanh}.get(activation) or getattr(jax.nn, activation)

    def step(h: Array, hdot: Array) -> Any:
        return (jax.vmap(lambda t: jax.jvp(phi, (h,), (t,)), out_axes=(None, 0))(hdot),)

    return Compiled(step, [], to_jax(h), to_jax(hdot))


# ---- whole jobs over a multilayer perceptron ---------------------------------------------------


def weights(network: nn.Module) -> list[tuple[Array, Array]]:
    """(weight, bias) of the linear layers of a ScoreMLP."""
    return [
        (to_jax(layer.weight.T.contiguous()), to_jax(layer.bias))
        for layer in network.get_submodule("layers").children()
        if isinstance(layer, nn.Linear)
    ]


def score_mlp(data_std: float) -> Callable[[Any, Array, Array], Array]:
    """ScoreMLP with softplus: ``score(weights, x, sigma)``, sigma a scalar or of shape (batch,)."""
    import jax
    import jax.numpy as jnp

    def score(layers: Any, x: Array, sigma: Array) -> Array:
        sigma = jnp.broadcast_to(sigma, x.shape[:1])[:, None]
        h = jnp.concatenate([x / jnp.sqrt(sigma**2 + data_std**2), jnp.log(sigma)], axis=1)
        for weight, bias in layers[:-1]:
            h = jax.nn.softplus(h @ weight + bias)
        weight, bias = layers[-1]
        return (h @ weight + bias) / sigma

    return score


def train_dsm(network: ScoreMLP | ScoreConvNet, x: Tensor, sigmas: Tensor, rate: float) -> Compiled:
    """A step of Adam on the loss of denoising score matching; gives the loss."""
    jax = jax_on(x.device.type)
    jnp = jax.numpy
    score = score_mlp(network.data_std)

    def loss(layers: Any, key: Array, x: Array, sigmas: Array) -> Array:
        for_labels, for_noise = jax.random.split(key)
        sigma = sigmas[jax.random.randint(for_labels, x.shape[:1], 0, len(sigmas))]
        z = normal(for_noise, x)
        output = score(layers, x + sigma[:, None] * z, sigma)
        return 0.5 * jnp.square(sigma[:, None] * output + z).sum(1).mean()

    def adam(p: Array, m: Array, v: Array, g: Array, t: Array) -> Any:
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        return p - rate * m / (1 - 0.9**t) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8), m, v

    layers = weights(network)
    flat, structure = jax.tree.flatten(layers)
    count = len(flat)

    def step(key: Array, t: Array, *arrays: Array) -> Any:
        *state, x, sigmas = arrays
        key, now = jax.random.split(key)
        p, m, v = (state[i * count : (i + 1) * count] for i in range(3))
        value, grads = jax.value_and_grad(loss)(structure.unflatten(p), now, x, sigmas)
        new = [adam(*each, t) for each in zip(p, m, v, jax.tree.leaves(grads), strict=True)]
        return key, t + 1, *(part for parts in zip(*new, strict=True) for part in parts), value

    zeros = [jnp.zeros_like(p) for p in flat]
    carried = [jax.random.key(0), jnp.ones(()), *flat, *zeros, *zeros]
    return Compiled(step, carried, to_jax(x), to_jax(sigmas))
