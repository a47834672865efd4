# SPDX-License-Identifier: Apache-2.0
"""What an answer is made of, and who may say which token comes next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Constraint", "Finish", "Token"]

Finish = Literal["", "stop", "length"]
"""Why an answer ends: the model's end-of-text or a stop text, or no more tokens; empty while it goes on."""


@dataclass(frozen=True)
class Token:
    """One step of an answer.

    Attributes:
        id: The token.
        text: What is certain of the text with it, and was not before: often nothing, where a character or the
            beginning of a stop text is not yet whole. All of them together are the answer.
        finish: Why the answer ends here; empty where it goes on.
    """

    id: int
    text: str
    finish: Finish = ""


class Constraint(Protocol):
    """Decides which tokens may come next, as a grammar does. One for each answer."""

    def allowed(self) -> NDArray[np.bool_]:
        """bool (v,), over the tokens that may come next, at least one; v words, or fewer: what is beyond may not come.
        Where the answer may end here, the end-of-text token is among them."""
        ...

    def accept(self, token: int) -> None:
        """A token was taken."""
        ...
