# SPDX-License-Identifier: Apache-2.0
"""What a run learned on an emulator, put into the full model: `fedkrso coordinator export RUN FOLDER --plug-in
MODEL`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from coordinator.reports.card import CARD_FILE, card_of
from coordinator.reports.export import export_model
from coordinator.reports.lastmodel import Which, last_model, require_empty
from coordinator.store.folder import RunFolder
from fedcore.errors import ModelError
from fedcore.weights.checkpoint import Checkpoint, hash_entry, write_safetensors
from fedcore.weights.offsite import OFFSITE_FILE, OffsiteMap, fingerprint, read_map

__all__ = ["export_plugged_in", "plug_in"]


def export_plugged_in(
    files: RunFolder, folder: Path, full: Path, *, overwrite: bool = False, which: Which = "last"
) -> str:
    """Write the full model with a run's learned part in it; what it is, in words.

    A tensor that trained on the emulator becomes its full one plus exactly what was learned, rounded once to the
    checkpoint's type; every other tensor is the full model's, bit by bit.

    Args:
        files: The run's, whose model is an emulator.
        folder: A new or an empty one.
        full: The full model's folder.
        overwrite: Also one that holds something.
        which: `last`, `best` or a round's number.

    Raises:
        ConfigError: The folder holds something already.
        ModelError: The run's model is no emulator, or not one of this full model.
        RunError: No round is finished yet, or the base is damaged.
    """
    require_empty(folder, overwrite=overwrite)
    last = last_model(files, which)
    emulator = last.base.checkpoint.folder
    found = _require_full(emulator, full)
    with files.scratch() as scratch:
        tuned = scratch / "tuned"
        export_model(last.base, last.state, last.schema, last.task, last.training, tuned, last.artefact)
        plug_in(emulator, tuned, full, folder, last.schema.export_prefix)
    about = f"\nLearned on an emulator ({found.words}) and put into the full model, SHA-256 `{found.full_sha256}`.\n"
    (folder / CARD_FILE).write_text(card_of(files, last) + about, encoding="utf-8")
    return f"{last.schema.architecture} of round {last.round}, plugged into {full}"


def plug_in(emulator: Path, tuned: Path, full: Path, folder: Path, prefix: str = "") -> None:
    """Write the full model with the ends of a tuned emulator.

    Args:
        emulator: As it was before.
        tuned: Exported.
        full: The full model.
        folder: Where it is written.
        prefix: What the export put before the checkpoint's names.

    Raises:
        ModelError: These folders are not of one model.
    """
    found = _require_full(emulator, full)
    shutil.copytree(tuned, folder, ignore=_top_weights(tuned), dirs_exist_ok=True)
    config = json.loads((tuned / "config.json").read_bytes()) | found.config
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    before, exported, whole = Checkpoint(emulator).tensors, Checkpoint(tuned), Checkpoint(full)
    # Of the output, which tensor of which folder it is.
    sources: dict[str, tuple[Checkpoint, str]] = {}
    for name in exported.tensors:
        own = name if name in before else name.removeprefix(prefix)
        # A new head is in neither; what stands outside of blocks is the full model's wherever it did not train.
        if own not in before or found.trains(own):
            sources[name.removesuffix(own) + found.to_full(own)] = exported, name
    for name in whole.tensors:
        held = found.from_full(name)
        target = name if name.startswith(prefix) else prefix + name
        left_out = held is not None and held not in exported.tensors and prefix + held not in exported.tensors
        if target not in sources and not left_out:
            sources[target] = whole, name
    table = [(target, at.tensors[name].dtype, at.tensors[name].shape) for target, (at, name) in sources.items()]

    def read(target: str) -> NDArray[Any]:
        at, name = sources[target]
        return at.read(name)

    write_safetensors(folder / "model.safetensors", table, read)


def _require_full(emulator: Path, full: Path) -> OffsiteMap:
    """An emulator's map, if the full model is the one that it is of.

    Raises:
        ModelError: No map, both checksums, or a tensor of an end that is not the full model's.
    """
    found, own, whole = read_map(emulator), Checkpoint(emulator), Checkpoint(full)
    if found is None:
        raise ModelError(
            f"the run's model is no emulator: it has no {OFFSITE_FILE}",
            place=str(emulator),
            remedy="export it without --plug-in",
        )
    if (there := fingerprint(whole)) != found.full_sha256:
        raise ModelError(
            f"another model: its tensors' SHA-256 is {there[:12]}, the emulator was made of {found.full_sha256[:12]}",
            place=str(full),
            remedy="name the folder that the emulator was made of",
        )
    for name in filter(found.trains, own.tensors):
        if hash_entry(own.tensors[name]) != hash_entry(whole.tensors[found.to_full(name)]):
            raise ModelError(f"{name} did not begin as the full model's", place=str(emulator), remedy="make it anew")
    return found


def _top_weights(tuned: Path) -> Any:
    def ignored(at: str, names: list[str]) -> list[str]:
        return [name for name in names if name.endswith(".safetensors")] if Path(at) == tuned else []

    return ignored
