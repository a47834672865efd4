# SPDX-License-Identifier: Apache-2.0
"""A smaller runtime: transformers imports scipy and its like where they are installed, for models that are not trained
here. `python -m edge_client.worker.programs.lean PROGRAM ...` starts one of this folder's programs without them."""

from __future__ import annotations

import importlib
import sys

__all__ = ["hide_optional_packages", "main"]

_HIDDEN = ("scipy", "sklearn", "pandas", "torchvision")


def hide_optional_packages() -> None:
    """Have transformers believe that scipy, sklearn, pandas and torchvision are absent; saves some 30 MB in a worker.

    Only its answers to "is it there?" are fixed, which it remembers; a user's own data function still imports what it
    likes."""
    from transformers.utils import import_utils

    present = {name: sys.modules.pop(name) for name in _HIDDEN if name in sys.modules}
    sys.modules.update(dict.fromkeys(_HIDDEN))  # type: ignore[arg-type]
    try:
        for name in _HIDDEN:
            asked = getattr(import_utils, f"is_{name}_available", None)
            # Without a memory of its answers there is nothing to fix.
            if asked is not None and hasattr(asked, "cache_clear"):
                asked.cache_clear()
                asked()
    finally:
        for name in _HIDDEN:
            del sys.modules[name]
        sys.modules.update(present)


def main() -> None:
    """Start the program that the first argument names; it finds the others as its own."""
    hide_optional_packages()
    program = sys.argv.pop(1)
    importlib.import_module(f"edge_client.worker.programs.{program}").main()


if __name__ == "__main__":
    main()
