# SPDX-License-Identifier: Apache-2.0
"""`fedkrso profile` as a user runs it, and the traces behind it against real steps."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from devices.catalogue import DEVICES, device_by_name
from edge_client.process.measuring import Request, measured
from fedcore.config.sections import TaskSection
from fedcore.device.memoryplan import MemoryPlan
from fedcore.errors import ConfigError


def profile(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from fedcore.command import main; main()", "profile", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def config(make_llama: Callable[..., Path], tmp_path: Path) -> Path:
    """A config.json alone: no weights."""
    (tmp_path / "alone").mkdir()
    return Path(shutil.copy(make_llama() / "config.json", tmp_path / "alone" / "config.json"))


def test_a_config_alone_gives_a_table_and_a_page(config: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = profile(config, "--budget", "2GiB", "--batch", 4, "--length", 32, "--html", page, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    columns = {column["method"]: column for column in found["columns"]}
    assert set(columns) == {"full fine-tuning", "LoRA", "FedKRSO"} and columns["FedKRSO"]["fits"]
    components = columns["FedKRSO"]["components"]
    # 2 layers of width 32, to the byte: int8 with float32 beside it, since there is room, and a scale for each row.
    numbers, rows = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 96, 2 * 32 + 2 * 16 + 2 * 96 + 32
    assert components["weights_bytes"] == 2 * (5 * numbers + 4 * rows)
    assert (
        columns["full fine-tuning"]["components"]["optimiser_bytes"]
        == 2 * columns["full fine-tuning"]["components"]["weights_bytes"]
    )
    # An answer of as many tokens as the model has positions: keys and values, layers, heads, features, float32.
    (answer,) = found["answers"]
    assert (answer["context_tokens"], answer["fits"], found["longest_context"]) == (256, True, 256)
    assert answer["components"]["cache_bytes"] == 2 * 2 * 2 * 8 * 4 * 256
    assert answer["components"]["weights_bytes"] == 2 * (numbers + 4 * rows)
    text = page.read_text()
    assert "budget 2,048 MiB" in text and text.count('class="bar"') == 4 and "<script" not in text


def test_what_does_not_fit_is_said_with_the_numbers(config: Path) -> None:
    done = profile(config, "--budget", "300 MiB", "--batch", 4, "--length", 32)
    assert done.returncode == 8
    assert "FedKRSO: does not fit: " in done.stdout and "MiB short" in done.stderr and "at least" in done.stderr
    assert "answers: do not fit: " in done.stdout and "KV cache" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--device", "jetson-orin-nano-8g"), 2, "did you mean 'jetson-orin-nano-8gb'?"),
        (("--budget", "4 gigs"), 2, "write a number and a unit: 4 GiB"),
        (("--device", "jetson-orin-nano-4gb", "--budget", "8GiB"), 8, "more than the"),
        (("--batch", "0"), 2, "--batch"),
        (("--task", "singing"), 2, "--task"),
    ],
)
def test_wrong_input_is_refused_with_the_nearest_valid_choice(
    config: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = profile(config, *arguments)
    assert (done.returncode, says in done.stderr, "Traceback" in done.stderr) == (code, True, False), done.stderr


def test_devices_spare_less_than_they_have() -> None:
    assert all(0 < device.usable_bytes < device.total_bytes for device in DEVICES.values())
    with pytest.raises(ConfigError, match="no device 'toaster'"):
        device_by_name("toaster", place="--device")


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_prediction_is_close_to_real_steps(minilm_folder: Path, tmp_path: Path, checkpointing: bool) -> None:
    task = TaskSection(kind="text-classification", labels=("a", "b"), max_length=128)
    memory = MemoryPlan(micro_batch_size=8, checkpointing=checkpointing)
    got = measured(
        Request(model_folder=str(minilm_folder), task=task, batch_size=8, length=128, memory=memory), tmp_path
    )
    assert abs(got.error) < 0.1 and abs(got.predicted.total_bytes / got.peak_bytes - 1) < 0.1
