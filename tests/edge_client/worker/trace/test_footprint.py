# SPDX-License-Identifier: Apache-2.0
"""What each method keeps in memory is foreseen before a weight is loaded: close to real steps, and refused with the
numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from transformers import LlamaConfig

from edge_client.memory.planner import Bounds, Calibration, fit, plans
from edge_client.process.measuring import Request, measured
from edge_client.worker.adapters.attaching import with_adapter
from edge_client.worker.model.loading import describe
from edge_client.worker.trace.footprint import cached_footprint, footprint
from edge_client.worker.trace.outline import Outline, write_random_checkpoint
from edge_client.worker.train.highwater import status_bytes
from fedcore.config.adapters import IA3, DoRA, PrefixTuning, PromptTuning, PTuning, VeRA
from fedcore.config.sections import TaskSection
from fedcore.device.memoryplan import Footprint, MemoryPlan
from fedcore.errors import BudgetError
from fedcore.methods import server_half, settings_by_name
from fedcore.round.training import AnyTraining
from fedcore.weights.checkpoint import Checkpoint

WORDS = TaskSection(kind="causal-lm", max_length=64)


def training(name: str, server_round: int = 1, **settings: Any) -> AnyTraining:
    kind = next(kind for kind in settings_by_name().values() if kind.__struct_config__.tag == name)
    if name.startswith("fedkseed"):
        settings = {"num_seeds": 8, **settings}
    return server_half(kind(**{"steps": 2, "interval_steps": 2, "batch_size": 2, **settings})).training(server_round, 0)  # type: ignore[arg-type]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """The config.json of a model with 200 million numbers in target layers, and nothing else."""
    folder = tmp_path / "large"
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=4,
        num_attention_heads=16,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    return folder


def of(folder: Path, found: AnyTraining, compute_dtype: str = "float32") -> Footprint:
    schema = describe(Outline(folder, WORDS), WORDS)
    schema = with_adapter(schema, folder, WORDS, found.adapter)
    return footprint(folder, schema, WORDS, "int8", found, longest=32, compute_dtype=compute_dtype)


_LONG = pytest.mark.chaos


@pytest.mark.parametrize(
    ("name", "settings", "micro_batch_size", "checkpointing"),
    [
        # One pass a step; several passes are among the long ones. FedKRSO's own is in tests of `fedkrso profile`.
        pytest.param("fedavg", {}, 8, False, marks=pytest.mark.slow),
        pytest.param("fedkseed", {}, 8, False, marks=pytest.mark.slow),
        pytest.param("ferret", {}, 2, False, marks=_LONG),
        pytest.param("fedit", {}, 8, False, marks=_LONG),
        pytest.param("fedavg", {"codec": "float32"}, 4, True, marks=_LONG),
        pytest.param("fedit", {}, 2, True, marks=_LONG),
        pytest.param("ffa-lora", {}, 8, False, marks=_LONG),
        pytest.param("rolora", {}, 8, False, marks=_LONG),
        pytest.param("fedsa-lora", {}, 8, False, marks=_LONG),
        pytest.param("flora", {}, 4, False, marks=_LONG),
        pytest.param("fedex-lora", {}, 4, False, marks=_LONG),
        pytest.param("fedkseed-pro", {}, 2, False, marks=_LONG),
        pytest.param("ferret", {}, 8, False, marks=_LONG),
        pytest.param("fedkrso", {"moments": "carried"}, 8, False, marks=_LONG),
        pytest.param("fedkrso", {"moments": "averaged"}, 8, False, marks=_LONG),
        pytest.param("fedkrso", {"moments": "rows"}, 8, False, marks=_LONG),
        pytest.param("fedtt", {}, 4, False, marks=_LONG),
        # A core of U trains, then one of D.
        pytest.param("fedtt+", {}, 8, False, marks=_LONG),
        pytest.param("fedtt+", {"server_round": 2}, 8, False, marks=_LONG),
        pytest.param("slora", {}, 4, False, marks=_LONG),
        pytest.param("fedcybgd", {}, 4, False, marks=_LONG),
        pytest.param("spafl", {}, 4, False, marks=_LONG),
        pytest.param("fedbpt", {}, 8, False, marks=_LONG),
        pytest.param("split", {"front": 2, "tokens": 1024}, 8, False, marks=_LONG),
        pytest.param("fedpeptao", {"shared_part": 1.0}, 4, False, marks=_LONG),
        pytest.param("fedavg-peft", {"peft": IA3()}, 8, False, marks=_LONG),
        pytest.param("fedavg-peft", {"peft": VeRA()}, 4, False, marks=_LONG),
        pytest.param("fedavg-peft", {"peft": DoRA()}, 4, True, marks=_LONG),
        pytest.param("fedavg-peft", {"peft": PromptTuning()}, 8, False, marks=_LONG),
        pytest.param("fedavg-peft", {"peft": PrefixTuning()}, 4, False, marks=_LONG),
        pytest.param("fedavg-peft", {"peft": PTuning()}, 4, True, marks=_LONG),
    ],
)
def test_the_prediction_is_close_to_real_steps_of_each_method(
    name: str, settings: dict[str, Any], micro_batch_size: int, checkpointing: bool, minilm_folder: Path, tmp_path: Path
) -> None:
    task = TaskSection(kind="text-classification", labels=("a", "b"), max_length=128)
    # RoLoRA trains A, which keeps what B does not, in even rounds: the plan is for those. Measured rounds are the
    # first.
    settings = {"server_round": 2 if name == "rolora" else 1, "batch_size": 8, **settings}
    found = training(name, **settings)
    memory = MemoryPlan(micro_batch_size=micro_batch_size, checkpointing=checkpointing)
    request = Request(
        model_folder=str(minilm_folder), task=task, batch_size=8, length=128, memory=memory, training=found
    )
    got = measured(request, tmp_path)
    beyond = got.peak_bytes - got.traced.runtime_bytes
    for foreseen in (got.traced, got.predicted):
        assert abs(foreseen.total_bytes - got.peak_bytes) < 0.1 * beyond < 0.1 * got.peak_bytes


@pytest.mark.parametrize(
    ("name", "dtype", "times"), [("fedkrso", "float32", 4), ("fedkrso", "bfloat16", 0), ("fedit", "float32", 0)]
)
def test_a_language_model_may_have_its_weights_dequantised(
    name: str, dtype: str, times: int, make_llama: Callable[..., Path]
) -> None:
    folder = make_llama(layers=1)
    numbers = sum(layer.rows * layer.columns for layer in describe(Checkpoint(folder), WORDS).layers)
    assert of(folder, training(name), dtype).dequantised_bytes == times * numbers


@pytest.mark.slow
@pytest.mark.parametrize("dequantised", [False, True])
def test_texts_end_to_end_are_within_what_is_foreseen(minilm_folder: Path, tmp_path: Path, dequantised: bool) -> None:
    """A head that pools: what is traced is a micro-batch of full length with padding."""
    task = TaskSection(kind="text-classification", labels=("a", "b"), pooling="mean", max_length=128)
    memory = MemoryPlan(micro_batch_size=8, dequantised=dequantised)
    request = Request(model_folder=str(minilm_folder), task=task, batch_size=8, length=128, memory=memory)
    got = measured(request, tmp_path)
    beyond = got.peak_bytes - got.traced.runtime_bytes
    for foreseen in (got.traced, got.predicted):
        assert abs(foreseen.total_bytes - got.peak_bytes) < 0.1 * beyond < 0.1 * got.peak_bytes


@pytest.mark.slow
def test_dequantised_weights_are_foreseen(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    config = LlamaConfig(
        vocab_size=2_000, hidden_size=512, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=8, dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    write_random_checkpoint(Outline(folder, WORDS), folder / "model.safetensors", 0)
    memory = MemoryPlan(micro_batch_size=4, dequantised=True)
    request = Request(model_folder=str(folder), task=WORDS, batch_size=4, length=48, memory=memory)
    got = measured(request, tmp_path / "replica")
    beyond = got.peak_bytes - got.traced.runtime_bytes
    assert beyond > 5 * 16_800_000, "int8 and float32 of as many numbers"
    for foreseen in (got.traced, got.predicted):
        assert abs(foreseen.total_bytes - got.peak_bytes) < 0.1 * beyond


@pytest.mark.slow
def test_every_method_says_what_it_keeps(make_llama: Callable[..., Path]) -> None:
    # So few words that the loss is small beside the layers.
    folder = make_llama(layers=2, width=64, vocabulary=256)
    numbers = sum(layer.rows * layer.columns for layer in describe(Checkpoint(folder), WORDS).layers)
    # All but those that need a head.
    names = [
        tag for kind in settings_by_name().values() if (tag := kind.__struct_config__.tag) not in ("fed3r", "split")
    ]
    found = {str(name): of(folder, training(str(name))) for name in names}

    def live(name: str) -> int:
        whole = next(
            p
            for p in found[name].points
            if (p.micro_batch_size, p.checkpointing, p.recompute_gates) == (2, False, False)
        )
        return whole.activations_bytes + whole.logits_bytes + whole.working_bytes

    # Float weights, gradients, two moments; Ferret publishes next to nothing.
    dense = [(f.trained_bytes, f.moments_bytes, f.row_bytes) for f in (found["fedavg"], found["ferret"])]
    assert dense == [(8 * numbers, 8 * numbers, 0)] * 2
    assert found["fedavg"].subspaces_bytes == 2 * numbers and found["ferret"].subspaces_bytes < numbers
    assert found["fedkseed"].subspaces_bytes == 4 * numbers and found["fedkseed"].trained_bytes == 0
    # Inputs of layers are kept for A, not for B alone nor for a subspace; forward passes alone keep next to nothing.
    assert live("fedkseed") * 2 < live("ffa-lora") < live("fedit") == live("fedsa-lora") == live("rolora")
    assert live("fedkrso") < live("fedit")
    assert found["fedkrso"].rank_bytes > 0 == found["fedkrso"].trained_bytes
    factors = [found[name].trained_bytes for name in ("fedit", "ffa-lora")]
    assert factors[0] > factors[1] > 0


@pytest.mark.parametrize("name", ["fedavg", "fedit", "fedkseed"])
def test_products_in_16_bits_are_foreseen_too(name: str, make_llama: Callable[..., Path]) -> None:
    folder = make_llama(layers=1, vocabulary=256)
    wide, narrow = (of(folder, training(name), dtype) for dtype in ("float32", "bfloat16"))
    # A block of the base: 4 or 2 bytes a number; for moving weights the sum, the change and the direction beside it.
    assert [found.row_bytes // 96 for found in (wide, narrow)] == {
        "fedavg": [0, 0],
        "fedit": [4, 2],
        "fedkseed": [9, 11],
    }[name]
    assert (wide.trained_bytes, wide.moments_bytes, wide.subspaces_bytes) == (
        narrow.trained_bytes, narrow.moments_bytes, narrow.subspaces_bytes,
    )  # fmt: skip


@pytest.mark.slow
def test_what_goes_on_of_moments_is_counted(make_llama: Callable[..., Path]) -> None:
    folder = make_llama(layers=1, width=64)
    rows = sum(layer.rows for layer in describe(Checkpoint(folder), WORDS).layers)
    reset, carried, averaged, by_row = (
        of(folder, training("fedkrso", moments=name, rank=8)).subspaces_bytes
        for name in ("reset", "carried", "averaged", "rows")
    )
    # One interval of rank 8; five published subspaces. By row: an int16 and three floats.
    assert (carried - reset, averaged - reset) == (8 * 8 * rows, (4 + 5 * 2) * 8 * rows)
    assert by_row - reset == 14 * rows


def test_a_method_that_cannot_fit_is_refused_with_the_numbers_and_takes_no_memory_to_find_out(large: Path) -> None:
    before = status_bytes("VmRSS") or 0
    full, own = of(large, training("fedavg")), of(large, training("fedkrso"))
    assert (status_bytes("VmRSS") or 0) - before < 400_000_000, "its weights alone would take 800 MB"
    room, bounds = 2_000_000_000, Bounds(batch_size=2, rank=8, min_rank=8)
    assert fit(own, bounds, room, Calibration()).components.total_bytes < room
    with pytest.raises(BudgetError, match=r"training needs [3-6],\d\d\d MiB with the smallest plan .* MiB short"):
        fit(full, Bounds(batch_size=2, rank=0, min_rank=0), room, Calibration())
    least = min(
        plans(full, Bounds(batch_size=2, rank=0, min_rank=0), Calibration()),
        key=lambda plan: plan.components.total_bytes,
    )
    assert least.components.optimiser_bytes > 16 * 190_000_000


@pytest.mark.slow
def test_a_footprint_is_good_for_all_rounds_of_a_run_and_for_no_other_method(
    make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_llama(layers=1)
    schema = describe(Checkpoint(folder), WORDS)

    def key(found: AnyTraining) -> str:
        sizes: dict[str, Any] = {"compute_dtype": "float32", "longest": 64, "min_length": 0}
        return cached_footprint(tmp_path / "cache", folder, schema, WORDS, "int8", found, **sizes).key

    assert len({key(training("rolora", number)) for number in (1, 2)}) == 1
    assert len({key(training("fedkrso", number, schedule="fresh")) for number in (1, 2)}) == 1
    several = [
        training("fedkrso"),
        training("fedkrso", num_seeds=6),
        training("fedkrso", moments="carried"),
        training("fedavg"),
    ]
    assert len({key(found) for found in (*several, msgspec.structs.replace(several[0], batch_size=4))}) == 5
