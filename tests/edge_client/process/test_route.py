# SPDX-License-Identifier: Apache-2.0
"""The compute route: a pure choice from what was measured, remembered, measured in processes that may crash, hang or
lie."""

from __future__ import annotations

import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from edge_client.node import Node
from edge_client.process.route import (
    SHAPES,
    Part,
    Probe,
    Timing,
    cache_folder,
    choose,
    deciding,
    key_of,
    load,
    needed_parts,
    path_of,
    store,
)
from edge_client.process.route_probe import chosen_route, measured_part, probed
from fedcore.config.sections import BrokerSection, DataSection, TaskSection
from fedcore.device.memoryplan import MemoryPlan
from fedcore.errors import ConfigError, WorkerError
from fedcore.worker.failures import error_of
from fedcore.worker.messages import Failed, Trace, Traced
from fedcore.worker.process import WorkerProcess

MS = 1e-3
# Forward and backward at both shapes, in milliseconds.
PLAIN = ((1.5, 1.5), (34.0, 34.0))


def timing(
    dtype: str, times: tuple[tuple[float, float], ...] = PLAIN, device: str = "cpu", problem: str = ""
) -> Timing:
    forward, backward = (tuple(pair[i] * MS for pair in times) for i in (0, 1))
    return Timing(
        torch_device=device,
        compute_dtype=dtype,
        forward_seconds=forward,
        backward_seconds=backward,
        error=0.001,
        problem=problem,
    )


def part(*timings: Timing) -> Part:
    return Part(timings=timings)


def chosen(parts: dict[str, Part], device: str = "cpu", dtype: str = "auto", base: str = "int8") -> str:
    return choose(parts, device, dtype, base).words  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("half", "words"),
    [
        (((0.9, 0.8), (10.0, 10.0)), "bfloat16 on cpu"),
        (((1.6, 1.6), (14.0, 17.0)), "bfloat16 on cpu"),  # a little slower where a product costs next to nothing
        (((0.9, 0.8), (10.0, 30.0)), "float32 on cpu"),  # backward within the noise
        (((0.9, 0.8), (30.0, 10.0)), "float32 on cpu"),
        (((2.5, 0.8), (10.0, 10.0)), "float32 on cpu"),  # clearly slower at the small shape
        (((2.0, 150.0),), "float32 on cpu"),  # AVX2 alone: given up after the small shape
        ((), "float32 on cpu"),
    ],
)
def test_bfloat16_must_be_clearly_faster_in_both_directions(half: tuple[tuple[float, float], ...], words: str) -> None:
    parts = {"cpu": part(timing("float32"), timing("bfloat16", half), timing("float16", ((0.1, 0.1), (0.1, 0.1))))}
    assert chosen(parts) == words


def test_a_float32_base_and_float16_are_not_for_auto() -> None:
    fast = ((0.1, 0.1), (1.0, 1.0))
    parts = {"cpu": part(timing("float32"), timing("bfloat16", fast), timing("float16", fast))}
    assert chosen(parts, base="float32") == "float32 on cpu" and chosen(parts, base="bfloat16") == "bfloat16 on cpu"
    assert chosen({"cpu": part(timing("float32"), timing("float16", fast))}) == "float32 on cpu"
    assert chosen(parts, "auto", "float16") == "float16 on cpu"
    assert needed_parts("cpu", "auto", "float32") == ()


def test_an_accelerator_is_taken_where_it_is_faster_and_named_ones_must_work() -> None:
    cpu = part(timing("float32"), timing("bfloat16", ((0.9, 0.9), (10.0, 10.0))))
    quick = part(
        timing("float32", ((0.3, 0.3), (2.0, 2.0)), "cuda"), timing("bfloat16", ((0.3, 0.3), (0.5, 0.5)), "cuda")
    )
    slow = part(
        timing("float32", ((9.0, 9.0), (50.0, 50.0)), "cuda"), timing("bfloat16", ((9.0, 9.0), (9.0, 9.0)), "cuda")
    )
    broken = Part(
        timings=tuple(timing(d, (), "cuda", "no kernel image is available") for d in ("float32", "bfloat16", "float16"))
    )
    assert chosen({"cpu": cpu, "cuda": quick}, "auto") == "bfloat16 on cuda"
    assert chosen({"cpu": cpu, "cuda": slow}, "auto") == "bfloat16 on cpu"
    assert chosen({"cpu": cpu, "cuda": broken}, "auto") == "bfloat16 on cpu"
    assert chosen({"cuda": slow}, "cuda") == "bfloat16 on cuda"
    with pytest.raises(ConfigError, match="torch_device: CUDA does not work on this machine: no kernel image"):
        chosen({"cuda": broken}, "cuda")
    with pytest.raises(ConfigError, match="compute_dtype: bfloat16 does not work"):
        chosen(
            {"cpu": part(timing("float32"), timing("bfloat16", (), problem="signal 4")), "cuda": broken},
            "auto",
            "bfloat16",
        )


def test_without_a_measurement_float32_on_the_processor_and_with_wrong_results_nothing() -> None:
    route = choose({"cpu": Part(problem="no answer within 180 s")}, "cpu", "auto", "int8")
    assert route.words == "float32 on cpu" and route.reason == "not measured: no answer within 180 s"
    wrong = {
        "cpu": part(
            timing("float32", problem="its results are wrong: 40.0% off"), timing("bfloat16", (), problem="signal 4")
        )
    }
    with pytest.raises(WorkerError, match="nothing computes on this machine: cpu: its results are wrong"):
        chosen(wrong)


def test_a_probe_is_remembered_by_what_decides_it_and_a_damaged_file_is_not_believed(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "proc" / "cpuinfo"
    cpuinfo.parent.mkdir()
    cpuinfo.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2\n")
    plain = key_of(deciding({}, tmp_path))
    assert key_of(deciding({"UNRELATED": "x"}, tmp_path)) == plain
    assert key_of(deciding({"ONEDNN_MAX_CPU_ISA": "AVX2"}, tmp_path)) != plain
    cpuinfo.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512_bf16\n")
    assert key_of(deciding({}, tmp_path)) != plain
    (tmp_path / "etc").mkdir()
    before = key_of(deciding({}, tmp_path))
    (tmp_path / "etc" / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.3\n")
    assert key_of(deciding({}, tmp_path)) != before

    probe = Probe(key="k", parts={"cpu": part(timing("float32"))})
    assert store(tmp_path / "cache", probe) and load(tmp_path / "cache", "k") == probe
    for damaged in (
        b"",
        b'{"key": "k", "parts": {"cpu": {"timings": 3}}}',
        b'{"key": "other"}',
        b"\xff\xfe",
        path_of(tmp_path / "cache", "k").read_bytes()[:90],
    ):
        path_of(tmp_path / "cache", "k").write_bytes(damaged)
        assert load(tmp_path / "cache", "k") == Probe(key="k")
    assert not store(tmp_path / "etc" / "nv_tegra_release", probe)


def test_where_measurements_are_kept() -> None:
    assert cache_folder({"CACHE_DIRECTORY": "/var/cache/fedkrso:/x", "HOME": "/root"}) == Path("/var/cache/fedkrso")
    assert cache_folder({"HOME": "/home/me"}) == Path("/home/me/.cache/fedkrso")
    assert cache_folder({}) is None


PROGRAM = """
import json, os, signal, sys, time
fd, part, candidates, threads = int(sys.argv[1]), sys.argv[2], sys.argv[3].split(","), sys.argv[4]
def say(**line):
    os.write(fd, json.dumps(line).encode() + b"\\n")
def timing(dtype):
    say(timing={"torch_device": part, "compute_dtype": dtype, "forward_seconds": [0.001, 0.03], "backward_seconds": [0.001, 0.03]})
open(os.environ["CALLS"], "a").write(part + "\\n")
print("a library prints", flush=True)
"""


def program(tmp_path: Path, body: str) -> tuple[tuple[str, ...], dict[str, str]]:
    path = tmp_path / "probe.py"
    path.write_text(PROGRAM + body)
    return (sys.executable, str(path)), {**os.environ, "CALLS": str(tmp_path / "calls")}


@pytest.mark.parametrize(
    ("act", "problem"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signal 11, SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGILL)", "signal 4, SIGILL"),
        ("time.sleep(60)", "no answer within 2 s"),
        ("sys.exit('named symbol not found')", "named symbol not found"),
    ],
)
def test_what_ends_the_process_is_found_out_and_left_out(tmp_path: Path, act: str, problem: str) -> None:
    body = f"for c in candidates:\n    say(begin=c)\n    if c == 'bfloat16':\n        {act}\nfor c in candidates:\n    timing(c)\n"
    command, environment = program(tmp_path, body)
    found = measured_part("cpu", 1, environment, limit_seconds=2.0, command=command)
    assert {t.compute_dtype: t.complete for t in found.timings} == {"float32": True, "float16": True, "bfloat16": False}
    broken = found.timing("bfloat16")
    assert broken is not None and problem in broken.problem
    assert chosen({"cpu": found}) == "float32 on cpu"


def test_libraries_that_do_not_load_are_a_problem_of_the_whole_part(tmp_path: Path) -> None:
    command, environment = program(tmp_path, "import no_such_torch\n")
    found = measured_part("cuda", 1, environment, limit_seconds=20.0, command=command)
    assert found.timings == () and "no_such_torch" in found.problem


def test_a_part_is_measured_once_even_if_two_ask_and_a_failure_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    answers = {"cpu": part(timing("float32")), "cuda": Part(problem="no answer within 180 s")}

    def measure(name: str, threads: int, environment: object) -> Part:
        calls.append(name)
        return answers[name]

    monkeypatch.setattr("edge_client.process.route_probe.measured_part", measure)
    both = [threading.Thread(target=probed, args=(("cpu",), 1, tmp_path, {})) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert calls == ["cpu"]
    for _ in range(2):
        assert chosen_route("auto", "auto", "int8", 1, tmp_path, {}).words == "float32 on cpu"
    assert calls == ["cpu", "cuda", "cuda"]
    probed(("cpu",), 1, tmp_path, {}, again=True)
    assert calls[3:] == ["cpu"]
    assert chosen_route("cpu", "bfloat16", "int8", 1, tmp_path, {}).words == "bfloat16 on cpu" and len(calls) == 4


def test_the_real_probe_measures_every_dtype_and_its_results_are_right() -> None:
    found = measured_part("cpu", 1, os.environ)
    assert found.problem == "" and found.facts["torch"]
    assert [t.compute_dtype for t in found.timings] == ["float32", "bfloat16", "float16"]
    for t in found.timings:
        assert t.problem == "" and t.error is not None and t.error < (1e-4 if t.compute_dtype == "float32" else 0.02)
        assert (
            1 <= len(t.forward_seconds) == len(t.backward_seconds) <= len(SHAPES)
            and min(t.forward_seconds + t.backward_seconds) > 0
        )
    plain = found.timing("float32")
    assert plain is not None and plain.complete
    assert choose({"cpu": found}, "cpu", "auto", "int8").compute_dtype in ("float32", "bfloat16")


def test_without_cuda_the_part_says_so() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    assert "CUDA" in measured_part("cuda", 1, os.environ).problem


@pytest.mark.skipif(
    "avx2" not in Path("/proc/cpuinfo").read_text(errors="replace"), reason="not an x86 processor with AVX2"
)
def test_on_a_processor_held_down_to_avx2_bfloat16_is_not_taken() -> None:
    """What most laptops are: bfloat16 backward is over a hundred times slower than float32 there, and the probe still
    ends soon."""
    held = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    found = measured_part("cpu", 1, {**os.environ, **held}, limit_seconds=100.0)
    half = found.timing("bfloat16")
    assert half is not None and not half.problem
    assert choose({"cpu": found}, "cpu", "auto", "int8").words == "float32 on cpu"


@pytest.mark.parametrize(("key", "value"), [("torch_device", "tpu"), ("compute_dtype", "int4")])
def test_a_node_file_names_what_there_is(key: str, value: str) -> None:
    given: dict[str, Any] = {key: value}
    with pytest.raises(ConfigError, match=f"{key}: no d"):
        Node(
            node="n",
            run="r",
            model_folder="m",
            data=DataSection(source="x"),
            broker=BrokerSection(url="mqtts://h"),
            **given,
        )


def test_a_worker_measures_before_it_loads_and_remembers(tmp_path: Path, minilm_folder: Path) -> None:
    """Real worker processes: the first measures, the second finds it on the disk, and what cannot be is refused by
    name."""
    from edge_client.process.measuring import Request
    from edge_client.worker.programs.measure import local_plan

    task = TaskSection(kind="text-classification", labels=("a", "b"), max_length=16)
    memory = MemoryPlan(micro_batch_size=2)
    plan = local_plan(
        minilm_folder, task, Request(model_folder="", task=task, batch_size=2, length=16, memory=memory, rank=2, pool=1)
    )
    data = tmp_path / "data.csv"
    data.write_text("text,label\nhello there,a\ngood bye,b\n")

    def answer(**route: str) -> object:
        events: queue.Queue[object] = queue.Queue()
        worker = WorkerProcess(events.put, tmp_path / "log", environment={"HF_HUB_OFFLINE": "1"})
        try:
            worker.send(
                Trace(
                    plan=plan,
                    model_folder=str(minilm_folder),
                    data=DataSection(source=str(data)),
                    folder=str(tmp_path / "replica"),
                    route_folder=str(tmp_path / "cache"),
                    **route,  # type: ignore[arg-type]
                )
            )
            return events.get(timeout=250)
        finally:
            worker.stop()

    first = answer(compute_dtype="auto")
    assert isinstance(first, Traced), first
    assert first.examples == 2 and first.route.torch_device == "cpu" and first.route.reason.startswith("bfloat16")
    (file,) = (tmp_path / "cache").glob("*.json")
    # What is remembered is believed: this says that bfloat16 is fast here, whatever this machine is.
    fast = Part(timings=(timing("float32"), timing("bfloat16", ((0.1, 0.1), (1.0, 1.0)))))
    store(tmp_path / "cache", Probe(key=file.stem.rpartition("-")[2], parts={"cpu": fast}))
    second = answer(compute_dtype="auto")
    assert isinstance(second, Traced) and second.route.words == "bfloat16 on cpu"
    # Memory is foreseen for the same dtype: a block's row of the widest layer, and two float32 of what is learned.
    assert second.footprint.row_bytes == 2 * 1536 + 2 * 4
    import torch

    if torch.version.cuda is None:
        refused = answer(torch_device="cuda", compute_dtype="auto")
        assert isinstance(refused, Failed) and "built without CUDA" in refused.message
        assert isinstance(error_of(refused), ConfigError)
