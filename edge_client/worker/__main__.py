# SPDX-License-Identifier: Apache-2.0
"""The worker: `python -m edge_client.worker COMMANDS_FD EVENTS_FD`. Started by an agent or a coordinator, never by
hand.

Its first command says which it is: one that answers (`load`), without torch where the model can do so, or one that
trains. The compute route is measured before torch is loaded here: its processes are then alone with the memory that the
worker may have."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import BinaryIO

from edge_client.process.route_probe import chosen_route
from fedcore.errors import FedkrsoError
from fedcore.worker.messages import Command, Route, Trace
from fedcore.worker.process import read_message
from fedcore.worker.serving import Load

__all__ = ["main"]


def main(commands: BinaryIO, events: BinaryIO) -> None:
    """Serve commands until their stream ends."""
    first: Command | None = read_message(commands, Command)
    if first is None:
        return
    if isinstance(first, Load):
        from edge_client.worker.programs import answer

        answer.main(commands, events, first)
        return
    route = _route(first) if isinstance(first, Trace) and "auto" in (first.torch_device, first.compute_dtype) else None
    from edge_client.worker.programs.lean import hide_optional_packages

    # Before what imports them.
    hide_optional_packages()
    from edge_client.worker.programs import serve

    serve.main(commands, events, first, route)


def _route(trace: Trace) -> Route | FedkrsoError:
    """What the first command leaves open, or why it cannot be found: `serve` answers with it."""
    folder = Path(trace.route_folder) if trace.route_folder else None
    try:
        return chosen_route(
            trace.torch_device, trace.compute_dtype, trace.plan.base_kind, trace.threads, folder, os.environ
        )
    except FedkrsoError as error:
        return error


if __name__ == "__main__":
    code = 1
    # Ctrl-C at a terminal reaches all of its processes; what becomes of it is for the supervisor to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        main(os.fdopen(int(sys.argv[1]), "rb"), os.fdopen(int(sys.argv[2]), "wb"))
        code = 0
    except Exception:  # noqa: BLE001 - whatever it was, it goes to the log and ends the worker
        traceback.print_exc()
    sys.stderr.flush()
    # At once: an ordinary exit would wait for the thread that reads commands.
    os._exit(code)
