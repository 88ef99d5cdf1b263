"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastscore._support.checks import check_int, check_number, describe, fail, fail_type
from fastscore._support.wrappers import plain_name, said_by, unwrapped
from fastscore.nn._contents import Contents, Snapshot, contents, key_of, owner_of


class EMA:
    """Exponential moving average of weights (Song and Ermon 2020, Technique 5).

    After each optimiser step call :meth:`update`:
    ``average <- decay * average + (1 - decay) * weight``. After n updates the decay is at most
    (1 + n)/(10 + n), so that the start is soon forgotten.

    What is averaged: parameters of any shape and of floating-point or complex dtype, one that is
    shared once. Averages of weights of less than 32 bits (bfloat16, float16, float8) are kept in
    float32, for a thousandth of a difference is lost in them: ``module`` is then a float32
    network. What can't be averaged (integer, boolean and sparse parameters) and buffers, whatever
    their shape has become, are copied.

    A network may change during training: parameters that it has gained enter the average with
    their current value, those that it has lost leave it. ``module`` stays the same object, with
    new layers inside. Weights are known by themselves, or else by their names, without the wrappers
    of ``torch.compile`` and of data parallel training; so ``model`` may be wrapped, while
    ``module`` is the plain network.

    Args:
        model: the network being trained; not changed.
        decay: in [0, 1), 0.999 by default.
        module: a second instance of the network, to hold the average where ``model`` can't be
            copied by ``copy.deepcopy``; it takes over the weights of ``model``. When ``model``
            gains or loses a layer, change ``module`` in the same way.

    Attributes:
        module: a copy of the network that holds the average, in eval mode, without gradients. It
            may be moved to another device; the average is then kept there.
        updates: how many there have been.

    Raises:
        TypeError: not a module, or a decay that is not a number.
        ValueError: a decay out of range; a model that can't be copied; a ``module`` whose
            parameters differ from the model's in name, shape or dtype, or are the model's own.

    >>> net = torch.nn.Linear(1, 1)
    >>> ema = EMA(net, decay=0.9)
    >>> ema.update()
    >>> torch.equal(ema.module.weight, net.weight)
    True

    A network that holds what can't be copied, here a lock:

    >>> import threading
    >>> def build():
    ...     net = torch.nn.Linear(1, 1)
    ...     net.lock = threading.Lock()
    ...     return net
    >>> net = build()
    >>> ema = EMA(net, decay=0.9, module=build())
    >>> torch.equal(ema.module.weight, net.weight)
    True
    """

    # torch.optim.swa_utils.AveragedModel doesn't serve: it copies by deepcopy alone, pairs weights
    # by their position and drops those left over, averages buffers or leaves them as they were,
    # averages half precision in half precision, and reads its count from the device at each step.
    # What it has in common with this is the one call of _foreach_lerp_.

    def __init__(
        self, model: nn.Module, decay: float = 0.999, *, module: nn.Module | None = None
    ) -> None:
        """See the class."""
        if not isinstance(model, nn.Module):
            fail_type("EMA", "model", "a torch.nn.Module", model)
        if module is not None and not isinstance(module, nn.Module):
            fail_type("EMA", "module", "a torch.nn.Module or None", module)
        self.decay = check_number("EMA", "decay", decay, minimum=0.0)
        if decay >= 1:
            fail("EMA", "decay", "below 1", decay)
        self.model = model
        self.updates = 0
        self._given = module is not None
        self._seen = Contents()  # the network as it was when the average last followed it
        with _writing():
            if module is None:
                self.module = self._copy({})
                self._prepare(self.module)
                self._seen = contents(model)
            else:
                self.module = module
                _check_second_instance(contents(model), contents(module))
                self._prepare(module)
                self._follow("EMA", contents(model))

    def __repr__(self) -> str:
        name = type(unwrapped(self.model)).__name__
        return f"EMA(decay={self.decay}, updates={self.updates}, model={name})"

    def update(self) -> None:
        """Take the network's current weights into the average.

        Raises:
            ValueError: a parameter has another shape than its average, or layers have come or gone
                that ``module`` can't follow. Nothing has been changed then.
        """
        fn = "EMA.update"
        with _writing():
            network = contents(self.model)
            averages = self._follow(fn, network)
            self._take_buffers(network, averages)
            self._take_range()
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            self.updates += 1
            # Shared ones once; one list for each device and dtype, as the fused kernels want it.
            pairs = {
                id(average): (average, network.parameters[name])
                for name, average in averages.parameters.items()
                if name in network.parameters
            }
            lists: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
            for average, weight in pairs.values():
                if not _can_be_averaged(average):
                    average.copy_(weight)
                    continue
                group = lists.setdefault((average.device, average.dtype), ([], []))
                group[0].append(average)
                group[1].append(weight.to(average.device, average.dtype))
            for group in lists.values():
                torch._foreach_lerp_(*group, 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[nn.Module]:
        """The network with the averaged weights inside the block, its own again after it.

        Afterwards its parameters and buffers are the same tensors with the same bytes, whatever
        the block did to them and also when it raised. What the average doesn't have yet (a layer
        or a buffer that came after the last update) keeps its own value inside.

        Raises:
            ValueError: a parameter has another shape than its average.
        """
        network, averages = contents(self.model), contents(self.module)
        known = self._match("EMA.swapped", network, averages)
        own = Snapshot(self.model)
        try:
            with torch.no_grad():
                for name, average in known.items():
                    network.parameters[name].copy_(average)
                for name, buffer in network.buffers.items():
                    kept = averages.buffers.get(name)
                    if kept is not None and _holds(buffer, kept):
                        buffer.copy_(kept)
            yield self.model
        finally:
            own.restore()

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to go on."""
        return {"updates": self.updates, "module": self.module.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, with the same averages to the last bit.

        The network has the layers that it had then; buffers take the shapes that they had. The
        state may be that of a wrapped network.

        Raises:
            TypeError: ``state`` or an entry of it is of another type.
            ValueError: ``state`` is not a state_dict of an EMA, or its weights don't fit the
                network; the message names them. The averages are then as they were.
        """
        fn = "EMA.load_state_dict"
        if not isinstance(state, Mapping):
            fail_type(fn, "state", "an EMA's state_dict", state)
        if not {"updates", "module"} <= set(state):
            fail(fn, "state", "an EMA's state_dict", f"entries {list(state)}")
        updates, values = state["updates"], state["module"]
        if isinstance(updates, Tensor) and updates.numel() == 1:
            updates = updates.item()
        updates = check_int(fn, "state['updates']", updates, minimum=0)
        if not isinstance(values, Mapping):
            fail_type(fn, "state['module']", "a network's state_dict", values)
        with _writing():
            self._follow(fn, contents(self.model))
            before = Snapshot(self.module)
            try:
                self._load(values)
            except Exception as error:  # a module's own way to load may raise anything
                before.restore()
                reason = " ".join(str(error).split())
                fail(fn, "state['module']", "a state_dict of this network", f"one with: {reason}")
        self.updates = updates

    def _load(self, values: Mapping[str, Any]) -> None:
        """Into the module, whose buffers first get the shapes that they have in ``values``."""
        averages = contents(self.module)
        values = {plain_name(key): value for key, value in values.items()}
        if all(key.startswith("module.") for key in values) and "module" not in averages.modules:
            values = {key.removeprefix("module."): value for key, value in values.items()}
        named = {plain_name(key): key for key in self.module.state_dict()}
        values = {named.get(key, key): value for key, value in values.items()}
        for key, value in values.items():
            name = plain_name(key)
            owner = averages.modules.get(owner_of(name))
            if owner is None or key_of(name) not in owner._buffers or name in averages.lazy:
                continue
            kept = averages.buffers.get(name)
            if not isinstance(value, Tensor) or (kept is not None and _holds(kept, value)):
                continue
            device = value.device if kept is None else kept.device
            owner._buffers[key_of(name)] = _taken_over(value, device)
        self.module.load_state_dict(values)

    # ---- keeping up with the network --------------------------------------------------------

    def _follow(self, fn: str, network: Contents) -> Contents:
        """Bring the module to the network's structure, and give its contents.

        All that can fail comes before the first change.
        """
        averages = contents(self.module)
        known = self._match(fn, network, averages)
        complete = len(known) == len(network.parameters)
        if not (complete and network.same_structure(self._seen)):
            fresh, failure = None, "it was given as module="
            if not self._given:
                try:
                    # Averages stand in for the weights: nothing of them is copied, ties stay ties.
                    fresh = self._copy({id(network.parameters[n]): a for n, a in known.items()})
                except ValueError as error:
                    failure = f"{type(error.__cause__).__name__}: {error.__cause__}"
            if fresh is None:
                self._check_modules(fn, network, averages, failure)
                self._adopt(network, averages, known)
            else:
                self._rebuild(fresh, network, known)
            self._seen = network
            averages = contents(self.module)
            self._take_buffers(network, averages)
        return averages

    def _take_range(self) -> None:
        """The noise levels that the network knows, by now."""
        known = said_by(self.model, "sigma_range")
        if known is not None and said_by(self.module, "sigma_range") != known:
            setattr(unwrapped(self.module), "sigma_range", known)  # noqa: B010

    def _match(self, fn: str, network: Contents, averages: Contents) -> dict[str, Tensor]:
        """The average of each weight that has one, by the weight's name; their shapes agree."""
        seen, kept = self._seen.parameters, averages.parameters
        # By the weight itself before its name: a layer taken out of the middle of a Sequential
        # gives those behind it new names.
        of = {id(weight): kept[name] for name, weight in seen.items() if name in kept}
        claimed = {id(of[id(w)]) for w in network.parameters.values() if id(w) in of}
        known = {}
        for name, weight in network.parameters.items():
            average = of.get(id(weight))
            if average is None:
                average = kept.get(name) if name in seen else None
                if average is None or id(average) in claimed:
                    continue
                of[id(weight)] = average
                claimed.add(id(average))
            if not _fits(average, weight):
                _fail_shape(fn, name, average, weight)
            known[name] = average
        return known

    def _copy(self, averages: dict[int, Any]) -> nn.Module:
        """A copy of the network around the ``averages`` of the weights with these ids."""
        found = contents(self.model)
        network = found.parameters
        memo = averages | {  # uninitialised buffers have no way to be copied
            id(lazy): type(lazy)(device=lazy.device, dtype=lazy.dtype)
            for lazy in found.lazy.values()
        }
        try:
            fresh = copy.deepcopy(unwrapped(self.model), memo)
            copied = contents(fresh).parameters
            if copied.keys() != network.keys():
                raise TypeError("its copy has other parameters")
            shared = [w for name, w in network.items() if copied[name] is w]
            if any(w.requires_grad or _wide(w.dtype) != w.dtype for w in shared):
                raise TypeError("its copy shares its weights")
            return fresh
        except Exception as error:  # whatever an attribute's own way to be copied raises
            name, reason = type(unwrapped(self.model)).__name__, f"{type(error).__name__}: {error}"
            raise ValueError(
                "EMA: model must be a network that copy.deepcopy can copy, or be given with a "
                f"second instance of it, EMA(model, decay, module=second), got {name} ({reason})"
            ) from error

    @staticmethod
    def _prepare(module: nn.Module) -> None:
        """In eval mode, without gradients, in at least 32 bits."""
        module.eval()
        for parameter in module.parameters():
            parameter.requires_grad = False
        found = contents(module)
        for average in (*found.parameters.values(), *found.buffers.values()):
            if average.dtype != (wide := _wide(average.dtype)):
                average.data = average.data.to(wide)

    def _rebuild(self, fresh: nn.Module, network: Contents, known: dict[str, Tensor]) -> None:
        """Become ``fresh``, in which ``known`` are averages and the rest the network's values."""
        self._prepare(fresh)
        found = contents(fresh)
        places = {network.parameters[n].device: average.device for n, average in known.items()}
        for name, tensor in (*found.parameters.items(), *found.buffers.items()):
            average = known.get(name)
            if average is None:
                tensor.data = tensor.data.to(places.get(tensor.device, tensor.device))
            elif average is not tensor:  # a module with a way of its own to be copied
                tensor.copy_(average)
        # The same object as before, for those who hold it.
        root = unwrapped(self.module)
        root.__class__, root.__dict__ = fresh.__class__, fresh.__dict__

    def _check_modules(self, fn: str, network: Contents, averages: Contents, failure: str) -> None:
        """That every tensor of the network has a module to be registered with, and fits there."""
        names = (*network.parameters, *network.buffers)
        come = {owner_of(name) for name in names}
        if self._seen.modules:  # a second instance may come without what holds no tensor
            come |= network.modules.keys() - self._seen.modules.keys()
        come -= averages.modules.keys()
        gone = (self._seen.modules.keys() - network.modules.keys()) & averages.modules.keys()
        # Lists and dictionaries of parameters keep a count of their own.
        listed = {
            name
            for name in network.parameters.keys() ^ averages.parameters.keys()
            if isinstance(averages.modules.get(owner_of(name)), nn.ParameterList | nn.ParameterDict)
        }
        come |= listed & network.parameters.keys()
        gone |= listed & self._seen.parameters.keys() - network.parameters.keys()
        if come or gone:
            changes = [f"a new {name!r}" for name in sorted(come)]
            changes += [f"no {name!r}" for name in sorted(gone)]
            fail(
                fn,
                "model",
                f"of the layers of ema.module, which can't be copied again ({failure}); change "
                "ema.module in the same way first",
                "a network with " + ", ".join(changes),
            )
        for name, weight in network.parameters.items():
            average = averages.parameters.get(name)
            if average is None or name in self._seen.parameters:
                continue
            if not _fits(average, weight):
                _fail_shape(fn, name, average, weight)

    def _adopt(self, network: Contents, averages: Contents, known: dict[str, Tensor]) -> None:
        """Change the tensors that are registered with the module's own layers."""
        self._prepare(self.module)  # layers that have been added to it
        taken = {id(average) for average in known.values()}
        new: dict[int, Tensor] = {}  # the average of each weight that had none
        places = {network.parameters[n].device: average.device for n, average in known.items()}
        for name, weight in network.parameters.items():
            average = known.get(name, new.get(id(weight)))
            registered = averages.parameters.get(name)
            if average is None:
                if registered is not None and id(registered) not in taken:
                    average = registered
                    average.copy_(weight)
                    taken.add(id(average))
                else:
                    value = _taken_over(weight, places.get(weight.device, weight.device))
                    average = nn.Parameter(value, requires_grad=False)
                new[id(weight)] = average
            if registered is not average:
                owner, key = averages.modules[owner_of(name)], key_of(name)
                owner._buffers.pop(key, None)
                owner._parameters[key] = cast(nn.Parameter, average)
        for name in self._seen.parameters.keys() - network.parameters.keys():
            self._drop(averages.modules.get(owner_of(name)), "_parameters", key_of(name))
        for name in self._seen.buffers.keys() - network.buffers.keys():
            self._drop(averages.modules.get(owner_of(name)), "_buffers", key_of(name))

    @staticmethod
    def _drop(owner: nn.Module | None, table: str, key: str) -> None:
        """Leave None where a tensor was registered, so that ``owner.key`` still is there."""
        if owner is not None and key in getattr(owner, table):
            getattr(owner, table)[key] = None

    def _take_buffers(self, network: Contents, averages: Contents) -> None:
        """Copy the network's buffers; one of another shape or dtype takes the old one's place."""
        new: dict[int, Tensor] = {}
        for name, buffer in network.buffers.items():
            kept = averages.buffers.get(name)
            if kept is not None and kept is not buffer and _holds(kept, buffer):
                kept.copy_(buffer)
                continue
            owner, key = averages.modules[owner_of(name)], key_of(name)
            source = network.modules[owner_of(name)]
            if id(buffer) not in new:
                device = kept.device if kept is not None else _device(averages, buffer)
                new[id(buffer)] = _taken_over(buffer, device)
            owner._parameters.pop(key, None)
            owner._buffers[key] = new[id(buffer)]
            if key in source._non_persistent_buffers_set:
                owner._non_persistent_buffers_set.add(key)


@contextmanager
def _writing() -> Iterator[None]:
    """Nothing is recorded, and what is made can be changed also outside of inference mode."""
    with torch.inference_mode(False), torch.no_grad():  # leaving the one turns gradients on
        yield


def _check_second_instance(network: Contents, second: Contents) -> None:
    """That the parameters of ``module`` are those of the network by name, but tensors apart."""
    own = {id(weight) for weight in network.parameters.values()}
    shared = [name for name, average in second.parameters.items() if id(average) in own]
    if shared:
        fail("EMA", "module", "a second instance of model", f"one that holds model's {shared[:8]}")
    missing = network.parameters.keys() - second.parameters.keys() - second.lazy.keys()
    missing |= {name for name in network.buffers if owner_of(name) not in second.modules}
    surplus = second.parameters.keys() - network.parameters.keys() - network.lazy.keys()
    if missing or surplus:
        got = [f"none called {name!r}" for name in sorted(missing)[:8]]
        got += [f"one called {name!r}" for name in sorted(surplus)[:8]]
        fail("EMA", "module", "a second instance of model, with its tensors", ", ".join(got))
    for name, weight in network.parameters.items():
        average = second.parameters.get(name)
        if average is not None and not _fits(average, weight):
            expected = f"a second instance of model, with {name!r} {describe(weight)}"
            fail("EMA", "module", expected, describe(average))


def _fail_shape(fn: str, name: str, average: Tensor, weight: Tensor) -> None:
    expected = (
        f"of shape {tuple(average.shape)} and dtype {average.dtype}, as its average is (a network "
        "of other shapes needs a new EMA)"
    )
    fail(fn, f"model's parameter {name!r}", expected, describe(weight))


def _fits(average: Tensor, tensor: Tensor) -> bool:
    """Whether the one can be averaged with the other."""
    if average.shape != tensor.shape or average.layout != tensor.layout:
        return False
    return (
        average.dtype == tensor.dtype
        or (average.is_floating_point() and tensor.is_floating_point())
        or (average.is_complex() and tensor.is_complex())
    )


def _holds(buffer: Tensor, value: Tensor) -> bool:
    """Whether the value can be copied there: an expanded tensor can't be written to."""
    return _fits(buffer, value) and (buffer.layout != torch.strided or 0 not in buffer.stride())


def _can_be_averaged(average: Tensor) -> bool:
    numbers = average.is_floating_point() or average.is_complex()
    return numbers and average.layout == torch.strided


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a small step of an average is not lost."""
    if dtype == torch.complex32:
        return torch.complex64
    return torch.float32 if dtype.is_floating_point and dtype.itemsize < 4 else dtype


def _taken_over(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy with its own memory, in at least 32 bits."""
    return tensor.detach().clone().to(device, _wide(tensor.dtype))


def _device(averages: Contents, tensor: Tensor) -> torch.device:
    """Where a tensor that is new belongs: with the averages, if they are all in one place."""
    devices = {average.device for average in averages.parameters.values()}
    return devices.pop() if len(devices) == 1 else tensor.device
