# SPDX-License-Identifier: Apache-2.0
"""A run made again of a backup that was taken while it went on: the same model in the end, and nothing believed that is
damaged."""

from __future__ import annotations

import io
import shutil
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from leader import Leader

from coordinator.backups.contents import INDEX, Index
from coordinator.backups.making import back_up
from coordinator.backups.restoring import restore
from coordinator.commands.keeping import runs_backup, runs_restore
from coordinator.store.folder import RunFolder, write_job
from coordinator.store.ledger import LedgerReader
from fedcore.config.privacy import NodePrivacy, PrivacySection
from fedcore.errors import ConfigError, FedkrsoError, RunError
from tests.coordinator.run.test_archive import SCHEMA, TASK, make_model
from tests.patience import until


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def led(root: Path, model: Path, **options: Any) -> Leader:
    leader = Leader(root, model, SCHEMA, TASK, **options)
    write_job(leader.files, leader.job)
    return leader


def digest(leader: Leader, version: int) -> str:
    with LedgerReader(leader.files.ledger) as ledger:
        return next(o.digest for o in ledger.published_states() if o.version == version and o.kind == "whole")


def run_id(files: RunFolder) -> str | None:
    with LedgerReader(files.ledger) as ledger:
        return ledger.fact("run_id", str)


@pytest.mark.parametrize("tidied", [False, True])
@pytest.mark.parametrize("every", [0, 1, 2, 3])
def test_a_restored_run_comes_to_the_same_model(tmp_path: Path, model: Path, every: int, tidied: bool) -> None:
    leader = led(tmp_path / "runs" / "t", model, every=every)
    plan = leader.until(4, leader.start())
    if tidied:
        # What only the closed round stood on is dropped once the next plan is out; updates go last.
        until(lambda: not (leader.files.updates / "2").exists())
    index = back_up(leader.files, tmp_path / "t.tar")
    assert (index.rounds, index.run, index.finished) == (3, "t", False)
    leader.until(7, plan)
    leader.kill()
    expected, first_id = digest(leader, 6), run_id(leader.files)
    shutil.rmtree(leader.files.root)
    files, again = restore(tmp_path / "t.tar", tmp_path / "runs")
    assert again == index and run_id(files) is None
    leader = Leader(files.root, model, SCHEMA, TASK, every=every)
    plan = leader.start()
    # Nodes that went on to round 7 meanwhile believe what is under another id from its beginning.
    assert plan.round == 4 and plan.run_id not in ("", first_id)
    leader.until(7, plan)
    leader.kill()
    assert digest(leader, 6) == expected
    with LedgerReader(files.ledger) as ledger:
        assert [row.kind for row in ledger.lines(0, 99) if row.kind == "restored"] == ["restored"]


def test_backups_that_are_taken_all_the_time_are_all_whole(tmp_path: Path, model: Path) -> None:
    leader = led(tmp_path / "runs" / "t", model)
    plan, over = leader.start(), threading.Event()
    made: list[Index] = []

    def take() -> None:
        while not over.is_set():
            made.append(back_up(leader.files, tmp_path / f"{len(made)}.tar"))

    thread = threading.Thread(target=take)
    thread.start()
    try:
        leader.until(8, plan)
    finally:
        over.set()
        thread.join()
        leader.kill()
    assert len({index.rounds for index in made}) >= 3
    for number in range(len(made)):
        files, index = restore(tmp_path / f"{number}.tar", tmp_path / str(number))
        with LedgerReader(files.ledger) as ledger:
            assert [row.round for row in ledger.rounds()] == list(range(1, index.rounds + 1))
            assert ledger.updates(index.rounds + 1) == [] and ledger.plan(index.rounds + 1) is None
            for obj in ledger.published_states():
                assert files.published_state(obj.version, obj.kind).stat().st_size == obj.manifest.size_bytes


@pytest.fixture(scope="module")
def backup(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    root = tmp_path_factory.mktemp("backup")
    leader = led(root / "runs" / "t", model)
    leader.until(3, leader.start())
    leader.kill()
    back_up(leader.files, root / "t.tar")
    return root / "t.tar"


def test_the_commands(backup: Path, tmp_path: Path) -> None:
    runs = backup.parent / "runs"
    done = CliRunner().invoke(runs_backup, ["t", str(tmp_path / "b.tar"), "--runs", str(runs), "--json"])
    assert done.exit_code == 0 and msgspec.json.decode(done.output)["rounds"] == 2
    assert (tmp_path / "b.tar").stat().st_mode & 0o777 == 0o600
    done = CliRunner().invoke(runs_restore, [str(tmp_path / "b.tar"), "--runs", str(tmp_path / "runs")])
    assert "next: fedkrso coordinator resume t" in done.output
    assert (tmp_path / "runs/t/job.json").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="is there already"):
        back_up(RunFolder(runs / "t"), tmp_path / "b.tar")
    with pytest.raises(ConfigError, match="there is a run 't'"):
        restore(backup, runs)
    assert [path.name for path in runs.iterdir()] == ["t"]


def changed(backup: Path, out: Path, change: Callable[[tarfile.TarInfo, bytes], tuple[str, bytes] | None]) -> Path:
    with tarfile.open(backup) as source, tarfile.open(out, "w") as target:
        for entry in source:
            file = source.extractfile(entry)
            assert file is not None
            kept = change(entry, file.read())
            if kept is not None:
                entry.name, data = kept
                entry.size = len(data)
                target.addfile(entry, io.BytesIO(data))
    return out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda e, d: (e.name, d[:-1] + bytes([d[-1] ^ 1]) if e.name == "ledger.sqlite" else d),
            "ledger.sqlite is dam",
        ),
        (lambda e, d: None if e.name.startswith("state/") else (e.name, d), "state/2.npz is damaged"),
        (lambda e, d: ("../job.json" if e.name == "job.json" else e.name, d), "has '../job.json'"),
        (lambda e, d: None if e.name == INDEX else (e.name, d), "was cut short"),
        (lambda e, d: (e.name, d.replace(b'"format": 1', b'"format": 9') if e.name == INDEX else d), "of format 9"),
    ],
    ids=["flipped", "missing", "outside", "short", "newer"],
)
def test_what_is_not_right_is_refused_and_leaves_nothing(
    backup: Path, tmp_path: Path, change: Callable[[tarfile.TarInfo, bytes], Any], words: str
) -> None:
    wrong = changed(backup, tmp_path / "wrong.tar", change)
    with pytest.raises(RunError, match=words):
        restore(wrong, tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


def test_every_cut_is_refused(backup: Path, tmp_path: Path) -> None:
    data = backup.read_bytes()
    for length in (0, 100, 512, len(data) // 3, len(data) // 2, len(data) - 12_000):
        (tmp_path / "cut.tar").write_bytes(data[:length])
        with pytest.raises(FedkrsoError, match=r"cut|damaged|backup"):
            restore(tmp_path / "cut.tar", tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_link_in_it_is_refused(backup: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        entry = tarfile.TarInfo("job.json")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry)
    with pytest.raises(RunError, match=r"has 'job\.json'"):
        restore(tmp_path / "link.tar", tmp_path / "runs")


def test_a_run_that_promises_privacy_is_not_set_back(tmp_path: Path, model: Path) -> None:
    leader = led(tmp_path / "runs" / "t", model)
    leader.until(2, leader.start())
    leader.kill()
    section = PrivacySection(node=NodePrivacy(target_epsilon=8.0, delta=1e-5, clip=1.0))
    write_job(leader.files, msgspec.structs.replace(leader.job, privacy=section))
    assert back_up(leader.files, tmp_path / "t.tar").private
    with pytest.raises(RunError, match="promises privacy"):
        restore(tmp_path / "t.tar", tmp_path / "again")


def test_a_published_file_that_is_damaged_is_not_backed_up(tmp_path: Path, model: Path) -> None:
    leader = led(tmp_path / "runs" / "t", model)
    leader.until(2, leader.start())
    leader.kill()
    path = leader.files.published_state(1, "whole")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match=r"published/1-whole\.bin: is damaged"):
        back_up(leader.files, tmp_path / "t.tar")
    assert not (tmp_path / "t.tar").exists()
    assert isinstance(Index.of(run="t", made_at=0, rounds=0, digest="", private=False, finished=False, files={}), Index)
