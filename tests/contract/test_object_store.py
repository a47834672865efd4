# SPDX-License-Identifier: Apache-2.0
"""What every object store promises, with the real ones: a folder behind a web server, and an S3 server."""

from __future__ import annotations

import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from coordinator.objects.base import ObjectStore
from coordinator.objects.folder import FolderStore
from coordinator.objects.s3 import S3Store
from coordinator.objects.shelf import open_store
from coordinator.provisioning.broker import free_port
from fedcore.errors import StorageError
from tests.patience import until
from tests.s3 import S3, needs_s3


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@dataclass
class Bench:
    """A store, and what stops it."""

    store: ObjectStore
    stop: Any


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    needs_s3()
    with S3() as server:
        yield server


@pytest.fixture(params=["folder", "s3"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "s3":
        server = request.getfixturevalue("s3")
        yield Bench(open_store(server.settings()), server.kill)
        if server.server.poll() is not None:
            server.start()
        return
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()

        def stop() -> None:
            folder.rename(tmp_path / "away")
            folder.touch()

        yield Bench(FolderStore(folder, f"http://127.0.0.1:{http.server_address[1]}/"), stop)
        http.shutdown()


def got(address: str) -> bytes:
    with urllib.request.urlopen(address) as response:
        found: bytes = response.read()
        return found


def test_what_is_put_is_there_until_it_is_dropped(bench: Bench, tmp_path: Path) -> None:
    file, store = tmp_path / "file", bench.store
    file.write_bytes(bytes(range(256)) * 5000)
    assert list(store.names("run/id")) == []
    for _ in range(2):
        store.put("run/id/a", file)
    store.put("run/id2/b", file)
    assert list(store.names("run/id")) == ["run/id/a"]
    assert got(store.address("run/id/a", 60)) == file.read_bytes()
    for _ in range(2):
        store.drop("run/id/a")
    assert list(store.names("run/id")) == [] and list(store.names("run/id2")) == ["run/id2/b"]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        got(store.address("run/id/a", 60))


def test_a_file_that_is_gone_is_an_error_like_any_other(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=re.escape(bench.store.place)):
        bench.store.put("run/id/gone", tmp_path / "gone")


def test_a_store_that_does_not_serve_says_so_in_one_line(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"some")
    bench.stop()
    with pytest.raises(StorageError) as caught:
        bench.store.put("run/id/c", file)
    assert bench.store.place in caught.value.one_line() and len(caught.value.one_line()) < 300


def test_an_address_of_s3_is_for_one_object_and_for_reading(s3: S3, tmp_path: Path) -> None:
    file, store = tmp_path / "file", open_store(s3.settings())
    file.write_bytes(b"some")
    store.put("run/id/one", file)
    store.put("run/id/two", file)
    one, two = store.address("run/id/one", 60), store.address("run/id/two", 60)
    assert isinstance(store, S3Store) and got(one) == b"some"
    signature = two.rpartition("=")[2]
    other = one.replace("/one?", "/two?")
    unsigned, longer = one.partition("?")[0], one.replace("X-Amz-Expires=60", "X-Amz-Expires=61")
    for wrong in (other, unsigned, longer, one.replace(one.rpartition("=")[2], signature)):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            got(wrong)
    with pytest.raises(urllib.error.HTTPError, match="40[35]"):
        urllib.request.urlopen(urllib.request.Request(one, data=b"other", method="PUT"))
    assert got(two) == b"some"


def put(address: str, data: bytes) -> None:
    with urllib.request.urlopen(urllib.request.Request(address, data=data, method="PUT")):
        pass


def test_an_address_of_s3_to_put_to_is_for_one_object_and_for_putting(s3: S3, tmp_path: Path) -> None:
    store, file = S3Store(s3.settings()), tmp_path / "file"
    one, two = (store.address_to_put(f"run/id-updates/{name}/1-t", 60) for name in ("a", "b"))
    assert not store.get("run/id-updates/a/1-t", file, 4)
    put(one, b"some")
    assert store.get("run/id-updates/a/1-t", file, 4) and file.read_bytes() == b"some"
    # A node that knows its own address knows no other.
    for wrong in (one.replace("/a/1-t?", "/b/1-t?"), one.replace("/a/1-t?", "/a/1-u?"), one.partition("?")[0]):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            put(wrong, b"other")
    with pytest.raises(urllib.error.HTTPError, match="40[35]"):
        got(one)
    expired = store.address_to_put("run/id-updates/b/1-t", 1)
    until(lambda: not _puts(expired))
    assert not any("updates" in name for name in store.names("run/id")), "published objects are others"
    put(two, b"some more")
    assert list(store.names("run/id-updates")) == ["run/id-updates/a/1-t", "run/id-updates/b/1-t"]
    for size in (8, 10):
        assert not store.get("run/id-updates/b/1-t", file, size), "no byte of what has another length"
    put(two, b"another 9")
    assert store.get("run/id-updates/b/1-t", file, 9) and file.read_bytes() == b"another 9"
    store.drop_all(["run/id-updates/a/1-t", "run/id-updates/b/1-t", "run/id-updates/c/1-t"])
    store.drop_all([])
    assert not list(store.names("run/id-updates"))


def _puts(address: str) -> bool:
    try:
        put(address, b"late")
    except urllib.error.HTTPError:
        return False
    return True


def test_a_file_of_many_blocks_comes_as_it_was_put(s3: S3, tmp_path: Path) -> None:
    store, data, file = S3Store(s3.settings()), bytes(range(251)) * 5000, tmp_path / "file"
    put(store.address_to_put("run/id-updates/a/1-t", 60), data)
    assert store.get("run/id-updates/a/1-t", file, len(data)) and file.read_bytes() == data
    with pytest.raises(OSError, match="No such file"):
        store.get("run/id-updates/a/1-t", tmp_path / "gone" / "file", len(data))
    away = S3Store(msgspec.structs.replace(s3.settings(), endpoint=f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(StorageError) as caught:
        away.get("run/id-updates/a/1-t", file, len(data))
    assert away.place in caught.value.one_line()
