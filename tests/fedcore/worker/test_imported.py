# SPDX-License-Identifier: Apache-2.0
"""A job may name a GGUF file: it is imported once, by real worker processes, and a kill leaves nothing half."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="the package gguf is not installed")

from fedcore.config.models import read_source
from fedcore.errors import ModelError
from fedcore.system.durable import sha256_of
from fedcore.worker.imported import model_folder
from tests.edge_client.worker.exchange.gguf_models import write_model
from tests.patience import until

PROGRAM = """
import sys
from pathlib import Path
from fedcore.worker.imported import model_folder
print(model_folder(sys.argv[1], Path(sys.argv[2]), place="test", tell=lambda line: print(line, flush=True)))
"""


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edge_client.worker.exchange.exporting import export_gguf

    folder = tmp_path_factory.mktemp("gguf")
    write_model(folder / "hf", "llama")
    export_gguf(folder / "hf", folder / "model.gguf", "q8_0")
    return folder / "model.gguf"


def _import(gguf: Path, cache: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(gguf), str(cache)], stdout=subprocess.PIPE)


def test_it_is_imported_once_also_by_two_at_a_time(gguf: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models"
    said = [one.communicate()[0].decode().splitlines() for one in (_import(gguf, cache), _import(gguf, cache))]
    folder = cache / sha256_of(gguf)
    assert [lines[-1] for lines in said] == [str(folder)] * 2
    assert sorted(len(lines) for lines in said) == [1, 3], "one tells of it, the other finds it"
    told: list[str] = []
    assert model_folder(str(gguf), cache, place="test", tell=told.append) == folder
    assert not told
    assert (folder / "model.safetensors").exists()


def test_a_kill_in_the_middle_leaves_nothing_half(gguf: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models"
    killed = _import(gguf, cache)
    half = cache / (sha256_of(gguf) + ".half")
    until(half.exists, [killed], pause_seconds=0.001)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (cache / sha256_of(gguf)).exists()
    folder = model_folder(str(gguf), cache, place="test")
    assert not half.exists()
    assert read_source(folder) is not None


def test_a_file_that_cannot_be_read_leaves_nothing(gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(gguf.read_bytes()[:-1])
    with pytest.raises(ModelError, match="cut short"):
        model_folder(str(path), tmp_path / "models", place="test")
    assert [one.name for one in (tmp_path / "models").iterdir() if one.is_dir()] == []
