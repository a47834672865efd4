# SPDX-License-Identifier: Apache-2.0
"""FedBPT: candidates on an ordinary model, the coordinator's step, and what needs no gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_runs import CPU, HEAD_TASK, Run, examples, values_of

from coordinator.store.statefile import load_state, save_state
from edge_client.worker.data.batches import pad
from edge_client.worker.data.tasks import batches
from fedcore.config.sections import HeadSection, TaskSection
from fedcore.errors import ConfigError
from fedcore.methods.fed3r import settled_head
from fedcore.methods.prompts.fedbpt import FedBPT, FedBPTSettings
from fedcore.methods.prompts.fedpeptao import FedPepTAO, FedPepTAOSettings
from fedcore.numbers.rules import MEAN as PLAIN
from fedcore.numbers.symmetric import unpacked
from fedcore.round.training.evolution import FITNESS, MEAN, ROOT, SIGMA, SIGMAS
from fedcore.subspaces.evolution import Constants, Search, normal_draws
from fedcore.subspaces.rows.gaussian import gaussian
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec
from tests.contract.reference import Reference

SIZES: dict[str, Any] = {"intrinsic_dim": 12, "num_virtual_tokens": 4, "steps": 2, "interval_steps": 1, "batch_size": 4}


def test_a_round_equals_its_reference(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """Embeddings put together by hand on an ordinary model; the loss of words that follow another."""
    run = Run(FedBPTSettings(**SIZES), make_llama(), tmp_path)
    replica = run.replica("a")
    half: Any = replica.half
    reference = Reference(run, replica)
    words = reference.model.get_input_embeddings()
    directions = gaussian(5, MEAN, 12, 4 * words.weight.shape[1]).astype(np.float64)
    size, entries = float(words.weight.detach().double().square().mean().sqrt()), float(np.square(directions).mean())
    # Of normal z, A z is as large as words are, up to the nearest power of two.
    assert 2**-0.6 < half._scale * math.sqrt(12 * entries) / size < 2**0.6
    search, stream = Search.begin(np.zeros(12), 1.0, np.eye(12)), batches(examples(0), 4, 5, 1, "a")

    def loss(z: Any, batch: Any) -> float:
        prompt = half._first + torch.from_numpy(half._scale * z @ directions).float().view(4, -1)
        inputs = pad(batch, 0, CPU)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        embedded = torch.cat([prompt.expand(len(ids), -1, -1), words(ids)], 1)
        whole = torch.cat([mask.new_ones(len(ids), 4), mask], 1)
        with torch.no_grad():
            logits = reference.model(inputs_embeds=embedded, attention_mask=whole).logits[:, 4:-1]
        targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()))

    sigmas = []
    for step in range(2):
        batch = next(stream)
        candidates = search.ask(normal_draws(5, 12, 5, 1, "a", step))
        sigmas.append(search.sigma)
        losses = np.array([loss(z, batch) for z in candidates])
        search = search.tell(candidates, losses, Constants.of(12, 5))
    found = values_of(run.train("a", replica, 0).path)
    assert found.keys() == {MEAN, FITNESS, SIGMAS}
    assert np.allclose(found[MEAN][0], search.mean, atol=2e-4) and np.allclose(found[SIGMAS][0], sigmas, atol=1e-6)
    assert found[FITNESS][0, 0] == pytest.approx(loss(search.mean, batch), rel=1e-4)


def test_nothing_has_a_gradient(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    settings = FedBPTSettings(**SIZES)
    run = Run(settings, make_llama(), tmp_path, head=HeadSection(start="ridge"))
    replica = run.replica("a")
    run.close(1, [run.train("a", replica, 1)])
    run.adopt(replica, 1, whole=True)
    head = replica.start_values()
    seen: list[bool] = []
    replica_module = replica.model.module

    def watch(_: Any, __: Any, said: Any) -> None:
        seen.append(said.logits.requires_grad)

    replica_module.register_forward_hook(watch)
    found = values_of(run.train("a", replica, 1, 2).path)
    assert seen and not any(seen) and all(one.grad is None for one in replica_module.parameters())
    assert found.keys() == {MEAN, FITNESS, SIGMAS} and head.keys() and run.task is HEAD_TASK
    run.close(2, [run.weighted(run.own / "a-2.bin", _header(run, "a", 2))])
    run.adopt(replica, 2, whole=True)
    for name, value in replica.start_values().items():
        assert np.array_equal(value, head[name]), "the head is that of the sums"


def _header(run: Run, node: str, server_round: int) -> Any:
    from coordinator.job import SafetySection
    from coordinator.rounds.policy import admit

    return admit(run.own / f"{node}-{server_round}.bin", run.plan(server_round), "r", node, SafetySection()).header


def test_the_coordinators_step_is_that_of_a_search_over_where_nodes_ended(
    make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    run = Run(FedBPTSettings(**SIZES, sigma=0.8), make_llama(layers=1), tmp_path)
    replica = run.replica("a")
    search, sigma = Search.begin(np.zeros(12), 0.8, np.eye(12)), 0.8
    for server_round in (1, 2):
        updates = [run.train(name, replica, number, server_round) for number, name in enumerate("abc")]
        said = [values_of(update.path) for update in updates]
        ended = np.array([search.mean + one[MEAN][0] for one in said])
        spread = math.sqrt(sum(float((one[SIGMAS].astype(np.float64) ** 2).sum()) for one in said) / 3 / 2)
        search = Search(
            search.mean, spread, search.covariance, search.step_path, search.covariance_path, search.generation
        )
        after = search.tell(
            ended, np.array([one[FITNESS][0, 0] for one in said]), Constants.of(12, 3, all_parents=True)
        )
        sigma = min(sigma, max(0.5, sigma * after.sigma / spread))
        search = after
        run.close(server_round, updates[::-1])
        save_state(run.own / "state.npz", run.state)
        run.model.state = load_state(run.own / "state.npz")
        entries = run.published[-1].entries
        assert entries.keys() == {MEAN, SIGMA, ROOT}
        assert np.allclose(entries[MEAN].values()[0], search.mean, atol=1e-3)
        assert 0.8 + entries[SIGMA].values()[0, 0] == pytest.approx(sigma, abs=1e-4) and sigma <= 0.8
        root = unpacked(entries[ROOT].values().astype(np.float64)) + np.eye(12)
        assert np.allclose(root @ root, search.covariance, atol=1e-3)
        assert np.allclose(run.state.tables["covariance"], search.covariance, atol=1e-6)
        run.adopt(replica, server_round, whole=True)


def test_an_update_is_a_kilobyte_and_a_state_half_a_matrix() -> None:
    names = [f"l{i}" for i in range(3)]
    schema = ModelSchema(tuple(LayerSpec(name, 384, 384) for name in names), ())
    training = FedBPT(FedBPTSettings()).training(1, 0)
    assert training.update_shapes(schema) == {MEAN: (1, 500), FITNESS: (1, 1), SIGMAS: (1, 8)}
    assert training.shapes(schema) == {MEAN: (1, 500), SIGMA: (1, 1), ROOT: (250, 501)}
    assert training.virtual_tokens == 50 and not training.trains_tensors


def test_a_head_that_nobody_trains_must_come_from_sums() -> None:
    training = FedBPT(FedBPTSettings()).training(1, 0)
    task = TaskSection(kind="text-classification", labels=("a", "b"))
    schema = ModelSchema((), (TensorSpec("score.weight", (2, 8), in_checkpoint=False),))
    assert settled_head(HeadSection(), task, training, PLAIN, schema, 6).start == "ridge"
    for head, rounds in ((HeadSection(start="random"), 6), (HeadSection(), 1)):
        with pytest.raises(ConfigError, match="fedbpt trains no head"):
            settled_head(head, task, training, PLAIN, schema, rounds)
    # A round for scores trains none either, but those after it do.
    scores = FedPepTAO(FedPepTAOSettings()).training(1, 0)
    assert not scores.trains_tensors
    assert settled_head(HeadSection(start="random"), task, scores, PLAIN, schema, 6).start == "random"
    own = ModelSchema((), (TensorSpec("score.weight", (2, 8), in_checkpoint=True),))
    assert settled_head(HeadSection(), task, training, PLAIN, own, 6).start == "random"
    for key in ("intrinsic_dim", "population"):
        with pytest.raises(ConfigError, match=f"{key} is 1, it must be 2 or more"):
            FedBPTSettings(**{key: 1})  # type: ignore[arg-type]
