# SPDX-License-Identifier: Apache-2.0
"""FedPepTAO: scores, prompts and the coordinator's step against textbooks; what stays on a node, and what of the
coordinator's own survives it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import peft
import pytest
import torch
from method_runs import CPU, WHOLE, Run, examples, values_of
from transformers import AutoModelForCausalLM

from coordinator.store.statefile import load_state, save_state
from edge_client.worker.data.batches import pad
from edge_client.worker.data.tasks import batches
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.round import learning_rate_factor
from fedcore.errors import ConfigError
from fedcore.methods import server_half
from fedcore.methods.prompts.fedpeptao import FedPepTAO, FedPepTAOSettings
from fedcore.model.state import ExactState
from fedcore.round.training import PromptTraining
from fedcore.round.training.prompts import PROMPTS, SCORE_UNIT, SCORES, chosen_layers
from fedcore.weights.schema import LayerSpec, ModelSchema
from tests.contract.reference import Reference, near

SIZES: dict[str, Any] = {
    "num_virtual_tokens": 3, "steps": 8, "interval_steps": 2, "batch_size": 4, "bits": 16, "learning_rate": 1e-2,
}  # fmt: skip


def first_prompts(replica: Replica) -> list[torch.Tensor]:
    half: Any = replica.half
    return [one.detach().clone() for one in half._prompts]


def test_scores_are_those_of_five_lines(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    run = Run(FedPepTAOSettings(**SIZES), make_llama(), tmp_path)
    replica = run.replica("a")
    reference = Reference(run, replica)
    scores, stream = np.zeros(2), batches(examples(0), 4, 5, 1, "a")
    taken: list[torch.Tensor] = []
    reference.model.model.norm.register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    for _ in range(8):
        inputs = pad(next(stream), 0, CPU)
        with torch.no_grad():
            states = reference.model.model(**inputs, output_hidden_states=True).hidden_states
        # The last of them is behind the norm: of that layer, what goes into the norm.
        for layer, hidden in enumerate([states[1], taken.pop()]):
            mask = inputs["attention_mask"][..., None].double()
            x = ((hidden.double() * mask).sum(1) / mask.sum(1)).numpy()
            x /= np.linalg.norm(x, axis=1, keepdims=True)
            e = np.linalg.eigvals(x @ x.T).real + 1e-5
            scores[layer] += np.sum(np.log(e) + 1 / e) / 8
    found = values_of(run.train("a", replica, 0).path)
    assert found.keys() == {SCORES} and found[SCORES].shape == (1, 2)
    assert np.allclose(found[SCORES][0] * SCORE_UNIT, scores, rtol=0.02)
    # In micro-batches of one it is the same.
    again = run.own / "again.bin"
    single = msgspec.structs.replace(WHOLE, micro_batch_size=1)
    run.trainer("a", replica, run.examples(0))[0].train(run.plan(1), (single,), again)
    assert np.allclose(values_of(again)[SCORES], found[SCORES], rtol=0.02)


def test_a_round_equals_its_reference(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """PEFT's prefix on an ordinary model, all layers shared."""
    run = Run(FedPepTAOSettings(**SIZES, shared_part=1.0), make_llama(), tmp_path)
    replica = run.replica("a")
    start = first_prompts(replica)
    reference = Reference(run, replica)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(run.folder, dtype=torch.float32), config).eval()
    with torch.no_grad():
        for name, weight in reference.weights.items():
            theirs.base_model.get_submodule(name).weight.copy_(weight)
        theirs.prompt_encoder["default"].embedding.weight.copy_(torch.cat(start, dim=1))
    inputs = pad(examples(1), 0, CPU)
    with torch.no_grad():
        expected = theirs(**inputs).logits
        hidden = replica.model.backbone(**inputs).last_hidden_state
        found = theirs.base_model.get_output_embeddings()(hidden)
    real = inputs["attention_mask"].bool()
    assert torch.allclose(found[real], expected[real], atol=2e-5)
    embedding = theirs.prompt_encoder["default"].embedding.weight.requires_grad_(True)
    # A loss on hidden states would not see the prefix: logits, and the mean over all words that follow another.
    adam, stream = torch.optim.Adam([embedding]), batches(examples(0), 4, 5, 1, "a")
    for step in range(8):
        adam.param_groups[0]["lr"] = 1e-2 * learning_rate_factor(step, 8)
        adam.zero_grad()
        inputs = pad(next(stream), 0, CPU)
        logits = theirs(**inputs).logits[:, :-1]
        targets = inputs["input_ids"][:, 1:].masked_fill(inputs["attention_mask"][:, 1:] == 0, -100)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        adam.step()
    sent = values_of(run.train("a", replica, 0).path)[PROMPTS]
    moved = [one.detach() - two for one, two in zip(embedding.chunk(2, dim=1), start, strict=True)]
    assert sent.shape == (2, start[0].numel())
    for row, change in zip(sent, moved, strict=True):
        assert near(row, change.flatten().numpy())


def test_layers_that_are_not_chosen_stay_and_survive(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    run = Run(FedPepTAOSettings(**SIZES), make_llama(), tmp_path)
    replica = run.replica("a")
    first = first_prompts(replica)
    token = torch.arange(3, 20)[None]
    with torch.no_grad():
        plain = replica.model.backbone(token).last_hidden_state
        hidden = Reference(run, replica).model.model(token).last_hidden_state
    assert torch.allclose(plain, hidden, atol=1e-4), "no prompts before it is known whose are shared"
    for server_round in (1, 2, 3):
        update = run.train("a", replica, 0, server_round)
        assert values_of(update.path).keys() == {SCORES if server_round == 1 else PROMPTS}
        run.close(server_round, [update])
        run.adopt(replica, server_round, whole=True)
    (chosen,) = chosen_layers(run.published[-1].entries[SCORES].values()[0].tolist(), 1)
    stays = 1 - chosen
    learned = first_prompts(replica)
    again = run.replica("a", 4)
    again.become("r", "a")
    fresh = run.replica("fresh", 4)
    run.adopt(fresh, 3, whole=True)
    fresh.become("r", "fresh")
    assert fresh.digest() == again.digest() == replica.digest()
    for layer, one, other in zip(range(2), first_prompts(again), first_prompts(fresh), strict=True):
        assert torch.equal(one, learned[layer]) and torch.equal(other, one) == (layer == chosen)
    assert torch.equal(first_prompts(fresh)[stays], first[stays]) and not torch.equal(learned[stays], first[stays])
    shares: Any = run.plan(2).training
    assert shares.local_numbers(run.schema) == first[0].numel() and not shares.shares_model


def test_the_coordinators_step_is_that_of_ten_lines(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """Three nodes, of which one is away in the last round; the coordinator begins anew before each round."""
    settings = FedPepTAOSettings(**SIZES, shared_part=1.0)
    run = Run(settings, make_llama(layers=1), tmp_path)
    replica = run.replica("a")
    c: dict[str, Any] = {}
    mean_c: Any = 0.0
    v: Any = 0.0
    before: Any = 0.0
    for server_round, names in ((1, "abc"), (2, "abc"), (3, "ac")):
        updates = [run.train(name, replica, number, server_round) for number, name in enumerate(names)]
        d = {name: -values_of(one.path)[PROMPTS].astype(np.float64) for name, one in zip(names, updates, strict=True)}
        p = {one.header.node: one.weight / sum(each.weight for each in updates) for one in updates}
        x = np.ldexp(run.state.sums[PROMPTS].astype(np.float64), -32)
        new = {name: c.get(name, 0.0) - mean_c + d[name] / (8 * 1e-2) for name in names}
        mean_c = mean_c + sum(new[name] - c.get(name, 0.0) for name in names) / 3
        c |= new
        delta = sum(p[name] * d[name] for name in names)
        x = x - delta
        if server_round > 1:
            v = 0.9 * v + 0.1 * (before - delta) + mean_c - sum(p[name] * c[name] for name in names)
            x = x - 0.05 * 0.99 ** (server_round - 1) * v
        before = delta
        if server_round == 3:
            # Of one update alone it is another step: the order of updates is none.
            assert not np.allclose(np.ldexp(run.state.sums[PROMPTS].astype(float), -32), x, atol=1e-3)
        run.close(server_round, updates[::-1])
        assert np.allclose(np.ldexp(run.state.sums[PROMPTS].astype(np.float64), -32), x, atol=1e-7)
        save_state(run.own / "state.npz", run.state)
        run.model.state = load_state(run.own / "state.npz")
        assert run.state.tables.keys() >= {"control", "control/a", "control/b", "control/c", "change"}
        assert run.published[-1].entries.keys() == {PROMPTS}, "tables are never published"
        run.adopt(replica, server_round, whole=True)


def test_the_mean_alone_keeps_nothing(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    run = Run(FedPepTAOSettings(**SIZES, server_rate=0.0, shared_part=1.0), make_llama(layers=1), tmp_path)
    replica = run.replica("a")
    update = run.train("a", replica, 0)
    alone = run.half.aggregate(ExactState.zero(run.plan(1).training, run.schema), run.plan(1), [update])
    assert not alone.tables
    sent = values_of(update.path)[PROMPTS]
    assert np.array_equal(np.ldexp(alone.sums[PROMPTS].astype(np.float64), -32), sent)


def test_what_travels_is_that_of_the_shared_layers() -> None:
    names = [f"encoder.layer.{i}.attention.self.{part}" for i in range(6) for part in ("query", "key", "value")]
    schema = ModelSchema(tuple(LayerSpec(name, 384, 384) for name in names), ())
    half = FedPepTAO(FedPepTAOSettings())
    for server_round, shape in ((1, {SCORES: (1, 6)}), (2, {PROMPTS: (3, 15_360)})):
        training = half.training(server_round, 0)
        assert training.update_shapes(schema) == shape and training.phase == ("scores" if server_round == 1 else "")
    rates = [half.training(server_round, 0).server_rate for server_round in (1, 2, 3, 2000)]
    assert rates == [0.0, 0.05, 0.05 * 0.99, 1e-4]
    every = server_half(FedPepTAOSettings(shared_part=1.0)).training(1, 0)
    assert isinstance(every, PromptTraining) and every.shares_model and every.shapes(schema) == {PROMPTS: (6, 15_360)}
    with pytest.raises(ConfigError, match="prompts have no place in this model: no layer makes keys alone"):
        every.shapes(ModelSchema((LayerSpec("h.0.attn.c_attn", 3, 1),), ()))
    with pytest.raises(ConfigError, match="shared_part is 1.5"):
        FedPepTAOSettings(shared_part=1.5)
