# SPDX-License-Identifier: Apache-2.0
"""Operations on tensors that are only shapes, answered in microseconds.

PyTorch's fake tensors find out for every operation anew what comes of it, in a third of a millisecond; a step of a
language model has tens of thousands, most of them alike. `Shapes` asks once for each operation on inputs of a shape,
and remembers: what changes its first input gives it back, what looks at a tensor is done on the shape alone, and what
makes a tensor makes one of the remembered size. Whatever does not fit these three goes to PyTorch every time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.utils._python_dispatch import TorchDispatchMode

from edge_client.worker.model.built import BuiltModel

__all__ = ["DEVICE", "Shapes", "fake_model"]

_CPU: Final = torch.device("cpu")
DEVICE: Final = torch.ops.prim.device.default
_NONZERO: Final = torch.ops.aten.nonzero.default
# Says nothing of looking at its input, but does.
_VIEWS: Final = (torch.ops.aten._unsafe_view.default,)
_PLAIN: Final = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)

_ASK, _CHANGE, _LOOK, _MAKE = range(4)


class Shapes:
    """Fake tensors of a processor, and what is known of operations on them.

    Several models may share one: then an operation that both have is asked for once.

    Attributes:
        mode: PyTorch's, under which models run.

    Example:
        >>> shapes = Shapes()
        >>> with shapes.mode:
        ...     x = torch.empty(2, 3)
        >>> shapes.run(torch.ops.aten.mm.default, (x, x.t()), {}).shape
        torch.Size([2, 2])
    """

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._kinds: dict[Any, int] = {}
        self._known: dict[Any, _Recipe | None] = {}
        self._plain: dict[Any, bool] = {}
        self._state: dict[str, Any] | None = None
        self._experts = 1

    def run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What an operation gives on shapes, as under `mode`."""
        kind = self._kinds.get(func)
        if kind is None:
            kind = self._kinds[func] = _kind_of(func)
        if kind == _CHANGE:
            if _is_shape(args[0]):
                return args[0]
        elif kind == _LOOK:
            if _is_shape(args[0]) and not kwargs:
                return self._look(func, args)
        elif func is _NONZERO and _is_shape(args[0]):
            return self._nonzero(args[0])
        elif kind == _MAKE and (key := _key_of(args, kwargs)) is not None:
            return self._make((func, key), func, args, kwargs)
        return func(*args, **kwargs)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Inside, operations give what they give on shapes, remembered or as PyTorch says."""
        with self.mode, _Remembering(self):
            yield

    def device_of(self, tensor: Any) -> Any:
        """Where a tensor says that it is."""
        return tensor._fake_device if type(tensor) is FakeTensor else DEVICE(tensor)

    def fake(self, elem: Tensor) -> FakeTensor:
        """A tensor of the meta device as a fake one of the processor, with its storage."""
        if self._state is None:
            first = FakeTensor(self.mode, elem, _CPU)
            # The same for all of them: no dimension is a symbol.
            self._state = dict(first.__dict__)
            return first
        made: FakeTensor = torch.Tensor._make_subclass(
            FakeTensor, elem, False, dispatch_device=True, device_for_backend_keys=_CPU
        )
        made.__dict__.update(self._state)
        return made

    def _look(self, func: Any, args: Sequence[Any]) -> Any:
        with in_kernel_invocation_manager(self.mode):
            out = func(*args)
            if isinstance(out, Tensor):
                return out if type(out) is FakeTensor else self.fake(out)
            return type(out)(self.fake(one) for one in out)

    def _make(self, key: Any, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        recipe: Any = self._known.get(key, False)
        if recipe is False:
            out = self._made(func, args, kwargs)
            self._known[key] = _recipe_of(out, args, kwargs)
            return out
        if recipe is None:
            return func(*args, **kwargs)
        container, parts = recipe
        with torch._C._DisableTorchDispatch():
            made = [self._part(part, args, kwargs) for part in parts]
        return made[0] if container is None else container(made)

    def _made(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """An operation for the first time: by its own function of shapes, where that is all that PyTorch would ask."""
        if func not in self._plain:
            self._plain[func] = _is_plain(func, self.mode)
        if not self._plain[func] or "device" in kwargs or not any(type(one) is FakeTensor for one in args):
            return func(*args, **kwargs)
        with in_kernel_invocation_manager(self.mode):
            out = func(*args, **kwargs)
            if isinstance(out, Tensor):
                return out if type(out) is FakeTensor else self.fake(out)
            return type(out)(self.fake(one) if type(one) is Tensor else one for one in out)

    def _part(self, part: _Part, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if part is None:
            return None
        if isinstance(part, int):
            return args[part]
        if isinstance(part, str):
            return kwargs[part]
        size, stride, dtype = part
        return self.fake(torch.empty_strided(size, stride, dtype=dtype, device="meta"))

    def _nonzero(self, mask: FakeTensor) -> Tensor:
        """Where a mask of unknown numbers is true, in a mixture of experts: every expert has tokens, and each as many
        as the others. The mask over experts has a place more, for tokens of none."""
        if mask.dim() == 1:
            # Asked for each one's number afterwards, which fake tensors know of constants.
            count = mask.shape[0]
            self._experts = max(1, count - 1)
            with in_kernel_invocation_manager(self.mode):
                found = self.fake(torch.empty(count, 1, dtype=torch.long, device="meta"))
            with torch._C._DisableTorchDispatch():
                found.constant = torch.arange(count)[:, None]
            return found
        rows = -(-math.prod(mask.shape) // self._experts)
        with in_kernel_invocation_manager(self.mode):
            return self.fake(torch.empty(rows, mask.dim(), dtype=torch.long, device="meta"))


class _Remembering(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, shapes: Shapes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shapes = shapes

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here, and to forbid it takes as long as an operation.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._shapes.device_of(args[0]) if func is DEVICE else self._shapes.run(func, args, kwargs or {})


_Part = None | int | str | tuple[torch.Size, tuple[int, ...], torch.dtype]
"""Of what an operation gives: nothing, an argument by its place or name, or a new tensor."""

_Recipe = tuple[type | None, list[_Part]]
"""What an operation gives: in a tuple, a list, or alone."""


def _kind_of(func: Any) -> int:
    """What can be known of an operation, from its schema."""
    schema = getattr(func, "_schema", None)
    if schema is None or "lift" in schema.name or not schema.returns:
        return _ASK
    if func in _VIEWS:
        return _LOOK
    first = schema.arguments[0].alias_info if schema.arguments else None
    if first is not None and not first.is_write:
        return _LOOK
    if first is not None:
        changes_shape = torch.Tag.inplace_view in func.tags or "resize" in schema.name
        return _ASK if changes_shape or len(schema.returns) != 1 else _CHANGE
    return _MAKE


def _is_plain(func: Any, mode: FakeTensorMode) -> bool:
    """Whether PyTorch's fake tensors ask an operation's own function of shapes, and nothing else."""
    try:
        from torch._decomp import decomposition_table, meta_table
        from torch._subclasses.fake_impls import op_implementations_checks, op_implementations_dict

        decomposed = func in decomposition_table and not (func in meta_table or mode.cpp_meta_supports_symint(func))
        special = func in op_implementations_dict or any(applies(func) for applies, _ in op_implementations_checks)
    except (ImportError, AttributeError, TypeError):
        # Another PyTorch, of which we do not know it.
        return False
    return not decomposed and not special


def _is_shape(one: object) -> bool:
    return type(one) is FakeTensor and one.constant is None


def _key_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """All of an operation's arguments that its result can depend on; None where that is not known."""
    out: list[Any] = []
    for one in (*args, *kwargs.values()) if kwargs else args:
        kind = type(one)
        if kind is FakeTensor:
            if one.constant is not None or one.is_complex():
                return None
            out.append((one.shape, one.stride(), one.dtype))
        elif kind is list or kind is tuple:
            inner = _key_of(one, {})
            if inner is None:
                return None
            out.append((kind, inner))
        elif kind in _PLAIN:
            # 1, 1.0 and True are equal, and give other dtypes.
            out.append((kind, one))
        else:
            return None
    return (*out, *kwargs) if kwargs else tuple(out)


def _recipe_of(out: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Recipe | None:
    """How to give `out` again; None where it is not made of new tensors and arguments alone."""
    container = type(out) if type(out) in (tuple, list) else None
    given = {id(one): place for place, one in enumerate(args) if isinstance(one, Tensor)}
    named = {id(one): name for name, one in kwargs.items() if isinstance(one, Tensor)}
    inner = (each for one in (*args, *kwargs.values()) if isinstance(one, list | tuple) for each in one)
    seen = {one.untyped_storage()._cdata for one in (*args, *kwargs.values(), *inner) if isinstance(one, Tensor)}
    parts: list[_Part] = []
    for one in out if container is not None else (out,):
        if one is None or id(one) in given or id(one) in named:
            parts.append(None if one is None else given[id(one)] if id(one) in given else named[id(one)])
            continue
        if type(one) is not FakeTensor or one.constant is not None or one.is_complex() or one.fake_device != _CPU:
            return None
        storage = one.untyped_storage()
        plain = torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device="meta")
        if storage._cdata in seen or one.storage_offset() or storage.nbytes() != plain.untyped_storage().nbytes():
            return None
        seen.add(storage._cdata)
        parts.append((one.shape, one.stride(), one.dtype))
    return container, parts


def fake_model(model: BuiltModel, shapes: Shapes) -> None:
    """Turn a model's parameters and buffers into fake tensors in place; tied ones stay tied."""
    # The originals live until the end: a freed tensor's id could come again.
    originals = {id(tensor): tensor for tensor in model.held()}
    shared = Counter(tensor.untyped_storage()._cdata for tensor in originals.values())
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            storage = tensor.untyped_storage()
            if shared[storage._cdata] == 1 and storage.nbytes() == tensor.numel() * tensor.element_size():
                empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
                shape_only: Tensor = shapes.fake(empty)
            else:
                shape_only = shapes.mode.from_tensor(tensor.detach())
            if isinstance(tensor, nn.Parameter):
                # As `nn.Parameter` of another class than Tensor, without detaching what is nobody else's.
                shape_only.requires_grad_(tensor.requires_grad)
                vars(shape_only)["_is_param"] = True
            made[id(tensor)] = shape_only
        return made[id(tensor)]

    for module in model.parts():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = fake(tensor)  # type: ignore[assignment]
