# SPDX-License-Identifier: Apache-2.0
"""The probing program: `python -m edge_client.worker.programs.route FD PART CANDIDATES THREADS`. Started by
`edge_client.process.route_probe`.

Runs the layer that trains, forward and backward, as it is in the middle of a run: int8 weight, a published state in
every subspace, one subspace training. Candidates take turns, so that what else the machine does meets them all; the
best time of each counts. Results are compared with float32 on the processor, and float32 itself with dense arithmetic.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import torch
from torch import Tensor

from edge_client.process.route import SHAPES, Shape, Timing
from edge_client.process.route_probe import Line
from edge_client.worker.model.layer import SubspaceLinear
from edge_client.worker.model.weights import Int8Weight, Scratch

__all__ = ["Results", "Say", "main"]

_TURNS = 5
# A 16-bit product differs by half a per cent; ten times that is not rounding.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.03, "float16": 0.03, "int8": 0.06}
# So much slower than float32 at the small shape, the large one could take minutes.
_FAR_TOO_SLOW = 4.0
_LONG_SECONDS = 0.3
_RANK, _POOL = 8, 5
_CHECK = Shape(64, 48, 8)

Say = Callable[[Line], None]
# Output, gradient of the input, gradient of the factor.
Results = tuple[Tensor, ...]


class _Numbers:
    """One layer's numbers, the same for every candidate."""

    def __init__(self, shape: Shape) -> None:
        generator = torch.Generator().manual_seed(0)
        m, n, t = shape.rows, shape.columns, shape.tokens
        self.q = torch.randint(-127, 128, (m, n), generator=generator, dtype=torch.int8)
        self.scale = (0.5 + torch.rand(m, generator=generator)) / (64 * n**0.5)
        self.projection = (torch.randint(0, 2, (_POOL * _RANK, n), generator=generator) * 2 - 1).to(torch.int8)
        self.state = torch.randint(-1000, 1000, (m, _POOL * _RANK), generator=generator, dtype=torch.int16)
        self.state_scale = torch.full((m,), 2.0**-18)
        self.x = torch.randn(t, n, generator=generator)
        self.gy = torch.randn(t, m, generator=generator)


class _Candidate:
    """The layer in one dtype on one device."""

    def __init__(self, numbers: _Numbers, torch_device: str, compute_dtype: str) -> None:
        base = Int8Weight(numbers.q.to(torch_device), numbers.scale.to(torch_device))
        self.layer = SubspaceLinear("probe", base, compute_dtype=getattr(torch, compute_dtype), scratch=Scratch())
        self.layer.install(numbers.projection, _RANK, state=numbers.state, state_scale=numbers.state_scale)
        self.layer.select(0)
        assert self.layer.factor is not None
        self.factor = self.layer.factor
        self.x, self.gy = numbers.x.to(torch_device).requires_grad_(), numbers.gy.to(torch_device)
        self.synchronise = _synchroniser(torch_device)

    def run(self) -> tuple[float, float, Results]:
        """Seconds forward and backward, and what came out."""
        self.x.grad = self.factor.grad = None
        self.synchronise()
        start = time.perf_counter()
        y = self.layer(self.x)
        self.synchronise()
        middle = time.perf_counter()
        y.backward(self.gy)
        self.synchronise()
        end = time.perf_counter()
        return middle - start, end - middle, (y.detach(), _gradient(self.x), _gradient(self.factor))


def _synchroniser(torch_device: str) -> Callable[[], None]:
    """What waits until the device is done."""
    return (lambda: torch.cuda.synchronize()) if torch_device == "cuda" else (lambda: None)


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None, "there is no gradient"
    return tensor.grad


def _difference(found: Results, expected: Results) -> float:
    """Largest relative difference; not a number where something is not finite."""
    return max(
        float((a.cpu().float() - b).norm() / b.norm()) if a.isfinite().all() else float("nan")
        for a, b in zip(found, expected, strict=False)
    )


def _dense(numbers: _Numbers) -> Results:
    """The same in plain float64 arithmetic."""
    w = numbers.q.double() * numbers.scale.double()[:, None]
    p = numbers.projection.double() / _RANK**0.5
    side = w + numbers.state.double() * numbers.state_scale.double()[:, None] @ p
    x, gy = numbers.x.double(), numbers.gy.double()
    return tuple(part.float() for part in (x @ side.T, gy @ side, gy.T @ (x @ p[:_RANK].T)))


def _wrong(error: float, compute_dtype: str) -> str:
    if error <= _TOLERANCE[compute_dtype]:
        return ""
    return "its results are not finite" if error != error else f"its results are wrong: {error:.1%} off"


def _words(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _measure(torch_device: str, candidates: list[str], say: Say) -> None:
    """All candidates of a device."""
    found = {dtype: Timing(torch_device=torch_device, compute_dtype=dtype) for dtype in candidates}
    small = _Numbers(_CHECK)
    for dtype in candidates:
        say(Line(begin=dtype))
        try:
            error = _difference(_Candidate(small, torch_device, dtype).run()[2], _dense(small))
        except Exception as caught:  # noqa: BLE001 - whatever a library throws is the finding
            found[dtype] = msgspec.structs.replace(found[dtype], problem=_words(caught))
        else:
            found[dtype] = msgspec.structs.replace(found[dtype], error=error, problem=_wrong(error, dtype))
    for shape in SHAPES:
        going = [d for d in candidates if not found[d].problem and not _too_slow(found, d)]
        for dtype, timing in _timed(shape, torch_device, going, found, say).items():
            found[dtype] = timing
    for timing in found.values():
        say(Line(timing=timing))


def _timed(shape: Shape, torch_device: str, going: list[str], found: dict[str, Timing], say: Say) -> dict[str, Timing]:
    """Candidates in turns at one shape."""
    numbers = _Numbers(shape)
    expected = _Candidate(numbers, "cpu", "float32").run()[2]
    made = {dtype: _Candidate(numbers, torch_device, dtype) for dtype in going}
    best: dict[str, tuple[float, float]] = {}
    problems: dict[str, str] = {}
    errors: dict[str, float] = {}
    for turn in range(_TURNS + 1):
        for dtype in going:
            if dtype in problems:
                continue
            say(Line(begin=dtype))
            try:
                forward, backward, results = made[dtype].run()
            except Exception as caught:  # noqa: BLE001 - whatever a library throws is the finding
                problems[dtype] = _words(caught)
                continue
            if turn == 0:
                # The first pass warms up; it is looked at for its results.
                errors[dtype] = _difference(results, expected)
                problems |= {dtype: wrong} if (wrong := _wrong(errors[dtype], dtype)) else {}
                continue
            known = best.get(dtype, (forward, backward))
            best[dtype] = min(known[0], forward), min(known[1], backward)
            if backward + forward > max(_LONG_SECONDS, _FAR_TOO_SLOW * sum(best.get("float32", (forward, backward)))):
                # One turn tells as much as five. Of a short one it would not: any other process may have come between.
                going = [d for d in going if d != dtype]
    return {
        dtype: msgspec.structs.replace(
            found[dtype],
            forward_seconds=(*found[dtype].forward_seconds, best[dtype][0]) if dtype in best else (),
            backward_seconds=(*found[dtype].backward_seconds, best[dtype][1]) if dtype in best else (),
            error=max(found[dtype].error or 0.0, errors.get(dtype, 0.0)),
            problem=problems.get(dtype, ""),
        )
        for dtype in made
    }


def _too_slow(found: dict[str, Timing], dtype: str) -> bool:
    plain, timing = found.get("float32"), found[dtype]
    if plain is None or not plain.forward_seconds or not timing.forward_seconds:
        return False
    pairs = ((timing.forward_seconds, plain.forward_seconds), (timing.backward_seconds, plain.backward_seconds))
    return any(mine[-1] > _FAR_TOO_SLOW * float32[-1] for mine, float32 in pairs)


def _measure_bitsandbytes(torch_device: str, say: Say) -> None:
    """Its frozen int8 layer at both shapes."""
    say(Line(begin="int8"))
    timing = Timing(torch_device=torch_device, compute_dtype="int8")
    try:
        with _nothing_compiled():
            import bitsandbytes as bnb

        for shape in SHAPES:
            timing = _bitsandbytes_at(bnb, shape, timing)
    except Exception as caught:  # noqa: BLE001 - whatever a library throws is the finding
        timing = msgspec.structs.replace(timing, problem=_words(caught))
    say(Line(timing=timing))


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    """bitsandbytes has functions of its 4-bit layers and optimisers compiled when it is imported, for which PyTorch
    loads its compiler for seconds; it takes them as they are where that fails. Its 8-bit layer has none of them."""

    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError

    compiled, torch.compile = torch.compile, refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiled


def _bitsandbytes_at(bnb: Any, shape: Shape, timing: Timing) -> Timing:
    numbers = _Numbers(shape)
    torch_device = timing.torch_device
    layer = bnb.nn.Linear8bitLt(shape.columns, shape.rows, bias=False, has_fp16_weights=False)
    weight = numbers.q.float() * numbers.scale[:, None]
    layer.load_state_dict({"weight": weight})
    layer = layer.to(torch_device)
    x = numbers.x.to(torch_device).requires_grad_()
    gy = numbers.gy.to(torch_device)
    synchronise = _synchroniser(torch_device)
    best, results = (float("inf"), float("inf")), Results()
    for _ in range(_TURNS):
        x.grad = None
        synchronise()
        start = time.perf_counter()
        y = layer(x)
        synchronise()
        middle = time.perf_counter()
        y.backward(gy)
        synchronise()
        best = min(best[0], middle - start), min(best[1], time.perf_counter() - middle)
        results = y.detach(), _gradient(x)
    error = _difference(results, (numbers.x @ weight.T, numbers.gy @ weight))
    return msgspec.structs.replace(
        timing,
        forward_seconds=(*timing.forward_seconds, best[0]),
        backward_seconds=(*timing.backward_seconds, best[1]),
        error=max(timing.error or 0.0, error),
        problem=timing.problem or _wrong(error, "int8"),
    )


def _facts(torch_device: str) -> dict[str, str]:
    found = {"torch": str(torch.__version__), "cuda": str(torch.version.cuda or "")}
    if torch_device == "cpu":
        return found | {"instructions": str(torch.backends.cpu.get_cpu_capability())}
    found["built for"] = " ".join(torch.cuda.get_arch_list())
    major, minor = torch.cuda.get_device_capability()
    return found | {"gpu": torch.cuda.get_device_name(), "compute capability": f"{major}.{minor}"}


def main(fd: int, part: str, candidates: list[str], threads: int) -> None:
    """Measure a part and say so on a file descriptor."""
    torch.set_num_threads(threads)
    with os.fdopen(fd, "wb") as out:

        def say(line: Line) -> None:
            out.write(msgspec.json.encode(line) + b"\n")
            out.flush()

        torch_device = part.removeprefix("bitsandbytes-")
        if torch_device == "cuda" and torch.version.cuda is None:
            say(Line(problem="this torch is built without CUDA"))
            return
        if torch_device == "cuda" and not torch.cuda.is_available():
            say(
                Line(
                    problem="torch finds no CUDA device",
                    facts={"torch": str(torch.__version__), "cuda": str(torch.version.cuda)},
                )
            )
            return
        say(Line(facts=_facts(torch_device)))
        if part.startswith("bitsandbytes-"):
            _measure_bitsandbytes(torch_device, say)
        else:
            _measure(torch_device, candidates, say)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3].split(","), int(sys.argv[4]))
