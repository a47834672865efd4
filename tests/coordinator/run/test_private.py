# SPDX-License-Identifier: Apache-2.0
"""A run that promises privacy: what it refuses, how much noise it adds, and that a kill gives nobody a second draw."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent, rdp

from coordinator.job import Job, SafetySection
from coordinator.run.archive import Archive
from coordinator.run.keeping import ScratchKeeping
from coordinator.run.model import Closed, GlobalModel, Learning
from coordinator.run.private import bounded, private_of, private_run
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import SqliteLedger
from coordinator.store.rows import RoundRow
from fedcore.config.privacy import ExamplePrivacy, NodePrivacy, PrivacySection
from fedcore.errors import ConfigError, ExactnessError
from fedcore.fields.prepared import prepared
from fedcore.methods.fed3r import Fed3RSettings
from fedcore.methods.fedkrso import FedKRSO, FedKRSOSettings
from fedcore.model.state import ExactState
from fedcore.privacy.noise import sigma_of
from tests.coordinator.run.test_model import METHOD, begun, closed
from tests.coordinator.run.test_model import learning as learning  # a fixture

NODE = PrivacySection(node=NodePrivacy(clip=1.0, delta=1e-2, noise_multiplier=2.0))
JOB: dict[str, Any] = {
    "run": "r",
    "model": {"folder": "m"},
    "task": {"kind": "text-classification", "labels": ["a", "b"]},
    "method": {"name": "fedkrso", "batch_size": 8, "steps": 20},
    "round": {"rounds": 4, "min_nodes": 3},
    "broker": {"url": "mqtt://localhost", "insecure": True},
}
BY_NODE = {"node": {"clip": 1.0, "delta": 1e-2, "noise_multiplier": 2.0}}
BY_EXAMPLE = {"example": {"clip": 0.5, "delta": 1e-4, "target_epsilon": 5.0, "least_examples": 500}}


def job_of(privacy: dict[str, Any], **sections: dict[str, Any]) -> Job:
    merged = {key: {**JOB.get(key, {}), **value} for key, value in sections.items()}
    made: Job = msgspec.convert({**JOB, **merged, "privacy": privacy}, prepared(Job))
    return made


def changed(privacy: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {level: {**said, **keys} for level, said in privacy.items()}


@pytest.mark.parametrize(
    ("privacy", "sections", "place", "words"),
    [
        (changed(BY_NODE, clip=0.0), {}, "privacy.node.clip", "clip is 0"),
        (changed(BY_NODE, delta=0.0), {}, "privacy.node.delta", "above 0"),
        (changed(BY_NODE, delta=0.4), {}, "privacy.node.delta", "with 3 nodes one of them might be told whole"),
        (changed(BY_NODE, delta=0.2), {"round": {"cohort": 5}}, "privacy.node.delta", "with 5 nodes"),
        (changed(BY_NODE, noise_multiplier=0.0), {}, "privacy.node", "how much noise"),
        (changed(BY_NODE, noise_multiplier=0.01), {}, "privacy.node.noise_multiplier", "0.1 to 1000"),
        (changed(BY_NODE, target_epsilon=-1.0), {}, "privacy.node.target_epsilon", "above 0"),
        ({**BY_NODE, **BY_EXAMPLE}, {}, "privacy.example", "keep one"),
        (BY_NODE, {"method": {"name": "flora"}}, "privacy.node", "no noise hides a node's part in flora"),
        (BY_NODE, {"method": {"name": "fedkseed"}}, "privacy.node", "in fedkseed"),
        (BY_NODE, {"method": {"moments": "averaged"}}, "privacy.node", 'moments = "averaged" are no sums'),
        (BY_NODE, {"method": {"moments": "rows"}}, "privacy.node", 'moments = "rows" are no sums'),
        (BY_NODE, {"head": {"start": "ridge"}}, "head.start", "second moments"),
        (BY_EXAMPLE, {"head": {"start": "ridge"}}, "head.start", "second moments"),
        (BY_NODE, {"safety": {"rule": "median"}, "round": {"quorum": 3}}, "safety.rule", "median"),
        (BY_NODE, {"safety": {"norm_bound": 3.0}}, "safety.norm_bound", "two bounds"),
        (BY_NODE, {"evaluation": {"where": "nodes"}}, "evaluation.where", "no noise, and is told"),
        (BY_EXAMPLE, {"evaluation": {"where": "both", "source": "s"}}, "evaluation.where", "no noise, and is told"),
        (BY_EXAMPLE, {"method": {"name": "fedavg"}}, "privacy.example", "in fedavg"),
        (BY_EXAMPLE, {"task": {"kind": "causal-lm", "labels": []}}, "privacy.example", "a piece of text"),
        (BY_EXAMPLE, {"model": {"trained_tensors": ["x"]}}, "model.trained_tensors", "each example"),
        (changed(BY_EXAMPLE, delta=0.002), {}, "privacy.example.delta", "with 500 examples on a node"),
        (changed(BY_EXAMPLE, least_examples=4), {}, "privacy.example.least_examples", "a batch of 8"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(
    privacy: dict[str, Any], sections: dict[str, Any], place: str, words: str
) -> None:
    sections = {key: dict(value) for key, value in sections.items()}
    if sections.get("method", {}).get("name", "fedkrso") != "fedkrso":
        sections["method"] = {**sections["method"], "batch_size": 8}
    with pytest.raises(ConfigError) as raised:
        job_of(privacy, **sections)
    assert raised.value.place == place and words in raised.value.one_line()


def test_jobs_that_can_keep_it_are_taken() -> None:
    for name in ("fedkrso", "fedavg", "fedit", "ffa-lora", "rolora", "fedsa-lora"):
        assert job_of(BY_NODE, method={"name": name}).privacy.level == "node"
    assert job_of(BY_EXAMPLE, safety={"rule": "median"}, round={"quorum": 3}).privacy.level == "example"
    assert job_of({}).privacy.noise is None
    assert job_of(BY_NODE, method={"name": "fed3r"}).privacy.level == "node"
    # Sums over all rows have no batches.
    assert job_of(changed(BY_EXAMPLE, least_examples=4), method={"name": "fed3r"}).privacy.level == "example"


def test_a_head_from_sums_tells_of_each_example_once_in_a_round() -> None:
    example = msgspec.convert(BY_EXAMPLE["example"], ExamplePrivacy)
    private = private_of(PrivacySection(example=example), Fed3RSettings(), 3, 1.5)
    assert private is not None
    row = RoundRow(1, participants=("a",), uplink_bytes=0, downlink_bytes=0, seconds=0.0, train_loss=0.0)
    spent = private.spent([row] * 2, ("a",))
    accountant = rdp.RdpAccountant()
    accountant.compose(SelfComposedDpEvent(GaussianDpEvent(1.5), 3))
    assert spent.epsilon == pytest.approx(accountant.get_epsilon(1e-4)) and (spent.releases, spent.sampled) == (3, 1.0)


MASKED: dict[str, dict[str, Any]] = {
    "secure_aggregation": {},
    "safety": {"norm_ratio": 0.0, "max_share_ratio": 0.0},
    "round": {"quorum": 5, "min_nodes": 6},
}


def test_with_masks_each_node_s_noise_is_sized_for_the_quorum(tmp_path: Path) -> None:
    job = job_of(BY_NODE, **MASKED)
    with contextlib.closing(SqliteLedger(tmp_path / "ledger")) as ledger:
        led, private, _ = private_run(job, ledger)
    assert private is not None and private.least == 5 and led.safety.norm_bound == 1.0
    # Of five one may tell what it has added: four times the square of a node's is the square of the sum's.
    assert private.parts(32) == (5, 2**32) == (5, sigma_of(2.0, 1.0) // 2)
    few = job_of(changed(BY_NODE, clip=0.01), **{**MASKED, "secure_aggregation": {"fraction_bits": 10}})
    with contextlib.closing(SqliteLedger(tmp_path / "other")) as ledger, pytest.raises(ConfigError) as raised:
        private_run(few, ledger)
    assert raised.value.place == "secure_aggregation.fraction_bits" and "11 steps of 2**-10" in raised.value.one_line()


def test_no_bound_depends_on_others_updates() -> None:
    safety = bounded(SafetySection(), NODE)
    assert (safety.norm_bound, safety.norm_policy, safety.norm_ratio) == (1.0, "clip", 0.0)
    assert bounded(SafetySection(), PrivacySection()) == SafetySection()


def private_learning(learning: Learning) -> Learning:
    private = private_of(NODE, METHOD, 5, None)
    return replace(learning, private=private, safety=bounded(SafetySection(), NODE))


def one_round(model: GlobalModel, folder: RunFolder, safety: SafetySection, server_round: int) -> Closed:
    return closed(model, folder, begun(model, server_round), safety)


def test_a_kill_before_a_round_counts_gives_the_same_noise_and_the_key_is_forgotten_after(
    learning: Learning, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    mine, seen, states = private_learning(learning), [], []
    for _ in range(3):
        # Each is a life of the coordinator that ends after the state is written and before a row says that it counts.
        with contextlib.closing(SqliteLedger(folder.ledger)) as ledger:
            model = GlobalModel(mine, Archive(folder, ledger, 2, ledger.rounds()), 0)
            plan = begun(model, 1)
            ledger.put_plan(plan)
            seen.append(closed(model, folder, plan, mine.safety))
            states.append(model.state)
            assert len(ledger.fact("noise_key", tuple[int, bytes])[1]) == 32
    assert seen[0] == seen[1] == seen[2]
    assert all((states[0].sums[name] == states[2].sums[name]).all() for name in states[0].sums)
    with contextlib.closing(SqliteLedger(folder.ledger)) as ledger:
        model = GlobalModel(mine, Archive(folder, ledger, 2, ()), 0)
        done = closed(model, folder, begun(model, 1), mine.safety)
        spent = mine.private.spent((), done.row.participants)
        model.publish(done.objects, msgspec.structs.replace(done.row, privacy=spent))
        assert ledger.fact("noise_key", tuple[int, bytes]) == (0, b"")
        assert done == seen[0]


def test_noise_is_of_the_size_that_is_said_and_another_in_each_run(learning: Learning, tmp_path: Path) -> None:
    runs = []
    for name, mine in (("plain", learning), ("one", private_learning(learning)), ("other", private_learning(learning))):
        folder = RunFolder(tmp_path / name)
        model = GlobalModel(replace(mine, safety=bounded(SafetySection(), NODE)), ScratchKeeping(folder), 0)
        done = one_round(model, folder, bounded(SafetySection(), NODE), 1)
        runs.append((model.state, done))
    plain, one, other = (state for state, _ in runs)
    # All count the same with noise: taken away again, what is left is the mean of equal shares of updates that are
    # within the clip.
    sigma, count = 2.0 * 2**32, 3
    for state in (one, other):
        numbers = np.concatenate([(state.sums[name] - plain.sums[name]).ravel() for name in state.sums])
        assert 0.8 < numbers.std() * count / sigma < 1.2
    assert all((one.sums[name] != other.sums[name]).any() for name in one.sums)
    clipped = {node: round(factor, 3) for node, factor in runs[1][1].row.clipped.items()}
    assert clipped.keys() == {"b"} and not runs[1][1].row.capped and not runs[1][1].outliers


def test_a_method_that_loses_the_noise_publishes_nothing(
    learning: Learning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(self: FedKRSO, state: ExactState, *rest: Any) -> ExactState:
        return replace(state, version=state.version + 1)

    mine, folder = private_learning(learning), RunFolder(tmp_path / "run")
    model = GlobalModel(mine, ScratchKeeping(folder), 0)
    monkeypatch.setattr(FedKRSO, "aggregate", forgetful)
    with pytest.raises(ExactnessError, match="without its noise"):
        one_round(model, folder, mine.safety, 1)
    assert not folder.published_states.exists()


def test_epsilon_is_that_of_the_node_that_was_there_most(tmp_path: Path) -> None:
    private = private_of(NODE, METHOD, 4, None)
    assert private is not None
    row = RoundRow(1, participants=("a", "b"), uplink_bytes=0, downlink_bytes=0, seconds=0.0, train_loss=0.0)
    rows = [row, msgspec.structs.replace(row, round=2, participants=("c",))]
    spent = private.spent(rows, ("b", "c"))
    accountant = rdp.RdpAccountant()
    accountant.compose(SelfComposedDpEvent(GaussianDpEvent(2.0), 2))
    assert spent.releases == 2 and spent.epsilon == pytest.approx(accountant.get_epsilon(1e-2))
    assert spent.words() == (
        f"each node: epsilon {spent.epsilon:.3g} spent at delta 0.01, by noise of 2 times a clip of 1"
    )


def test_epsilon_of_examples_counts_every_step_of_a_node_with_as_few_as_may_be(tmp_path: Path) -> None:
    with contextlib.closing(SqliteLedger(tmp_path / "ledger.sqlite")) as ledger:
        led, private, _ = private_run(job_of(BY_EXAMPLE), ledger)
        assert private is not None and led.round.rounds == 4
        row = RoundRow(1, participants=("a",), uplink_bytes=0, downlink_bytes=0, seconds=0.0, train_loss=0.0)
        spent = private.spent([row] * 3, ("b",))
        accountant = rdp.RdpAccountant()
        event = PoissonSampledDpEvent(8 / 500, GaussianDpEvent(private.noise_multiplier))
        accountant.compose(SelfComposedDpEvent(event, 4 * 20))
        assert spent.epsilon == pytest.approx(accountant.get_epsilon(1e-4))
        # The noise was found for all rounds of the job, and spends what it may.
        assert 4.9 < spent.epsilon <= 5.0
        # Asked to go on to more rounds, the run has the same noise, and ends where it would have.
        longer, again, words = private_run(job_of(BY_EXAMPLE, round={"rounds": 9}), ledger)
        assert again is not None and again.noise_multiplier == private.noise_multiplier
        assert longer.round.rounds == 4 and "the run ends there, since round 5 of 9 would take epsilon to" in words[0]


def test_a_run_ends_before_its_target_is_overspent_and_says_so(tmp_path: Path) -> None:
    with contextlib.closing(SqliteLedger(tmp_path / "ledger.sqlite")) as ledger:
        led, private, words = private_run(job_of(changed(BY_NODE, target_epsilon=2.0)), ledger)
        assert private is not None and led.round.rounds < 4 and led.safety.norm_bound == 1.0
        row = RoundRow(1, participants=("a",), uplink_bytes=0, downlink_bytes=0, seconds=0.0, train_loss=0.0)
        allowed = private.spent([row] * (led.round.rounds - 1), ("a",))
        beyond = private.spent([row] * led.round.rounds, ("a",))
        assert allowed.epsilon <= 2.0 < beyond.epsilon
        assert "beyond the target of 2" in words[0] and "of 2 spent" in allowed.words()
        with pytest.raises(ConfigError, match="one round alone goes beyond"):
            private_run(job_of(changed(BY_NODE, target_epsilon=0.1)), ledger)


def test_no_more_noise_than_exact_sums_hold() -> None:
    section = PrivacySection(node=NodePrivacy(clip=100.0, delta=1e-3, noise_multiplier=10.0))
    with pytest.raises(ConfigError, match="beyond what exact sums hold"):
        private_of(section, FedKRSOSettings(), 1, None)


def test_plans_say_what_a_node_has_to_do() -> None:
    example = msgspec.convert(BY_EXAMPLE["example"], ExamplePrivacy)
    private = private_of(PrivacySection(example=example), FedKRSOSettings(), 2, 1.5)
    assert private is not None and private.noise_multiplier == 1.5
    assert (private.said.level, private.said.clip, private.said.least_examples) == ("example", 0.5, 500)
