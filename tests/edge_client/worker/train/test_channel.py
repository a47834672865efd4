# SPDX-License-Identifier: Apache-2.0
"""Noise on embeddings in training: as much as the plan says, the same after a kill and for every micro-batch, and none
where anything is measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from method_runs import CPU, HEAD_TASK, WHOLE, Run, settings_of, values_of
from torch import Tensor, nn

from coordinator.rounds.policy import admit
from edge_client.process.measuring import Request, measured, subspace_round
from edge_client.worker.data.tasks import Encoded, outputs
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.loading import describe
from edge_client.worker.trace.footprint import footprint
from edge_client.worker.train.channel import StepNoise, embeddings_of, noise, over_channel, receive
from fedcore.config.adapters import PromptTuning
from fedcore.config.sections import TaskSection
from fedcore.device.memoryplan import Footprint, MemoryPlan
from fedcore.errors import ModelError
from fedcore.methods import settings_by_name
from fedcore.methods.adapters.peft import PeftSettings
from fedcore.methods.fed3r import Fed3RSettings
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.methods.interface import MethodSettings
from fedcore.methods.whole.fedavg import FedAvgSettings
from fedcore.round.plan import Plan
from fedcore.round.training import ChannelTraining
from fedcore.weights.checkpoint import Checkpoint

CHANNEL = ChannelTraining(errors=(0.25,))
TASK = TaskSection(kind="text-classification", labels=("a", "b"), max_length=128)


def over(plan: Plan, channel: ChannelTraining | None = CHANNEL) -> Plan:
    return msgspec.structs.replace(plan, training=msgspec.structs.replace(plan.training, channel=channel))


def update(run: Run, name: str, plan: Plan, memory: MemoryPlan = WHOLE, stop: int = 0) -> dict[str, Tensor]:
    """A node's, trained by a fresh replica under one name."""
    path = run.own / f"{name}.bin"
    trainer, _ = run.trainer("a", run.replica("a"), run.examples(0), stop)
    trainer.train(plan, (memory,), path)
    admit(path, plan, "r", "a", run.learning.safety)
    return {name: torch.from_numpy(value.copy()) for name, value in values_of(path).items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_noise_has_the_bits_that_it_had() -> None:
    out = np.empty((40, 384), np.float32)
    noise(5, 3, "kitchen", 7, 2, out)
    assert hashlib.sha256(out.tobytes()).hexdigest()[:16] == "98aaa96d618d4c61"
    assert abs(out.mean()) < 0.02 and out.var() == pytest.approx(1, abs=0.03)
    shorter = np.empty((3, 384), np.float32)
    noise(5, 3, "kitchen", 7, 2, shorter)
    assert np.array_equal(shorter, out[:3])
    others = [(6, 3, "kitchen", 7, 2), (5, 4, "kitchen", 7, 2), (5, 3, "attic", 7, 2), (5, 3, "kitchen", 8, 2)]
    for words in (*others, (5, 3, "kitchen", 7, 3)):
        other = np.empty_like(out)
        noise(*words, other)
        assert abs(np.corrcoef(out.reshape(-1), other.reshape(-1))[0, 1]) < 0.05


def test_embeddings_get_as_much_noise_as_the_plan_says(minilm_folder: Path, tmp_path: Path) -> None:
    run = Run(FedKRSOSettings(), minilm_folder, tmp_path, of_task=HEAD_TASK)
    replica, plan, batch = run.replica("a"), run.plan(1), run.examples(0)[:8]
    batch = [Encoded(one.ids, (0,) * len(one.ids), one.target) for one in batch]
    embeddings, said = embeddings_of(replica.model), list[Tensor]()
    assert type(embeddings).__name__ == "BertEmbeddings"
    with torch.no_grad():
        for one in (plan, over(plan)):
            with over_channel(replica.model, one, "a") as steps:
                after = embeddings.register_forward_hook(lambda *args: said.append(args[2]))
                if steps is not None:
                    steps.see(0, 0, batch)
                logits = outputs(replica.model, batch, 0, CPU)
                after.remove()
        clean = outputs(replica.model, batch, 0, CPU)
    quiet, noisy = said
    real = torch.arange(quiet.shape[1])[None] < torch.tensor([[len(one.ids)] for one in batch])
    power = quiet.square().mean(-1)
    error = ((noisy - quiet).square().mean(-1) / power)[real]
    assert error.mean() == pytest.approx(0.25, rel=0.03), "each token's, in units of its own power"
    assert not (noisy - quiet)[~real].any() and not torch.equal(logits, clean)
    with over_channel(replica.model, plan, "a"), torch.no_grad():
        assert torch.equal(outputs(replica.model, batch, 0, CPU), clean), "without a channel nothing is there"


def test_noise_is_the_same_however_texts_lie(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    plan = over(Run(FedKRSOSettings(), make_llama(), tmp_path).plan(1))
    batch = [Encoded((1,) * length, None, None) for length in (5, 2, 7)]
    steps = StepNoise(plan, "a")
    steps.see(4, 0, batch)
    whole, row = steps(torch.empty(3, 7, 8)), steps(torch.empty(1, 14, 8))
    assert torch.equal(row[0], torch.cat([whole[0, :5], whole[1, :2], whole[2]]))
    assert whole[1, 2:].abs().sum() == 0
    steps.see(4, 1, batch[1:])
    assert torch.equal(steps(torch.empty(2, 7, 8)), whole[1:]), "a micro-batch is a part of its batch"
    before = steps(torch.empty(2, 9, 8))
    assert (before[0, :4] != 0).any(-1).all() and before[0, 4:].abs().sum() == 0, "virtual tokens are sent too"


@pytest.mark.parametrize(
    "settings",
    [
        FedKRSOSettings,
        Fed3RSettings,
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in settings_by_name().values()
            if kind not in (FedKRSOSettings, Fed3RSettings)
        ),
    ],
)
def test_a_killed_worker_ends_with_the_same_update(
    settings: type[MethodSettings], make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    run = Run(settings_of((settings, {})), make_llama(), tmp_path)
    clean, plan = run.plan(1), over(run.plan(1))
    whole = update(run, "whole", plan)
    with pytest.raises(SystemExit):
        update(run, "never", plan, stop=5)
    assert equal(update(run, "resumed", plan), whole)
    assert not equal(update(run, "clean", clean), whole), "it was in the way"


def test_an_example_gets_its_own_noise_whatever_the_micro_batch(
    make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    """Seen by sums, which no optimiser's roots make other ones of."""
    run = Run(settings_of((Fed3RSettings, {})), make_llama(), tmp_path)
    plan = over(run.plan(1))
    whole, small = update(run, "whole", plan), update(run, "small", plan, MemoryPlan(micro_batch_size=1))
    for name, value in whole.items():
        assert torch.allclose(small[name], value, rtol=1e-3, atol=1e-5), name


def test_other_errors_make_it_another_round(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """What a killed worker left is not gone on from under another channel."""
    run = Run(settings_of((FedAvgSettings, {})), make_llama(), tmp_path)
    louder = over(run.plan(1), ChannelTraining(errors=(0.5,)))
    fresh = update(run, "fresh", louder)
    with pytest.raises(SystemExit):
        update(run, "never", over(run.plan(1)), stop=5)
    assert equal(update(run, "louder", louder), fresh)


def test_a_model_whose_embeddings_lie_otherwise_is_refused(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    run = Run(settings_of((FedAvgSettings, {})), make_llama(), tmp_path)
    steps = StepNoise(over(run.plan(1)), "a")
    steps.see(0, 0, [Encoded((1,) * 5, None, None)] * 3)
    with pytest.raises(ModelError, match=r"channel: its embeddings are of \(5, 3\) texts and tokens"):
        steps(torch.empty(5, 3, 8))
    with pytest.raises(ModelError, match="channel: Wordless has no embeddings"):
        embeddings_of(BuiltModel(Wordless()))


class Wordless(nn.Linear):
    """A model that looks at bytes, and has no table of words."""

    base_model_prefix = "backbone"

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.backbone = nn.Identity()


@pytest.mark.slow
def test_a_prompts_virtual_tokens_go_over_it_too(minilm_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    run = Run(PeftSettings(peft=PromptTuning(num_virtual_tokens=3)), minilm_folder, tmp_path, of_task=HEAD_TASK)
    replica, said = run.replica("a"), list[Tensor]()
    handle = receive(replica.model, 0.1, lambda out: (said.append(out), torch.zeros(out.shape))[1])
    outputs(replica.model, [Encoded((5, 6, 7, 8), (0,) * 4, 0)], 0, CPU)
    handle.remove()
    assert [one.shape[1] for one in said] == [3 + 4]


def traced(folder: Path, channel: ChannelTraining | None) -> Footprint:
    training = msgspec.structs.replace(subspace_round(pool=1, rank=4, batch_size=8, steps=2), channel=channel)
    return footprint(folder, describe(Checkpoint(folder), TASK), TASK, "int8", training, longest=128)


@pytest.mark.slow
def test_its_memory_is_foreseen(minilm_folder: Path, tmp_path: Path) -> None:
    quiet, noisy = (traced(minilm_folder, channel) for channel in (None, CHANNEL))
    peaks = [
        max(point.activations_bytes + point.logits_bytes + point.working_bytes for point in found.points)
        for found in (quiet, noisy)
    ]
    assert peaks[0] <= peaks[1] < peaks[0] + 4 * 8 * 128 * 384 * 3, "noise, its product and the sum, for a moment"
    training = msgspec.structs.replace(subspace_round(pool=1, rank=4, batch_size=8, steps=2), channel=CHANNEL)
    memory = MemoryPlan(micro_batch_size=8)
    request = Request(
        model_folder=str(minilm_folder), task=TASK, batch_size=8, length=128, memory=memory, training=training
    )
    got = measured(request, tmp_path)
    beyond = got.peak_bytes - got.traced.runtime_bytes
    for foreseen in (got.traced, got.predicted):
        assert abs(foreseen.total_bytes - got.peak_bytes) < 0.1 * beyond
