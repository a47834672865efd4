# SPDX-License-Identifier: Apache-2.0
"""What a client of the endpoint is told when it gets no answer: OpenAI's form of an error, with a status and words that
say what to do."""

from __future__ import annotations

from typing import Any

from fedcore.errors import BudgetError, DataError, FedkrsoError, ModelError

__all__ = ["Refusal", "refusal_of"]

_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_STATUS: tuple[tuple[type[FedkrsoError], int], ...] = ((DataError, 400), (ModelError, 500), (BudgetError, 503))


class Refusal(Exception):
    """No answer, and why.

    Args:
        status: Of HTTP.
        message: One line for a person.
        param: The field of the request that is wrong.
        code: For programs.
        retry_after_seconds: When to try again, where that would help.

    Example:
        >>> Refusal(400, "messages is empty", param="messages").body()["error"]["type"]
        'invalid_request_error'
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_seconds = retry_after_seconds

    def body(self) -> dict[str, Any]:
        """As JSON says it."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 429 else "server_error")
        if self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Beside the body."""
        headers = {} if self.retry_after_seconds is None else {"retry-after": str(self.retry_after_seconds)}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def refusal_of(error: FedkrsoError) -> Refusal:
    """What the worker refused, as the client hears it: a request that cannot be answered is the client's, all else the
    server's.

    Example:
        >>> refusal_of(DataError("the template takes no system message")).status
        400
    """
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    return Refusal(status, error.one_line(), param=error.place or None if status == 400 else None)
