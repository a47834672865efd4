# SPDX-License-Identifier: Apache-2.0
"""A folder to carry to a board without internet: wheels, model, the node's keys and node file, and a script that
installs them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

import tomlkit

from edge_client.install.machine import Runner
from edge_client.install.manifest import check_sums, write_sums
from edge_client.install.nodefile import Kit
from edge_client.install.wheels import Target, fetch_wheels, requirements
from fedcore.config.models import resolve_model_folder
from fedcore.errors import ConfigError

__all__ = ["Contents", "make_bundle", "verify_bundle"]

_NODE, _MODEL, _WHEELS = "node", "model", "wheels"


@dataclass(frozen=True)
class Contents:
    """What goes into a bundle.

    Attributes:
        kit: The node's keys.
        document: The node file, as far as it is known; what is missing is asked for on the board.
        model: Checkpoint to take along; None if the board has it.
        target: The board.
        extras: `train`, or nothing.
        own: Our own wheel, if it is not to be built or fetched.
        torch: The board's own wheel of torch.
        system_torch: The board's Python has torch.
    """

    kit: Kit
    document: tomlkit.TOMLDocument
    model: str | None
    target: Target
    extras: str = "train"
    own: Path | None = None
    torch: Path | None = None
    system_torch: bool = False


def make_bundle(folder: Path, contents: Contents, runner: Runner) -> str:
    """Fill a new folder; returns the digest of its sums.

    Raises:
        ConfigError: The folder is there already.
        ModelError: No such model.
        RunError: pip could not get the wheels.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("something is there already", place=str(folder), remedy="write a new folder")
    model = None if contents.model is None else resolve_model_folder(contents.model, place="--model")
    # It holds the node's keys.
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    for part in (_NODE, _WHEELS):
        (folder / part).mkdir()
    fetch_wheels(
        folder / _WHEELS, contents.target, runner,
        own=contents.own, extras=contents.extras, torch=contents.torch, system_torch=contents.system_torch,
    )  # fmt: skip
    (folder / "requirements.txt").write_text(requirements(folder / _WHEELS), encoding="utf-8")
    for file in contents.kit.files:
        path = folder / _NODE / file.name
        path.touch(0o600)
        path.write_bytes(file.content)
    document = contents.document
    if model is not None:
        shutil.copytree(model, folder / _MODEL)
        document["model_folder"] = f"../{_MODEL}"
    (folder / _NODE / "node.toml").write_text(document.as_string(), encoding="utf-8")
    _write_script(folder / "install.sh", contents, copies_model=model is not None)
    return write_sums(folder)


def verify_bundle(folder: Path) -> str:
    """Read a bundle again; returns the digest of its sums.

    Raises:
        ConfigError: Something of it is damaged, missing or foreign.
    """
    return check_sums(folder)


def _write_script(path: Path, contents: Contents, *, copies_model: bool) -> None:
    template = Template((files("edge_client.install") / "templates/install.sh").read_text(encoding="utf-8"))
    text = template.substitute(
        python=contents.target.python,
        machine=contents.target.machine,
        site="--system-site-packages" if contents.system_torch else "",
        arguments="--copy-model" if copies_model else "",
    )
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
