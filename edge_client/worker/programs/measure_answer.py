# SPDX-License-Identifier: Apache-2.0
"""One answer of a model folder for `fedkrso profile --measure`, in a process of its own: its memory foreseen from
`config.json` alone, and measured on the serving worker's own path."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import torch

from edge_client.process.measuring import AnswerMeasurement, AnswerRequest
from edge_client.worker.answering.finished import finished
from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.generate.generator import Generator
from edge_client.worker.model.loading import describe
from edge_client.worker.trace.contexts import answer_footprint, footprint_of
from edge_client.worker.trace.outline import Outline
from edge_client.worker.train.highwater import begin_peak, peak_bytes, status_bytes
from fedcore.config.generation import GenerationOptions
from fedcore.config.sections import TaskSection
from fedcore.device.memoryplan import MemoryComponents

__all__ = ["main", "measure_answer"]

# So many tokens of the context are the answer's.
_NEW_TOKENS = 8


def measure_answer(request: AnswerRequest, scratch: Path) -> AnswerMeasurement:
    """Answer in this process.

    Args:
        request: What.
        scratch: Folder for the model's weights in 8 bits.
    """
    torch.set_num_threads(request.threads)
    folder, tokens = Path(request.model_folder), request.context_tokens
    predicted = _predicted(folder, tokens)
    tokenizer = read_tokenizer(folder)
    model = finished(folder, scratch, tokenizer).model
    generator = Generator(model, tokenizer, tokens)
    held = status_bytes("VmRSS") or 0
    planned = footprint_of(model, held, 2**62, tokens).components(tokens)
    prompt = [(7 * place) % 97 for place in range(tokens - _NEW_TOKENS)]
    begin_peak()
    started, first = time.monotonic(), 0.0
    for _ in generator.stream(prompt, GenerationOptions(max_new_tokens=_NEW_TOKENS)):
        first = first or time.monotonic() - started
    return AnswerMeasurement(
        predicted=predicted,
        planned=planned,
        held_bytes=held,
        peak_bytes=peak_bytes() or 0,
        first_token_seconds=first,
    )


def _predicted(folder: Path, tokens: int) -> MemoryComponents:
    """From the model's `config.json`, with nothing else of it in sight."""
    task = TaskSection(kind="causal-lm")
    with tempfile.TemporaryDirectory() as name:
        alone = Path(name)
        shutil.copy(folder / "config.json", alone)
        schema = describe(Outline(alone, task), task)
        return answer_footprint(alone, schema, task, (tokens,)).components(tokens)


def main() -> None:
    """Measure the request given as JSON (first argument) with the scratch folder (second); prints one line of JSON."""
    request = msgspec.json.decode(sys.argv[1], type=AnswerRequest)
    sys.stdout.write(msgspec.json.encode(measure_answer(request, Path(sys.argv[2]))).decode() + "\n")
