# SPDX-License-Identifier: Apache-2.0
"""A smaller runtime: transformers imports scipy and its like where they are installed, and PyTorch its compiler, for
what is not done here. `python -m edge_client.worker.programs.lean PROGRAM ...` starts one of this folder's programs
without them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final

__all__ = ["hide_optional_packages", "main"]

_HIDDEN = ("scipy", "sklearn", "pandas", "torchvision")
_IN_A_CIRCLE: Final = ("convert_frame", "eval_frame", "symbolic_convert", "variables")
"""Parts of the compiler that import each other, which goes well only if the package began it."""
_MARKS: Final = ("allow_in_graph", "assume_constant_result", "disallow_in_graph")


def hide_optional_packages() -> None:
    """Have transformers believe that scipy, sklearn, pandas, torchvision and PyTorch's distributed half are absent, and
    PyTorch load its compiler when something is to be compiled; call it before models are imported. Saves some 100 MB
    in a worker, and a good second of its start.

    Of transformers only its answers to "is it there?" are fixed, which it remembers; a user's own data function still
    imports what it likes."""
    from transformers.utils import import_utils

    present = {name: sys.modules.pop(name) for name in _HIDDEN if name in sys.modules}
    sys.modules.update(dict.fromkeys(_HIDDEN))  # type: ignore[arg-type]
    try:
        for name in _HIDDEN:
            _remember(import_utils, f"is_{name}_available")
    finally:
        for name in _HIDDEN:
            del sys.modules[name]
        sys.modules.update(present)
    # It goes through the files of all architectures, as transformers has done already.
    _postpone("transformers.models")
    _postpone_compiler()
    _leave_distributed(import_utils)


def _remember(import_utils: ModuleType, name: str) -> None:
    asked = getattr(import_utils, name, None)
    # Without a memory of its answers there is nothing to fix.
    if asked is not None and hasattr(asked, "cache_clear"):
        asked.cache_clear()
        asked()


def _leave_distributed(import_utils: ModuleType) -> None:
    """As with the PyTorch of a Jetson, which is built without: training across processes is not done here, and brings
    tensors of its own, and symbolic algebra for their shapes.

    PyTorch asks of each tensor of shapes only whether it is one of those, and imports them to ask; nothing is."""
    from torch import distributed

    available = distributed.is_available
    vars(distributed)["is_available"] = lambda: False
    try:
        _remember(import_utils, "is_torch_distributed_available")
    finally:
        vars(distributed)["is_available"] = available
    if (tensors := _postpone("torch.distributed.tensor")) is not None:
        vars(tensors)["DTensor"] = type("DTensor", (), {})


class _Postponed(ModuleType):
    """A package whose modules can be imported one by one: what it does itself when it is imported, it does when
    something else of it is asked for.

    Args:
        package: Its name.
        spec: Where it is.
    """

    def __init__(self, package: str, spec: ModuleSpec) -> None:
        super().__init__(package)
        self.__spec__, self.__loader__, self.__package__ = spec, spec.loader, package
        self.__file__, self.__path__ = spec.origin, list(spec.submodule_search_locations or ())
        self._marked: list[tuple[str, Any]] = []

    def mark(self, name: str, fn: Any) -> Any:
        """What the package's function of that name does to another one, as soon as it is there."""
        self._marked.append((name, fn))
        return fn

    def _is_importing(self) -> bool:
        """Whether a module of the package is half imported."""
        within = [one for name, one in list(sys.modules.items()) if name.startswith(f"{self.__name__}.")]
        return any(getattr(getattr(one, "__spec__", None), "_initializing", False) for one in within)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        module = f"{self.__name__}.{name}"
        if find_spec(module) is not None and (name not in _IN_A_CIRCLE or self._is_importing()):
            # Of a module that is being imported: the package would import it once more.
            return importlib.import_module(module)
        spec, marked = self.__spec__, self._marked
        assert spec is not None and spec.loader is not None
        self.__class__ = ModuleType  # type: ignore[assignment]
        spec.loader.exec_module(self)
        # It may have put another in its place, of which this one has all then.
        there = sys.modules[self.__name__]
        if there is not self:
            vars(self)["__getattr__"] = partial(getattr, there)
        for mark, fn in marked:
            getattr(there, mark)(fn)
        return getattr(there, name)


def _postpone(package: str) -> _Postponed | None:
    """A package in `sys.modules` that is not loaded yet; None where there is none, or it is loaded already."""
    parent, _, last = package.rpartition(".")
    if package in sys.modules or (spec := find_spec(package)) is None:
        return None
    sys.modules[package] = module = _Postponed(package, spec)
    vars(sys.modules[parent])[last] = module
    return module


def _postpone_compiler() -> None:
    """PyTorch and transformers ask for no more of it than what marks functions for it, and its settings, in a training
    step."""
    import torch  # noqa: F401 - its parent

    if (compiler := _postpone("torch._dynamo")) is not None:
        marks = {mark: partial(compiler.mark, mark) for mark in _MARKS}
        vars(compiler).update(marks, disable=_as_it_is, graph_break=lambda *_, **__: None)


def _as_it_is(fn: Callable[..., Any] | None = None, recursive: bool = True, **words: Any) -> Any:
    """`torch._dynamo.disable`: not compiled, as nothing here is."""
    return partial(_as_it_is, recursive=recursive, **words) if fn is None else fn


def main() -> None:
    """Start the program that the first argument names; it finds the others as its own."""
    hide_optional_packages()
    program = sys.argv.pop(1)
    importlib.import_module(f"edge_client.worker.programs.{program}").main()


if __name__ == "__main__":
    main()
