# SPDX-License-Identifier: Apache-2.0
"""What a request brings with it: JSON, and not endless."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["json_body"]


async def json_body(request: Request, most_bytes: int, *, not_json: Exception, too_large: Exception) -> bytes:
    """A request's body, read no further than its bound. A form of a stranger's page is none: browsers send JSON to
    others only after they have asked.

    Args:
        request: Its stream was not read yet.
        most_bytes: The bound.
        not_json: Raised where the content type is another one.
        too_large: Raised beyond the bound.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise not_json
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > most_bytes:
            raise too_large
    return body
