# SPDX-License-Identifier: Apache-2.0
"""A trace of a few blocks is that of all of them, to the byte; and models whose blocks differ are found out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tiny_models import tiny_config
from torch import nn

from edge_client.memory.planner import Bounds, Calibration, fit
from edge_client.process.measuring import subspace_round
from edge_client.worker.adapters.attaching import with_adapter
from edge_client.worker.model import fused, loss
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.loading import describe, empty_model
from edge_client.worker.trace.blocks import repetition
from edge_client.worker.trace.compare import full_footprint, lora_footprint
from edge_client.worker.trace.footprint import footprint
from edge_client.worker.trace.outline import Outline
from edge_client.worker.trace.points import Tracing
from edge_client.worker.trace.shapes import Shapes
from edge_client.worker.trace.timeline import Timeline
from fedcore.config.adapters import DoRA, PrefixTuning
from fedcore.config.sections import TaskSection
from fedcore.device.memoryplan import Footprint, Point
from fedcore.errors import BudgetError
from fedcore.methods import server_half, settings_by_name
from fedcore.methods.adapters.fedtt import FedTTSettings
from fedcore.methods.adapters.peft import PeftSettings
from fedcore.methods.interface import MethodSettings
from fedcore.methods.lora.slora import SLoRASettings
from fedcore.methods.whole.fedcybgd import FedCyBGDSettings
from fedcore.round.training import AnyTraining

WORDS = TaskSection(kind="causal-lm", max_length=24)
LABELS = TaskSection(kind="text-classification", labels=("a", "b"), max_length=24)
FEDKRSO = subspace_round(pool=5, rank=4, batch_size=4, steps=1, intervals=5)


def method(name: str) -> AnyTraining:
    settings: dict[str, Any] = {"steps": 1, "interval_steps": 1, "batch_size": 2}
    if name == "fedkseed":
        settings["num_seeds"] = 4
    return server_half(settings_by_name()[name](**settings)).training(1, 0)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return Shapes()


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[..., Path]:
    def made(model_type: str, layers: int, **more: Any) -> Path:
        known = tiny_config(model_type)
        sizes = {key: layers for key in ("num_hidden_layers", "n_layer") if hasattr(known, key)}
        tiny_config(model_type, **sizes, **more).save_pretrained(tmp_path / model_type)
        return tmp_path / model_type

    return made


def seen(folder: Path, task: TaskSection) -> tuple[int, int, int] | None:
    found = repetition(BuiltModel(empty_model(folder, task)))
    return None if found is None else (found.lead, found.period, found.kept)


def traced(
    folder: Path, task: TaskSection, training: AnyTraining, shapes: Shapes, *, whole: bool = False, **more: Any
) -> Footprint:
    schema = with_adapter(describe(Outline(folder, task), task), folder, task, training.adapter)
    found = footprint(
        folder, schema, task, "int8", training, longest=24, tracing=Tracing(shapes=shapes, whole=whole), **more
    )
    return msgspec.structs.replace(found, runtime_bytes=0)


@pytest.mark.parametrize(
    ("model_type", "task", "layers", "names", "expected"),
    [
        pytest.param("llama", WORDS, 6, ("fedkrso", "fedavg", "fedit", "fedkseed"), (0, 1, 4), marks=pytest.mark.slow),
        pytest.param("bert", LABELS, 6, ("fedkrso",), (0, 1, 4), marks=pytest.mark.slow),
        ("gpt2", WORDS, 5, ("fedkrso", "fedsa-lora"), (0, 1, 4)),
        pytest.param("mixtral", WORDS, 5, ("fedkrso",), (0, 1, 4), marks=pytest.mark.slow),
    ],
)
def test_a_few_blocks_say_what_all_of_them_keep(
    model_type: str,
    task: TaskSection,
    layers: int,
    names: tuple[str, ...],
    expected: tuple[int, int, int],
    folder_of: Callable[..., Path],
    shapes: Shapes,
) -> None:
    folder = folder_of(model_type, layers)
    assert seen(folder, task) == expected
    for name in names:
        few, whole = (traced(folder, task, method(name), shapes, whole=whole) for whole in (False, True))
        assert few == whole, name
        assert any(point.checkpointing for point in few.points)


@pytest.mark.parametrize(
    "settings",
    [
        PeftSettings(batch_size=2, peft=PrefixTuning()),
        pytest.param(PeftSettings(batch_size=2, peft=DoRA()), marks=pytest.mark.slow),
        pytest.param(FedTTSettings(batch_size=2), marks=pytest.mark.slow),
        SLoRASettings(batch_size=2),
        FedCyBGDSettings(batch_size=2),
    ],
    ids=lambda settings: settings.described().partition(",")[0],
)
def test_what_stands_beside_blocks_is_continued_too(
    settings: MethodSettings, folder_of: Callable[..., Path], shapes: Shapes
) -> None:
    folder, training = folder_of("bert", 6), server_half(settings).training(1, 0)
    few, whole = (traced(folder, LABELS, training, shapes, whole=whole) for whole in (False, True))
    assert few == whole and few.trained_bytes > 0


@pytest.mark.slow
def test_16_bit_products_and_peers_are_continued_too(folder_of: Callable[..., Path], shapes: Shapes) -> None:
    folder = folder_of("llama", 6)
    few, whole = (
        traced(folder, WORDS, FEDKRSO, shapes, whole=whole, compute_dtype="bfloat16") for whole in (False, True)
    )
    assert few == whole
    sizes: dict[str, Any] = {"batch_size": 2, "longest": 24, "runtime_bytes": 0}
    schema = describe(Outline(folder, WORDS), WORDS)
    for few, whole in (
        (
            full_footprint(folder, WORDS, **sizes, tracing=Tracing(shapes=shapes, whole=whole))
            for whole in (False, True)
        ),
        (
            lora_footprint(folder, schema, WORDS, rank=4, **sizes, tracing=Tracing(shapes=shapes, whole=whole))
            for whole in (False, True)
        ),
    ):
        assert few == whole and few.points


def test_every_other_window_is_a_period_of_two(folder_of: Callable[..., Path], shapes: Shapes) -> None:
    kinds = ["sliding_attention", "full_attention"] * 5
    folder = folder_of("gemma2", 10, layer_types=kinds, sliding_window=8)
    assert seen(folder, WORDS) == (0, 2, 6)
    few, whole = (traced(folder, WORDS, FEDKRSO, shapes, whole=whole) for whole in (False, True))
    assert few == whole


def test_blocks_that_differ_are_traced_whole(folder_of: Callable[..., Path], shapes: Shapes) -> None:
    kinds = ["full_attention"] * 2 + ["sliding_attention"] + ["full_attention"] * 2 + ["sliding_attention"]
    folder = folder_of("qwen2", 6, layer_types=kinds, use_sliding_window=True, sliding_window=8, max_window_layers=2)
    assert seen(folder, WORDS) is None
    assert len(traced(folder, WORDS, FEDKRSO, shapes).points) == len(
        traced(folder, WORDS, FEDKRSO, shapes, whole=True).points
    )
    assert seen(folder_of("albert", 8), LABELS) is None, "one block, again and again"


def test_a_first_block_of_another_kind_is_kept(folder_of: Callable[..., Path]) -> None:
    model = empty_model(folder_of("llama", 9), WORDS)
    model.model.layers[0].mlp.gate_proj = nn.Linear(32, 48, bias=False, device="meta")
    found = repetition(BuiltModel(model))
    assert found is not None and (found.lead, found.period, found.kept, found.copies(5)) == (1, 1, 5, 4)


def test_events_that_do_not_repeat_are_not_continued() -> None:
    block, back = [(0, 10), (0, 4), (0, -4)], [(2, 4), (2, -4), (0, -10)]

    def step(block_two: list[tuple[int, int]]) -> Timeline:
        events = [*block, *block, *block_two, *block, *back * 4]
        return Timeline(events, {i: 3 * i for i in range(4)}, {3 - i: 12 + 3 * i for i in range(4)}, {0, 1, 2, 3})

    assert step(block).continued(lead=0, period=1, copies=2) is not None
    assert step([(0, 10), (0, 5), (0, -5)]).continued(lead=0, period=1, copies=2) is None


def test_only_the_first_two_of_many_blocks_of_tokens_are_run(
    folder_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms, gated MLPs and the loss go through tokens and words in blocks: all of them say the same as two."""
    monkeypatch.setattr(fused, "_BLOCK_ELEMENTS", 5 * 64)
    folder = folder_of("llama", 2, vocab_size=9000)
    few = traced(folder, WORDS, FEDKRSO, Shapes())
    for module in (fused, loss):
        monkeypatch.setattr(module, "worth_running", lambda blocks, like: list(blocks))
    assert few == traced(folder, WORDS, FEDKRSO, Shapes())


def test_what_is_remembered_of_operations_is_what_pytorch_says(shapes: Shapes) -> None:
    aten = torch.ops.aten
    with shapes.mode:
        x, y = torch.empty(4, 6), torch.empty(6, 3)
        whole = torch.empty(4, 6, dtype=torch.int64)
    for func, args in (
        (aten.mm.default, (x, y)),
        (aten.mul.Tensor, (x, 2)),
        (aten.mul.Tensor, (whole, 2)),
        (aten.mul.Tensor, (whole, 2.0)),
        (aten.add.Tensor, (x, y.t()[:1, :6])),
        (aten.native_layer_norm.default, (x, [6], None, None, 1e-5)),
        (aten.cat.default, ([x, x], 1)),
        (aten.sum.dim_IntList, (x, [1], True)),
        (aten.clone.default, (x.t(),)),
    ):
        with shapes.mode:
            expected = func(*args)
        for _ in range(2):
            got = shapes.run(func, args, {})
            pairs = zip(expected, got, strict=True) if isinstance(expected, tuple) else [(expected, got)]
            for one, other in pairs:
                assert (one.shape, one.stride(), one.dtype, one.device) == (
                    other.shape, other.stride(), other.dtype, other.device,
                ), func  # fmt: skip
                assert one.untyped_storage().nbytes() == other.untyped_storage().nbytes()
    assert shapes.run(aten.add_.Tensor, (x, 1), {}) is x
    view = shapes.run(aten.t.default, (x,), {})
    assert view.untyped_storage()._cdata == x.untyped_storage()._cdata


def test_somebody_who_waits_is_told(folder_of: Callable[..., Path], shapes: Shapes) -> None:
    told: list[tuple[int, int]] = []
    tracing = Tracing(shapes=shapes, progress=lambda done, of: told.append((done, of)))
    folder = folder_of("llama", 2)
    schema = describe(Outline(folder, WORDS), WORDS)
    footprint(folder, schema, WORDS, "int8", FEDKRSO, longest=24, tracing=tracing)
    assert told == sorted(told) and told[-1][0] == told[-1][1] > 3


@pytest.mark.parametrize("room_bytes", [2**40, 500 * 2**20])
def test_points_that_are_traced_when_they_are_asked_for_are_the_same_and_lead_to_the_same_plan(
    folder_of: Callable[..., Path], room_bytes: int
) -> None:
    """Of a room that holds everything one pass is traced, and of a small one no more than the plans need."""
    told: list[tuple[int, int]] = []
    folder = folder_of("llama", 6)
    schema, shapes = describe(Outline(folder, WORDS), WORDS), Shapes()
    whole = footprint(folder, schema, WORDS, "int8", FEDKRSO, longest=24, tracing=Tracing(shapes=shapes))
    asked = Tracing(shapes=shapes, progress=lambda done, of: told.append((done, of)), when_asked=True)
    later = footprint(folder, schema, WORDS, "int8", FEDKRSO, longest=24, tracing=asked)
    assert told == [(1, len(whole.points))]
    later = msgspec.structs.replace(later, runtime_bytes=whole.runtime_bytes)
    bounds, rough = Bounds(batch_size=FEDKRSO.batch_size, rank=FEDKRSO.rank, min_rank=FEDKRSO.rank), Calibration()
    try:
        expected: object = fit(whole, bounds, room_bytes, rough)
    except BudgetError as error:
        expected = error.one_line()
    try:
        found: object = fit(later, bounds, room_bytes, rough)
    except BudgetError as error:
        found = error.one_line()
    assert found == expected
    if room_bytes == 2**40:
        assert len(told) == 1
    for one, other in zip(whole.points, later.points, strict=True):
        assert all(getattr(other, name) == getattr(one, name) for name in Point.__struct_fields__)
