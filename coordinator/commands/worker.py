# SPDX-License-Identifier: Apache-2.0
"""`fedkrso coordinator worker`: adds updates up beside the coordinators of runs."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from fedcore.system.logs import LOG_FORMATS, Line, LogFormat, LogWriter

__all__ = ["coordinator_worker"]


@click.command(epilog="\b\nExample:\n  fedkrso coordinator worker postgresql://fedkrso@db.example/runs --runs runs")
@click.argument("url")
@click.option(
    "--password-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="With the password of the user in URL alone; without it libpq looks where it always does.",
)
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder of runs, the same that their coordinators have.",
)
@click.option("--log-format", "form", type=click.Choice(LOG_FORMATS), default="text", show_default=True)
def coordinator_worker(url: str, password_file: Path | None, runs: Path, form: LogFormat) -> None:
    """Add updates up beside the coordinators of runs whose jobs have [aggregation], as many of these processes as you
    like, until stopped.

    URL is the database that the runs' ledgers are in. A worker may be killed at any time: another takes its piece.
    """
    from coordinator.store.places import Database, require_package
    from coordinator.sums.worker import SumWorker

    require_package()
    log = LogWriter(sys.stdout, form, run="")
    file = None if password_file is None else str(password_file.absolute())
    worker = SumWorker(Database(url=url, password_file=file), runs, lambda words: log.say(Line(words, event="sums")))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())
    worker.run()
