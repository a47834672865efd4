# SPDX-License-Identifier: Apache-2.0
"""S3 and what speaks like it, as an object store; nodes get presigned addresses, each for one object and a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from coordinator.objects.section import ObjectsSection
from fedcore.config.passwords import read_password
from fedcore.errors import ConfigError, StorageError
from fedcore.fields.checked import clean_text

if TYPE_CHECKING:
    from obstore.store import S3Store as Bucket

__all__ = ["S3Store"]

_CONNECT, _WHOLE, _AGAIN = timedelta(seconds=3), timedelta(minutes=5), timedelta(seconds=5)
_BLOCK_BYTES: Final = 256 * 1024
_HINTS: Final = ("NoSuchBucket", "AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId")


class S3Store:
    """See `coordinator.objects.base.TakingStore`.

    Args:
        section: Of the job, with the address of a bucket.

    Raises:
        ConfigError: obstore is not installed, or the secret cannot be read.
    """

    def __init__(self, section: ObjectsSection) -> None:
        try:
            import obstore
        except ImportError as error:
            remedy = "pip install fedkrso[s3]"
            raise ConfigError(f"a store in S3 needs obstore: {error}", place="objects.url", remedy=remedy) from None
        self._obstore, parts = obstore, urlsplit(section.url)
        self._prefix = parts.path.strip("/")
        secret = (
            None if section.secret_file is None else read_password(Path(section.secret_file), "objects.secret_file")
        )
        self.place = f"{section.endpoint or 'S3'}: {parts.netloc}"
        self._bucket = _bucket(section, parts.netloc, section.endpoint, secret)
        # Nothing is sent to where nodes find it: its name is what is signed.
        found_at = section.public or section.endpoint
        self._signer = _bucket(section, parts.netloc, found_at, secret) if section.public else self._bucket

    def put(self, name: str, path: Path) -> None:
        """See `ObjectStore`; a large file goes in parts, which count together."""
        with self._in_our_words():
            self._bucket.put(self._key(name), path)

    def names(self, prefix: str) -> Sequence[str]:
        """See `ObjectStore`."""
        with self._in_our_words():
            found = [item["path"] for some in self._bucket.list(self._key(prefix)) for item in some]
            return sorted(path.removeprefix(self._prefix).strip("/") for path in found)

    def drop(self, name: str) -> None:
        """See `ObjectStore`."""
        with self._in_our_words(), contextlib.suppress(FileNotFoundError):
            self._bucket.delete(self._key(name))

    def address(self, name: str, hold_seconds: float) -> str:
        """See `ObjectStore`."""
        with self._in_our_words():
            address: str = self._obstore.sign(self._signer, "GET", self._key(name), timedelta(seconds=hold_seconds))
            return address

    def address_to_put(self, name: str, hold_seconds: float) -> str:
        """See `TakingStore`."""
        with self._in_our_words():
            address: str = self._obstore.sign(self._signer, "PUT", self._key(name), timedelta(seconds=hold_seconds))
            return address

    def get(self, name: str, path: Path, size_bytes: int) -> bool:
        """See `TakingStore`; a block at a time."""
        blocks, left = self._blocks(name, size_bytes), size_bytes
        with path.open("wb") as file:
            while block := self._next(blocks):
                left -= len(block)
                if left < 0:
                    return False
                file.write(block)
        return blocks is not None and left == 0

    def _blocks(self, name: str, size_bytes: int) -> Iterator[bytes] | None:
        with self._in_our_words():
            try:
                found = self._bucket.get(self._key(name))
            except FileNotFoundError:
                return None
            return found.stream(_BLOCK_BYTES) if found.meta["size"] == size_bytes else None

    def _next(self, blocks: Iterator[bytes] | None) -> bytes:
        with self._in_our_words():
            # Of their own kind, which is turned into what every language has by copying.
            return b"" if blocks is None else bytes(next(blocks, b""))

    def drop_all(self, names: Sequence[str]) -> None:
        """See `TakingStore`; many at a request."""
        with self._in_our_words(), contextlib.suppress(FileNotFoundError):
            if names:
                self._bucket.delete([self._key(name) for name in names])

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    @contextlib.contextmanager
    def _in_our_words(self) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError) as error:
            raise StorageError(_words(error), place=self.place) from None


def _bucket(section: ObjectsSection, bucket: str, endpoint: str, secret: str | None) -> Bucket:
    from obstore.store import S3Store as Bucket

    known: Any = {"region": section.region, "virtual_hosted_style_request": False}
    if endpoint:
        known["endpoint"] = endpoint
    if secret is not None:
        known |= {"access_key_id": section.key_id, "secret_access_key": secret}
    options: Any = {"allow_http": endpoint.startswith("http:"), "connect_timeout": _CONNECT, "timeout": _WHOLE}
    again: Any = {"max_retries": 2, "retry_timeout": _AGAIN}
    return Bucket(bucket, config=known, client_options=options, retry_config=again)


def _words(error: Exception) -> str:
    """What happened, in one line: theirs has the whole answer of the server, the address, and how often it was
    asked."""
    said = clean_text(str(error)).partition(" Debug source")[0]
    named = next((hint for hint in _HINTS if hint in said), "")
    return f"does not serve: {named or said.rpartition('HTTP error: ')[2][:200]}"
