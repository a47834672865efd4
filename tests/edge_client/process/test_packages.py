# SPDX-License-Identifier: Apache-2.0
"""An installation that cannot train says so in one line, at once, and once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edge_client.process.packages import import_failure, require_training_packages
from fedcore.errors import WorkerError

NODE = 'node = "n"\nrun = "t"\nmodel_folder = "."\nmemory_budget = "1 GiB"\n[data]\nsource = "d.csv"\n[broker]\nurl = "mqtts://localhost:1"\n'
# A light installation: the packages are not there, for an import nor for who only looks.
LIGHT = (
    "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers'))); from fedcore.command import main; main()"
)


def client_run(program: str, path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, "client", "run", str(path), *options],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_light_installation_refuses_to_train_at_once_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "n.toml"
    path.write_text(NODE)
    refused = client_run(LIGHT, path)
    said = "error: this installation cannot train: torch, transformers not installed (pip install 'fedkrso[train]')\n"
    assert (refused.returncode, refused.stdout, refused.stderr) == (WorkerError.exit_code, "", said)
    # Its files can be checked all the same.
    (tmp_path / "d.csv").write_text("text,label\nhello,a\n")
    assert client_run(LIGHT, path, "--check").returncode == 0


def test_a_whole_installation_passes_and_imports_nothing_for_it() -> None:
    program = "import sys; from edge_client.process.packages import *; require_training_packages(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
    require_training_packages()


@pytest.mark.parametrize(
    ("tail", "said"),
    [
        (
            "Traceback (most recent call last):\n  File ...\nModuleNotFoundError: No module named 'torch'",
            "No module named 'torch'",
        ),
        (
            "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory\n\n",
            "libcudart.so.12: cannot open",
        ),
        (
            "OSError: libcublas.so.11: cannot open shared object file: No such file or directory",
            "libcublas.so.11: cannot open",
        ),
        ("ImportError: numpy.core.multiarray failed to import", "numpy.core.multiarray failed to import"),
        ("ModuleNotFoundError: No module named 'torch'\nlater words\nRuntimeError: something else", None),
        ("OSError: [Errno 5] Input/output error", None),
        ("", None),
    ],
)
def test_the_last_words_of_a_worker_that_could_not_import(tail: str, said: str | None) -> None:
    found = import_failure(tail)
    if said is None:
        assert found is None
    else:
        assert found is not None and found.one_line().startswith(f"this installation cannot train: {said}")
        assert found.remedy == "pip install 'fedkrso[train]'" and found.exit_code == 9
