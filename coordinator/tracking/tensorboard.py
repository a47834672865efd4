# SPDX-License-Identifier: Apache-2.0
"""A run's numbers as TensorBoard's event files: `tensorboard --logdir FOLDER`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from coordinator.tracking.sinks import Tracked
from fedcore.errors import StorageError

__all__ = ["TensorBoard"]


class TensorBoard:
    """Writes a folder below `target`, of the run's name.

    Each time it is opened it writes a file of its own that begins with the session's start: TensorBoard then drops
    what earlier files have of the same rounds.

    Args:
        target: The folder that `--logdir` names.
        run: Whose numbers come.

    Raises:
        StorageError: The folder cannot be written.
    """

    def __init__(self, target: str, run: Tracked) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._folder = Path(target) / run.run
        try:
            # One to the second: the earlier of two that begin in the same one would be overwritten.
            self._writer = EventFileWriter(str(self._folder), filename_suffix=f".{time.time_ns()}")
        except OSError as error:
            raise StorageError(
                f"cannot be written: {error.strerror}", place=str(self._folder), remedy="name another folder"
            ) from None
        self._told: set[tuple[int, str]] = set()
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=run.started_at, step=1, session_log=start))

    def put(self, server_round: int, at: float, values: Mapping[str, float]) -> None:
        """See `Sink`."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        new = {name: value for name, value in values.items() if (server_round, name) not in self._told}
        if new:
            summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in new.items()])
            self._writer.add_event(Event(wall_time=at, step=server_round, summary=summary))
            self._writer.flush()
            self._told |= {(server_round, name) for name in new}

    def close(self, *, ended: bool) -> None:
        """See `Sink`."""
        del ended
        self._writer.close()
