# SPDX-License-Identifier: Apache-2.0
"""What tests of the installation need: a provisioned node, a model folder, data, and a system that is not running."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from coordinator.provisioning.provision import provision
from fedcore.command import main

__all__ = ["ProvisionedNode", "fedkrso", "in_process", "make_provisioned_node", "needs_root"]

NOW = dt.datetime.now(dt.timezone.utc)


@dataclass(frozen=True)
class ProvisionedNode:
    """A node's folder, its model, its data, and the root of a device."""

    fleet: Path
    node: Path
    model: Path
    data: Path
    root: Path

    @property
    def flags(self) -> list[str]:
        """Everything that a first installation needs, short of the root."""
        return [
            "--from",
            str(self.node),
            "--run",
            "reviews",
            "--model",
            str(self.model),
            "--data",
            str(self.data),
            "--budget",
            "1GiB",
        ]

    def path(self, path: str) -> Path:
        """A path of the device."""
        return self.root / path.lstrip("/")


def make_provisioned_node(folder: Path, *, host: str = "127.0.0.1", **options: object) -> ProvisionedNode:
    """Provision a node `kitchen`, and make the rest beside it."""
    fleet = folder / "fleet"
    provision(fleet, "reviews", ["kitchen", "garden"], hosts=(host,), options=options, now=NOW)
    model, data, root = folder / "model", folder / "my data.csv", folder / "root"
    (model / "tokens").mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (model / "tokens/vocab.txt").write_text("a\nb\n")
    data.write_text("text,label\nhello,a\n")
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nvideo:x:44:\n")
    return ProvisionedNode(fleet, fleet / "nodes/kitchen", model, data, root)


def fedkrso(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Call the program."""
    command = [sys.executable, "-c", "from fedcore.command import main; main()", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


def in_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The same without a process of its own, for what ends early."""
    out, err, command, code = io.StringIO(), io.StringIO(), ["fedkrso", *map(str, arguments)], 0
    with (
        mock.patch.multiple(sys, argv=command, stdin=io.StringIO()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user: needs root")
