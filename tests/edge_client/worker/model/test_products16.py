# SPDX-License-Identifier: Apache-2.0
"""16-bit products: as exact as their type, whatever the blocks; the same shapes whatever the number of tokens; no
memory that grows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from edge_client.process.measuring import Request
from edge_client.worker.data.tasks import Encoded
from edge_client.worker.model.fused import fuse
from edge_client.worker.model.layer import Int8Weight, SubspaceLinear
from edge_client.worker.model.products16 import CHUNKS, token_chunks
from edge_client.worker.programs.measure import local_plan
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.trainer import Trainer
from fedcore.config.sections import TaskSection
from fedcore.device.memoryplan import MemoryPlan
from fedcore.numbers.records import read_records

CPU = torch.device("cpu")


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 64, 65, 127, 128, 129, 300, 1000])
def test_chunks_cover_all_tokens_in_two_shapes_and_waste_little(tokens: int) -> None:
    chunks = list(token_chunks(tokens, fixed=True))
    assert [i for chunk, _ in chunks for i in range(chunk.start, chunk.stop)] == list(range(tokens))
    assert {height for _, height in chunks} <= set(CHUNKS)
    assert all(0 < chunk.stop - chunk.start <= height for chunk, height in chunks)
    assert sum(height for _, height in chunks) - tokens < 64
    assert list(token_chunks(tokens, fixed=False)) == [(slice(0, tokens), tokens)]


def layer(rows: int, dtype: torch.dtype, block_rows: int) -> SubspaceLinear:
    generator = torch.Generator().manual_seed(3)
    q = torch.randint(-127, 128, (rows, 64), generator=generator, dtype=torch.int8)
    made = SubspaceLinear(
        "l", Int8Weight(q, torch.rand(rows, generator=generator) + 0.1), compute_dtype=dtype, block_rows=block_rows
    )
    projection = (torch.randint(0, 2, (8, 64), generator=generator) * 2 - 1).to(torch.int8)
    state = torch.randint(-900, 900, (rows, 8), generator=generator, dtype=torch.int16)
    made.install(projection, 4, state=state, state_scale=torch.full((rows,), 2.0**-6))
    made.select(1)
    return made


def results(rows: int, dtype: torch.dtype, block_rows: int) -> list[torch.Tensor]:
    made = layer(rows, dtype, block_rows)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(70, 64, generator=generator).requires_grad_()
    y = made(x)
    y.backward(torch.randn(70, rows, generator=generator))
    assert made.factor is not None and made.factor.grad is not None and x.grad is not None
    assert {t.dtype for t in (y, x.grad, made.factor.grad)} == {torch.float32}
    return [y.detach(), x.grad, made.factor.grad]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block_rows", [16, 64, 2048])
def test_the_error_does_not_grow_with_the_number_of_blocks(dtype: torch.dtype, block_rows: int) -> None:
    expected = results(2048, torch.float32, 256)
    for got, wanted in zip(results(2048, dtype, block_rows), expected, strict=True):
        assert float((got - wanted).norm() / wanted.norm()) < 0.007


def test_gradients_of_the_factor_and_adam_stay_float32_and_an_update_is_near_that_of_float32(
    tmp_path: Path, make_llama: Callable[..., Path]
) -> None:
    folder, task = make_llama(), TaskSection(kind="causal-lm", max_length=24)
    memory = MemoryPlan(micro_batch_size=4)
    plan = local_plan(
        folder, task, Request(model_folder="", task=task, batch_size=4, length=24, memory=memory, rank=4, pool=3)
    )
    plan = msgspec.structs.replace(
        plan, training=msgspec.structs.replace(plan.training, intervals=2, interval_steps=2, learning_rate=1e-2)
    )
    examples = [Encoded(tuple((5 * i + j) % 200 + 3 for j in range(10 + i)), None, None) for i in range(8)]
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        own = tmp_path / str(dtype)
        replica = Replica(plan, folder, own, CPU, dtype)
        fuse(replica.model.module)
        trainer = Trainer(replica, examples, own / "intervals", "r", "n", 0, CPU)
        header, _ = trainer.train(plan, (memory,), own / "update")
        found[dtype] = header.loss, {record.name: record.part.values() for record in read_records(own / "update")}
        assert all(
            part.dtype == torch.float32 for one in replica.layers.values() for part in one.accumulators().values()
        )
    (plain_loss, plain), (loss, half) = found[torch.float32], found[torch.bfloat16]
    assert loss == pytest.approx(plain_loss, rel=0.01) and loss != plain_loss
    for name, values in plain.items():
        cosine = float((values * half[name]).sum() / np.sqrt((values**2).sum() * (half[name] ** 2).sum()))
        assert cosine > 0.9, name


GROWTH = """
import torch
from edge_client.worker.train.highwater import status_bytes
from tests_layer import layer
torch.set_num_threads(1)
made = [layer(384, torch.bfloat16, 256), layer(1536, torch.bfloat16, 256)]
def go(tokens):
    for one in made:
        x = torch.randn(tokens, 64).requires_grad_()
        one(x).sum().backward()
go(160)
before = status_bytes("VmRSS")
for tokens in range(100, 160):
    go(tokens)
print(status_bytes("VmRSS") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_texts_of_many_lengths_leave_no_memory_behind(tmp_path: Path) -> None:
    """oneDNN writes and keeps code for each shape: 14 MB for each new number of tokens were measured before the shapes
    were fixed."""
    (tmp_path / "tests_layer.py").write_text(
        f"import importlib.util as u\ns = u.spec_from_file_location('half', {__file__!r})\n"
        "m = u.module_from_spec(s)\ns.loader.exec_module(m)\nlayer = m.layer\n"
    )
    (tmp_path / "growth.py").write_text(GROWTH)
    environment = {
        "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[4]}",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    done = subprocess.run(
        [sys.executable, str(tmp_path / "growth.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 8_000_000
