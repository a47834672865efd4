# SPDX-License-Identifier: Apache-2.0
"""Methods that merge each round, keep a part on their node or send scalars, on real parts: a run with kills ends as one
without."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cluster import needs_mosquitto
from forked_workers import ForkedWorkers
from tiny import Recipe, Tiny
from workshop import Workshop

ROUNDS = 3
LONG = (
    "fedex-lora",
    "fedsa-lora",
    "fedkseed-pro",
    "ferret",
    "fedavg-peft",
    "fedtt+",
    "slora",
    "fedcybgd",
    "fedpeptao",
    "fedbpt",
    "spafl",
    "split",
)


class Stacked(Tiny):
    """A run with another method."""

    method = "flora"

    def invited(self, server_round: int) -> list[str]:
        """In turn, where one trains at a time."""
        return [self.names[(server_round - 1) % 2]] if self.method == "fedcybgd" else self.names

    def _job_text(self) -> str:
        sizes = {
            "fedbpt": "intrinsic_dim = 12\nnum_virtual_tokens = 4\n",
            "fedtt+": "bottleneck = 8\nrank = 2\n",
            "split": "front = 1\ntokens = 4096\n",
            "slora": "rank = 4\nsparse_rounds = 2\n",
        }
        rank = (
            ""
            if self.method in ("fedkseed", "fedkseed-pro", "ferret", "fedavg-peft", "fedcybgd", "fedpeptao", "spafl")
            else sizes.get(self.method, "rank = 4\n")
        )
        method = f'[method]\nname = "{self.method}"\n{rank}interval_steps = 2\nsteps = 8\nbatch_size = 4\nlearning_rate = 3e-3\n\n'
        text = re.sub(r"\[method\].*?(?=\[round\])", method, super()._job_text(), flags=re.DOTALL)
        if self.method == "fedcybgd":
            text = re.sub(r"quorum = .*\n", 'quorum = 1\ncohort = 1\norder = "cycle"\n', text)
        if self.method == "fedbpt":
            text = text.replace('start = "random"', 'start = "ridge"')
        # An adapter's tensors are in no schema that others share.
        return re.sub(r"schema_file = .*\n", "", text) if self.method == "fedavg-peft" else text


class OverChannel(Stacked):
    """A run whose training's embeddings come over a jammed channel, after a head start that goes over it too."""

    channel = '[channel]\nscenario = "jammed"\n\n'

    def _job_text(self) -> str:
        text = super()._job_text().replace('start = "random"', 'start = "ridge"')
        return text.replace("[round]", f"{self.channel}[round]")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, forked_workers: ForkedWorkers) -> Workshop:
    needs_mosquitto()
    folder = tmp_path_factory.mktemp("workshop")
    return Workshop(folder, forked_workers)


def run(
    folder: Path, workshop: Workshop, method: str, *, kills: bool, kind: type[Stacked] = Stacked
) -> tuple[str, dict[str, bytes]]:
    """The digest that everybody ends with, and what stays on each node."""
    tiny = type("Run", (kind,), {"method": method})(folder, workshop, Recipe(rounds=ROUNDS))
    killed: set[str] = set()

    def watch() -> None:
        if not kills:
            return
        if tiny.mark() == 2 and "worker" not in killed and (found := tiny.workers(1)):
            killed.add("worker")
            found[0].kill()
        if tiny.mark() == 3 and "leader" not in killed:
            killed.add("leader")
            tiny.kill_leader()
            tiny.lead()

    try:
        tiny.finish(watch)
        digest = tiny.check()
        assert kills == (killed == {"worker", "leader"}), killed
        workshop.keep_traces(tiny.node_folder(0))
        local = {
            name: (tiny.node_folder(index) / "replica" / "local").glob("*/*.local")
            for index, name in enumerate(tiny.names)
        }
        # Without the hash, which the run's name is in.
        kept = {f"{name}/{path.name}": path.read_bytes()[32:] for name, paths in local.items() for path in paths}
        assert all(tiny.found()["nodes"][name]["agent_peak_rss_bytes"] <= 40_000_000 for name in tiny.names)
    finally:
        tiny.close()
    return digest, kept


@pytest.mark.slow
@pytest.mark.parametrize("method", ["flora", *(pytest.param(name, marks=pytest.mark.chaos) for name in LONG)])
def test_a_run_with_kills_ends_as_one_without(tmp_path: Path, workshop: Workshop, method: str) -> None:
    quiet, killed = (run(tmp_path / name, workshop, method, kills=name == "killed") for name in ("quiet", "killed"))
    assert quiet == killed
    wanted = (
        [f"home-{index}/{number}.local" for index in (0, 1) for number in (ROUNDS - 1, ROUNDS)]
        if method in ("fedsa-lora", "fedpeptao", "spafl")
        else []
    )
    assert sorted(quiet[1]) == wanted


@pytest.mark.slow
def test_noise_on_embeddings_is_the_same_after_kills(tmp_path: Path, workshop: Workshop) -> None:
    quiet, killed = (
        run(tmp_path / name, workshop, "fedkrso", kills=name == "killed", kind=OverChannel)
        for name in ("quiet", "killed")
    )
    assert quiet == killed
    clean = type("Clean", (OverChannel,), {"channel": ""})
    assert run(tmp_path / "clean", workshop, "fedkrso", kills=False, kind=clean)[0] != quiet[0]
