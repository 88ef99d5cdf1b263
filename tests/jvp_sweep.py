"""fastscore.jvps on PyTorch's own databases of operators and modules: cases, oracles, verdicts.

A case is one call of an operator (as a function, a method, or in place) or module on one of the
database's samples, with respect to one of its floating-point arguments or to all of them. What it
is compared with does not lean on forward mode, which the rules themselves use: the value with the
plain call, the tangents with reverse mode (<u, J v> = <J'u, v>), the gradients through output and
tangents with differences in float64. Where these disagree, which at a kink or a tie they may,
PyTorch's own tangents (forward mode, reverse mode twice) have the last word.
"""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jvp_checks import reverse_twice, weighted_sum
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from fastscore.derivatives.forward import jvps
from fastscore.derivatives.forward.tensor import DualTensor

COUNT = 2  # tangents a call
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def databases() -> tuple[list[Any], list[Any]]:
    """PyTorch's operators and modules. The import, which takes 7 s, changes global state."""
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

    torch.backends.__allow_nonbracketed_mutation_flag = True
    return op_db, module_db


@dataclass
class Case:
    """A function of floating-point tensors, where to take its derivative, and its name."""

    operator: str
    variant: str  # function, method, in place, module
    number: int  # of the sample
    wrt: str  # "all", or the number of the argument
    function: Callable[..., Any]  # of all leaves
    leaves: list[Any]
    at: list[int]  # the leaves that x holds
    process: Callable[[Any], Any] = lambda result: result
    parameters: list[Tensor] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.operator} {self.variant} sample {self.number} by {self.wrt}"

    @property
    def x(self) -> Tensor:
        tensors = [self.leaves[i].detach() for i in self.at]
        if len(tensors) == 1:
            return tensors[0].clone()
        return torch.cat([t.reshape(-1) for t in tensors])

    def __call__(self, x: Tensor, raw: list[Any] | None = None) -> Tensor:
        """All floating-point results in one vector; the results themselves go to ``raw``."""
        leaves = [t.clone() if isinstance(t, Tensor) else t for t in self.leaves]
        if len(self.at) == 1:
            leaves[self.at[0]] = x
        else:
            pieces = x.split([self.leaves[i].numel() for i in self.at])
            for i, piece in zip(self.at, pieces, strict=True):
                leaves[i] = piece.reshape(self.leaves[i].shape)
        seed()
        result = self.function(leaves)
        if raw is not None:
            raw.append(result)
        flat = [r for r in tree_flatten(self.process(result))[0] if is_smooth(r)]
        flat = [torch.view_as_real(r.resolve_conj()) if r.is_complex() else r for r in flat]
        return torch.cat([r.reshape(-1) for r in flat]) if flat else x.new_zeros(0)


def is_smooth(x: Any) -> bool:
    if not isinstance(x, Tensor) or x.layout != torch.strided:
        return False
    return x.is_floating_point() or x.is_complex()


def seed() -> None:
    """Without torch.manual_seed, which formats the stack for each backend that is not there."""
    torch.default_generator.manual_seed(0)


def seed_all() -> None:
    seed()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  the databases draw from it


def operator_cases(op: Any, dtype: torch.dtype, samples: int | None = None) -> Iterator[Case]:
    """Every case of an operator, from its first ``samples`` samples."""
    if not op.supports_dtype(dtype, "cpu") or "empty" in op.name:
        return
    seed_all()
    variants = {
        "function": partial(op.gradcheck_wrapper, op.op),
        "method": op.method_variant and partial(op.gradcheck_wrapper, op.method_variant),
        "in place": op.inplace_variant,
    }
    inputs = itertools.islice(
        op.sample_inputs("cpu", dtype, requires_grad=op.supports_autograd), samples
    )
    for number, sample in enumerate(inputs):
        leaves, spec = tree_flatten((sample.input, sample.args, sample.kwargs))
        leaves = [t.detach() if isinstance(t, Tensor) else t for t in leaves]
        for variant, function in variants.items():
            if function is None or (variant == "in place" and sample.broadcasts_input):
                continue
            if variant != "function" and not isinstance(sample.input, Tensor):
                continue

            copies = variant == "in place"

            def call(
                values: list[Any], f: Any = function, spec: Any = spec, copies: bool = copies
            ) -> Any:
                first, args, kwargs = tree_unflatten(values, spec)
                return f(first.clone() if copies else first, *args, **kwargs)

            process = sample.output_process_fn_grad
            for wrt, at in choices(leaves, dtype):
                name = op.formatted_name
                yield Case(name, variant, number, wrt, call, leaves, at, process)


def module_cases(info: Any, dtype: torch.dtype, samples: int | None = None) -> Iterator[Case]:
    """Every case of a module, in evaluation and in training mode."""
    if dtype not in info.dtypes or "Lazy" in info.name:
        return
    for training in (False, True):
        seed_all()
        inputs = info.module_inputs_func(info, "cpu", dtype, False, training)
        for number, sample in enumerate(itertools.islice(inputs, samples)):
            if sample.forward_input is None:
                continue
            made = sample.constructor_input
            seed_all()
            module = info.module_cls(*made.args, **made.kwargs).to(dtype).train(training)
            given = sample.forward_input
            leaves, spec = tree_flatten((given.args, given.kwargs))
            leaves = [t.detach() if isinstance(t, Tensor) else t for t in leaves]
            state = {name: t.clone() for name, t in module.state_dict().items()}

            def call(
                values: list[Any], module: Any = module, spec: Any = spec, state: Any = state
            ) -> Any:
                args, kwargs = tree_unflatten(values, spec)
                current = {name: t.clone() for name, t in state.items()}  # statistics change
                return torch.func.functional_call(module, current, args, kwargs)

            for wrt, at in choices(leaves, dtype):
                kind = "module in training" if training else "module"
                yield Case(info.name, kind, number, wrt, call, leaves, at)


def operator_errors(op: Any) -> Iterator[tuple[Case, type]]:
    """Calls that PyTorch refuses, and what it raises."""
    seed_all()
    try:
        errors = list(op.error_inputs("cpu"))
    except (NotImplementedError, TypeError):
        return
    for number, error in enumerate(errors):
        sample = error.sample_input
        leaves, spec = tree_flatten((sample.input, sample.args, sample.kwargs))
        leaves = [t.detach() if isinstance(t, Tensor) else t for t in leaves]

        def call(values: list[Any], spec: Any = spec) -> Any:
            first, args, kwargs = tree_unflatten(values, spec)
            return op.op(first, *args, **kwargs)

        for i, x in enumerate(leaves):
            if is_smooth(x) and x.is_floating_point():
                name = op.formatted_name
                yield Case(name, "error", number, str(i), call, leaves, [i]), error.error_type


def check_error(case: Case, expected: type) -> list[str]:
    """Whether our call raises what the plain call does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            case(case.x)
        except Exception as error:
            expected = type(error)
        else:  # it does not, in this build
            return []
        try:
            jvps(case, case.x, torch.ones((COUNT, *case.x.shape), dtype=case.x.dtype))
        except expected:
            return []
        except Exception as error:
            return [f"errors: {type(error).__name__} for {expected.__name__}: {error}"[:200]]
        return [f"errors: accepted, {expected.__name__} by PyTorch"]


def choices(leaves: list[Any], dtype: torch.dtype) -> Iterator[tuple[str, list[int]]]:
    """Each floating-point argument, then all together."""
    each = [i for i, x in enumerate(leaves) if is_smooth(x) and x.is_floating_point()]
    for i in each:
        yield str(i), [i]
    together = [i for i in each if leaves[i].dtype == dtype]
    if len(together) > 1:
        yield "all", together


def check(case: Case) -> list[str]:
    """What is wrong: of raises, value, tangents, gradients."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # whose padded positions are 0: not the model's
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Check(case).problems()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class Check:
    def __init__(self, case: Case) -> None:
        self.case = case
        self.x = case.x
        self.exact = self.x.dtype == torch.float64
        self.eps = torch.finfo(self.x.dtype).eps
        generator = torch.Generator().manual_seed(1)
        shape = (COUNT, *self.x.shape)
        self.vs = torch.randn(shape, generator=generator).to(self.x.dtype)
        self.generator = generator

    def problems(self) -> list[str]:
        plain: list[Any] = []
        try:
            value = self.case(self.x, plain)
        except Exception:  # nothing to compare with
            return []
        raw: list[Any] = []
        x, vs = self.x.clone().requires_grad_(), self.vs.clone().requires_grad_()
        try:
            output, tangents = jvps(lambda x: self.case(x, raw), x, vs)
        except Exception as error:
            if self.oracles_refuse():
                return []
            return [f"raises: {type(error).__name__}: {str(error).splitlines()[0][:150]}"]
        found = self.compare_values(plain[0], raw[-1])
        value = value.detach()
        if output.shape != value.shape or output.dtype != value.dtype:
            return [*found, f"value: {output.shape}, {output.dtype}"]
        wrong = self.compare_tangents(tangents.detach())
        if wrong:
            return [*found, wrong]
        if self.exact:
            wrong = self.compare_gradients(x, vs, output, tangents)
            if wrong:
                found.append(wrong)
        return found

    def oracles_refuse(self) -> bool:
        """Whether PyTorch refuses too: in reverse mode, or both in forward mode and twice."""
        for oracle in (self.by_reverse, self.by_reverse_twice):
            try:
                oracle()
            except Exception:  # whatever they can't do
                if oracle == self.by_reverse:
                    return True
                try:
                    self.by_forward()
                except Exception:
                    return True
        return False

    def compare_values(self, plain: Any, ours: Any) -> list[str]:
        want, got = tree_flatten(plain)[0], tree_flatten(ours)[0]
        if len(want) != len(got):
            return ["value: another structure"]
        exact = [None] * len(want) if self.exact else self.values_in_float64()
        for a, b, c in itertools.zip_longest(want, got, exact):
            wrong = self.compare_value(a, b, c)
            if wrong:
                return [f"value: {wrong}"]
        return []

    def in_float64(self) -> Case:
        wide = [x.double() if is_smooth(x) and not x.is_complex() else x for x in self.case.leaves]
        return replace(self.case, leaves=wide)

    def values_in_float64(self) -> list[Any]:
        raw: list[Any] = []
        try:
            self.in_float64()(self.x.double(), raw)
        except Exception:  # PyTorch's for these arguments together
            return []
        return tree_flatten(raw)[0]

    def compare_value(self, want: Any, got: Any, exact: Any) -> str | None:
        if not isinstance(want, Tensor):
            return None if type(want) is type(got) else f"{type(got)}"
        if isinstance(got, DualTensor):
            got = got.primal
        if got.shape != want.shape or got.dtype != want.dtype:
            return f"{tuple(got.shape)} {got.dtype} for {tuple(want.shape)} {want.dtype}"
        if want.layout != torch.strided:
            return None
        if self.exact or not want.is_floating_point():
            return None if close(got, want, 1e-9) else "differs"
        roundings = (
            4 if self.eps > 1e-4 else 32
        )  # few in half precision, as layers add up in float32
        if close(got, want, roundings * eps_of(want)):
            return None
        if exact is None or exact.shape != want.shape:
            return "differs"
        exact = exact.double()
        errors = [float((y.double() - exact).nan_to_num().abs().max()) for y in (got, want)]
        return f"error {errors[0]} for {errors[1]}" if errors[0] > 2 * errors[1] else None

    # Tangents.

    def compare_tangents(self, ours: Tensor) -> str | None:
        if ours.numel() == 0:
            return None
        if not self.exact and self.agrees_with_float64(ours):
            return None
        answers = []
        oracles = (self.by_reverse, self.by_forward, self.by_reverse_twice, self.by_differences)
        for oracle in oracles:
            try:
                expected = oracle()
            except Exception:  # whatever PyTorch can't do
                continue
            if oracle == self.by_reverse:
                u, products = expected
                got = torch.stack([(t * u).nan_to_num().sum() for t in ours])
                scale = torch.stack([(t * u).nan_to_num().abs().sum() for t in ours])
                tolerance = 1e-9 if self.exact else 16 * self.eps
                agrees = bool(((got - products).abs() <= tolerance * (scale + 1)).all())
            elif oracle == self.by_differences:
                agrees = any(close(ours, each, 1e-5) for each in expected)
            else:
                agrees = close(ours, expected, 1e-9 if self.exact else 8 * self.eps)
            if agrees:
                return None
            answers.append(oracle.__name__)
        return f"tangents: not as {', '.join(answers)}" if answers else None

    def agrees_with_float64(self, ours: Tensor) -> bool:
        """Whether the tangents are those of float64 arguments, about as nearly as PyTorch's."""
        case = self.in_float64()
        try:
            exact = jvps(case, self.x.double(), self.vs.double())[1].to(torch.float64)
        except Exception:  # PyTorch's for these arguments together
            return False
        tolerance = 8 * self.eps
        if close(ours.double(), exact, tolerance):
            return True
        try:
            theirs = self.by_forward().double()
        except Exception:
            return False
        error = 2 * float((theirs - exact).nan_to_num().abs().max())
        scale = max(1.0, float(exact.nan_to_num().abs().max()))
        return close(ours.double(), exact, tolerance + error / scale)

    def by_reverse(self) -> tuple[Tensor, Tensor]:
        x = self.x.clone().requires_grad_()
        output = self.case(x)
        u = torch.randn(output.shape, generator=torch.Generator().manual_seed(5)).to(output.dtype)
        if not output.requires_grad:
            return u, u.new_zeros(COUNT)
        (pulled,) = torch.autograd.grad(
            (output * u).nan_to_num().sum(), x, allow_unused=True, materialize_grads=True
        )
        return u, torch.stack([(pulled * v).sum() for v in self.vs])

    def by_forward(self) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return torch.stack([torch.func.jvp(self.case, (self.x,), (v,))[1] for v in self.vs])

    def by_reverse_twice(self) -> Tensor:
        return reverse_twice(self.case, self.x.clone().requires_grad_(), self.vs)[1].detach()

    def by_differences(self, h: float = 1e-6) -> tuple[Tensor, ...]:
        if not self.exact:
            raise NotImplementedError
        value = self.case(self.x)
        ends = [[self.case(self.x + s * h * v) for v in self.vs] for s in (1, -1)]
        after, before = (torch.stack(end) for end in ends)
        # Both, and either side alone, of a jump.
        return (after - before) / (2 * h), (after - value) / h, (value - before) / h

    # Gradients through output and tangents.

    def compare_gradients(
        self, x: Tensor, vs: Tensor, output: Tensor, tangents: Tensor
    ) -> str | None:
        scalar = weighted_sum(output, tangents)
        if not scalar.isfinite() or self.is_constant():
            return None
        if not scalar.requires_grad:
            grads = [torch.zeros_like(x), torch.zeros_like(vs)]
        else:
            try:
                grads = list(
                    torch.autograd.grad(scalar, [x, vs], allow_unused=True, materialize_grads=True)
                )
            except Exception as error:
                first = str(error).splitlines()[0][:150]
                try:
                    self.gradients_twice()
                except Exception:
                    return None
                return f"gradients: {type(error).__name__}: {first}"
        directions = [
            torch.randn(t.shape, dtype=t.dtype, generator=self.generator) for t in (x, vs)
        ]
        ours = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
        if not ours.isfinite():
            return None if self.not_finite_either() else "gradients: not finite"
        scale = 1 + sum(g.norm() * d.norm() for g, d in zip(grads, directions, strict=True))
        quotients = []
        for h in (1e-5, 2e-4, 1e-4, 1e-6):
            ends = [
                self.scalar_at(x + s * h * directions[0], vs + s * h * directions[1])
                for s in (1, -1)
            ]
            quotients.append((ends[0] - ends[1]) / (2 * h))
            if (ours - quotients[-1]).abs() <= 1e-5 * scale:
                return None
        extrapolated = (4 * quotients[2] - quotients[1]) / 3
        if (ours - extrapolated).abs() <= 1e-5 * scale:
            return None
        try:
            expected = self.gradients_twice()
        except Exception:
            return f"gradients: {float(ours):.6g} for {float(quotients[0]):.6g}"
        if all(close(a, b, 1e-7) for a, b in zip(grads, expected, strict=True)):
            return None
        return f"gradients: {float(ours):.6g} for {float(quotients[0]):.6g}"

    def scalar_at(self, x: Tensor, vs: Tensor) -> Tensor:
        """What is differentiated; NaN where the function is not defined."""
        try:
            return weighted_sum(*jvps(self.case, x.detach(), vs.detach())).detach()
        except Exception:
            return torch.tensor(torch.nan)

    def is_constant(self) -> bool:
        """Whether PyTorch takes the result for a constant."""
        try:
            return not self.case(self.x.clone().requires_grad_().clone()).requires_grad
        except Exception:  # there is no backward
            return False

    def gradients_twice(self) -> list[Tensor]:
        x, vs = self.x.clone().requires_grad_(), self.vs.clone().requires_grad_()
        scalar = weighted_sum(*reverse_twice(self.case, x, vs))
        return list(torch.autograd.grad(scalar, [x, vs], allow_unused=True, materialize_grads=True))

    def not_finite_either(self) -> bool:
        try:
            return not all(g.isfinite().all() for g in self.gradients_twice())
        except Exception:
            return True


def eps_of(x: Tensor) -> float:
    return torch.finfo(x.dtype).eps if x.is_floating_point() or x.is_complex() else 0.0


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """To the tolerance, relative to the largest entry or 1; NaN and infinities where b has them."""
    if a.shape != b.shape:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    finite = b[b.isfinite()]
    scale = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
    return torch.allclose(a.to(b.dtype), b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
