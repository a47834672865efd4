# SPDX-License-Identifier: Apache-2.0
"""Messages may be decoded first by several threads at once: msgspec's first look into a type is not safe for that."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys, threading
from fedcore.wire.codec import decode, encode
from fedcore.wire.messages import Commit, Envelope
from fedcore.worker.messages import Event
import msgspec
sys.setswitchinterval(1e-6)
payload = encode(Envelope(run="r", round=1, node="n", body=Commit("t")))
event = msgspec.msgpack.encode({"type": "adopted", "version": 1, "generation": 0, "digest": ""})
barrier = threading.Barrier(64)
def work():
    barrier.wait()
    decode(payload)
    msgspec.msgpack.decode(event, type=Event)
threads = [threading.Thread(target=work) for _ in range(64)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@pytest.mark.parametrize("attempt", range(5))
def test_first_messages_of_many_threads_do_not_crash_the_process(attempt: int) -> None:
    assert subprocess.run([sys.executable, "-c", PROGRAM], timeout=300, check=False).returncode == 0
