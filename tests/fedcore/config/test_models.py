# SPDX-License-Identifier: Apache-2.0
"""Where a model is: by path, or in a package, whose name ends at the first colon."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from fedcore.config.models import find_model, read_source, resolve_model_folder
from fedcore.config.reading import load_config
from fedcore.config.sections import PathText
from fedcore.errors import ModelError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `carries_models` with a folder and two GGUF files."""
    root = tmp_path / "site" / "carries_models"
    (root / "deep" / "model").mkdir(parents=True)
    (root / "__init__.py").touch()
    for name in ("one.Q4_1.gguf", "deep/two.Q8_0.gguf"):
        (root / name).write_bytes(b"GGUF and more")
    monkeypatch.syspath_prepend(root.parent)
    monkeypatch.delitem(sys.modules, "carries_models", raising=False)
    return root


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("one.Q4_1.gguf", "one.Q4_1.gguf"),
        ("deep/two.Q8_0.gguf", "deep/two.Q8_0.gguf"),
        ("two.Q8_0.gguf", "deep/two.Q8_0.gguf"),
        ("one*", "one.Q4_1.gguf"),
        ("*Q8_0*", "deep/two.Q8_0.gguf"),
        ("deep/model", "deep/model"),
    ],
)
def test_a_package_has_it_by_path_by_name_or_by_pattern(name: str, found: str, package: Path) -> None:
    assert find_model(f"carries_models:{name}", place="model.folder") == package / found


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("three.gguf", "model.folder: no files 'three.gguf' in the package carries_models (there are: deep/two.Q8_0.gguf, one"),
        ("*.gguf", "2 files '*.gguf'"),
        ("../site", "neither|no files"),
        ("", "no files|2 files"),
    ],
)  # fmt: skip
def test_a_wrong_name_says_what_there_is(name: str, words: str, package: Path) -> None:
    with pytest.raises(ModelError) as caught:
        find_model(f"carries_models:{name}", place="model.folder")
    assert any(word in caught.value.one_line() for word in words.split("|"))


def test_no_such_package(package: Path) -> None:
    with pytest.raises(ModelError, match="no package 'carries_modles'"):
        find_model("carries_modles:one.gguf", place="model.folder")


def test_a_path_is_a_folder_or_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF...")
    (tmp_path / "a.txt").write_text("text")
    assert find_model(str(tmp_path / "a.gguf"), place="x") == tmp_path / "a.gguf"
    assert find_model(str(tmp_path), place="x") == tmp_path
    for name, words in (("a.txt", "neither a model folder nor a GGUF file"), ("b.gguf", "no such GGUF file")):
        with pytest.raises(ModelError, match=words):
            find_model(str(tmp_path / name), place="x")
    with pytest.raises(ModelError, match="fedkrso model import"):
        resolve_model_folder(str(tmp_path / "a.gguf"), place="x")


class _File(msgspec.Struct, frozen=True):
    model: PathText


def test_a_package_with_a_path_in_it_is_no_path_of_a_job_file(tmp_path: Path) -> None:
    for text, kept in (("p:deep/two.gguf", True), ("p:two.gguf", True), ("deep/two.gguf", False)):
        (tmp_path / "job.toml").write_text(f'model = "{text}"\n')
        found = load_config(tmp_path / "job.toml", _File).model
        assert found == (text if kept else str(tmp_path / text))


def test_a_folder_that_says_nothing_of_its_source(tmp_path: Path) -> None:
    assert read_source(tmp_path) is None
    (tmp_path / "imported.json").write_text("{")
    assert read_source(tmp_path) is None
