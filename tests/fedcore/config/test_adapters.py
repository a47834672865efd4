# SPDX-License-Identifier: Apache-2.0
"""What a job says of an adapter is checked when the job is read, without torch or peft."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fedcore.config.adapters import IA3, PTuning
from fedcore.config.reading import load_config
from fedcore.errors import ConfigError
from fedcore.methods import AnySettings, server_half
from fedcore.methods.adapters.peft import PeftSettings
from fedcore.numbers.coding import Coding
from fedcore.round.header import UpdateHeader
from fedcore.round.training import training_union
from fedcore.weights.schema import AdapterTensor, LayerSpec, ModelSchema, TensorSpec


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    method: AnySettings


def read(folder: Path, peft: str) -> Job:
    path = folder / "job.toml"
    path.write_text(f'[method]\nname = "fedavg-peft"\n{peft}\n')
    return load_config(path, Job)


def test_the_keys_are_pefts_own(tmp_path: Path) -> None:
    job = read(tmp_path, 'peft = { type = "p-tuning", num_virtual_tokens = 8 }')
    assert job.method.adapter == PTuning(num_virtual_tokens=8)
    assert job.method.described() == (
        "fedavg-peft (p-tuning), num_virtual_tokens 8, encoder_hidden_size 128, 40 steps, 8 bits"
    )
    assert job.method.not_with_answers and read(tmp_path, "").method.adapter == IA3()


def test_a_rate_that_is_left_out_is_the_adapters_and_is_kept_as_a_number(tmp_path: Path) -> None:
    rates = {
        kind: read(tmp_path, f'peft = {{ type = "{kind}" }}').method.learning_rate
        for kind in ("ia3", "prompt", "prefix", "dora", "vera", "p-tuning")
    }
    assert rates == {"ia3": 3e-2, "prompt": 1e-1, "prefix": 3e-2, "dora": 1e-3, "vera": 1e-3, "p-tuning": 1e-3}
    assert read(tmp_path, "").method.learning_rate == 3e-2
    assert read(tmp_path, "learning_rate = 0.01").method.learning_rate == 1e-2
    # A run's own job file says it, whatever a later version's default is.
    kept = msgspec.json.encode(read(tmp_path, 'peft = { type = "prompt" }').method)
    assert msgspec.json.decode(kept)["learning_rate"] == 1e-1
    with pytest.raises(ConfigError, match="learning_rate is 0.0, it must be positive"):
        read(tmp_path, "learning_rate = 0.0")


@pytest.mark.parametrize(
    ("peft", "said"),
    [
        ('{ type = "lora", r = 8 }', 'method.peft: LoRA has methods of its own here (write name = "fedit"'),
        ('{ type = "adalora" }', "one of ia3, vera, dora, prompt, prefix, p-tuning"),
        ('{ type = "prefx" }', "did you mean 'prefix'?"),
        ('{ type = "dora", rank = 4 }', "method.peft: unknown key 'rank' (known keys: target_modules, r, lora_alpha)"),
        ('{ type = "vera", r = 0 }', "method.peft.r: r is 0, outside 0 to 4,096"),
        ('{ type = "ia3", target_modules = [""] }', "target_modules is no list of names"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(peft: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        read(tmp_path, f"peft = {peft}")
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_plan_says_what_an_update_has() -> None:
    """The tensors that train, and the head; what every node draws has no record."""
    training: Any = server_half(PeftSettings(bits=4)).training(1, 5)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(training), type=training_union()) == training
    tensors = AdapterTensor("l/ia3_l", (3, 1), start=1.0), AdapterTensor("/vera_A", (2, 4), trained=False, spread=0.1)
    schema = ModelSchema((LayerSpec("l", 3, 4),), (TensorSpec("head.weight", (2, 3), False),), adapter=tensors)
    assert training.shapes(schema) == {"l/ia3_l": (1, 3), "head.weight": (2, 3)}
    header = UpdateHeader(run="r", round=1, node="n", version=0, examples=1, loss=0.0, seconds=0.0)
    expected = training.expected(schema, header)
    assert expected["l/ia3_l"].coding == Coding("integers", 4) and expected.keys() == training.shapes(schema).keys()


def test_a_job_is_read_without_torch_and_peft() -> None:
    program = (
        "import sys, msgspec; from fedcore.methods import settings_union;"
        "msgspec.convert({'name': 'fedavg-peft', 'peft': {'type': 'vera'}}, settings_union());"
        "assert not {'torch', 'peft'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
