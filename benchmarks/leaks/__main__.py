# SPDX-License-Identifier: Apache-2.0
"""What the plain protocol tells of a node's texts to whoever sees its updates: the coordinator, or who took it over.

    python -m benchmarks.leaks --data DATA --out FOLDER

SST-2 with MiniLM, the first round of FedKRSO. Nodes with 1, 4 and 16 texts train a round; from the update's head alone
are guessed: the labels; which texts of a list of 250 they were; which of 1,000 frequent words they have. In brackets is
what the trivial guess comes to: the larger class, chance, the most frequent words. The same from the mean of 20
updates, all that secure aggregation would leave to see. A guess is checked by training on it: the update is then the
same to the last bit. Membership: of a node with 100 rows, from its update and from the mean of 20; and of the 2,000
rows of ten rounds of the head, from the published model. FOLDER may be that of `benchmarks.attacks`, whose updates and
features are then used."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.attacks.cells import NODES, Cell
from benchmarks.attacks.first import METHOD, FirstRound, node_name
from benchmarks.attacks.heads import HeadData, head_data, head_of
from benchmarks.attacks.texts import Texts, features, read_texts
from benchmarks.attacks.whole import WholeModel
from benchmarks.leaks.guessing import advantage, area, head_change, hits, label_guesses, moved, ranked
from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.data.reading import Example
from edge_client.worker.data.tasks import Encoded, encode

__all__ = ["main"]

_LISTED: Final = 250
_WORDS: Final = 1000
_TRIALS: Final = {1: 12, 4: 6, 16: 3}
_REPLAYED: Final = 5
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Thought:
    """What a guesser thinks of: held-out texts, the second half of which the node cannot have, and frequent words."""

    rows: Sequence[Encoded]
    labels: NDArray[np.int64]
    features: Floats
    words: Sequence[str]
    word_features: Floats
    held_words: Sequence[frozenset[str]]


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="With a folder SST-2.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="For features and updates.")
@click.option("--rows", default=2000, show_default=True, help="That nodes share.")
@click.option("--held", default=500, show_default=True, help="Held-out rows.")
@click.option("--max-length", default=48, show_default=True)
def main(data: Path, out: Path, rows: int, held: int, max_length: int) -> None:
    """Print two tables."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    texts = read_texts(data, rows, held, max_length)
    heads, whole = head_data(texts, "iid", out), WholeModel(texts, "iid", 0, out)
    others = np.mean([whole.numbers(node) for node in range(1, NODES)], axis=0)
    thought = _thought(data, texts, heads, out)
    click.echo("| texts of the node | seen | labels right | texts of a list of 250 found | words of 1,000 found |")
    click.echo("|---|---|---|---|---|")
    for count, trials in _TRIALS.items():
        for seen, part in (("its update", 1.0), ("the mean of 20", 1 / NODES)):
            found = np.mean(
                [_guessed(whole.round, thought, out, (count, trial), others, part) for trial in range(trials)], axis=0
            )
            labels, listed, words, frequent, larger = (f"{number:.2f}" for number in found)
            trivial = f"({larger})", f"({count / _LISTED:.3f})", f"({frequent})"
            shown = (f"{one} {other}" for one, other in zip((labels, listed, words), trivial, strict=True))
            click.echo(f"| {count} | {seen} | {' | '.join(shown)} |")
    click.echo(f"\nchecked by training: {_replayed(whole.round, thought, out)}\n")
    click.echo("| members | score | seen | chance that a member's is higher | advantage |")
    click.echo("|---|---|---|---|---|")
    for line in _memberships(texts, heads, whole, others):
        click.echo(line)


def _thought(data: Path, texts: Texts, heads: HeadData, out: Path) -> _Thought:
    """Frequent words of the training file; each goes through the model as a text of its own."""
    tokenizer = read_tokenizer(texts.folder)
    lines = (data / "SST-2" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    counted = Counter(word for line in lines for word in set(re.findall(r"[a-z]{4,}", line.split("\t")[0])))
    words = [word for word, _ in counted.most_common(_WORDS)]
    path = out / "words.npz"
    if not path.exists():
        rows = encode([Example(word, None, 0) for word in words], texts.section, tokenizer)
        with tempfile.TemporaryDirectory() as scratch:
            np.savez(path, words=features(texts, METHOD, rows, Path(scratch)))
    with np.load(path) as loaded:
        found = loaded["words"].astype(np.float64)
    said = [frozenset(tokenizer.decode(row.ids, skip_special_tokens=True).split()) for row in texts.held]
    return _Thought(texts.held, heads.held[1], heads.held[0].astype(np.float64), words, found, said)


def _guessed(
    round_: FirstRound, thought: _Thought, out: Path, trial: tuple[int, int], others: Floats, part: float
) -> tuple[float, ...]:
    """Of one node: right labels, texts and words; of words, those that are found by naming the most frequent; and how
    many labels are right by naming the larger class."""
    chance = np.random.default_rng(trial)
    own = [int(index) for index in chance.choice(_LISTED, trial[0], replace=False)]
    path = _trained(round_, [thought.rows[index] for index in own], out / f"leak-{trial[0]}-{trial[1]}.bin")
    numbers = round_.numbers(path, node_name(0))
    change = head_change(round_, part * numbers + (1 - part) * others)
    moves = moved(change, thought.features)
    listed, apart = moves[:_LISTED], moves[_LISTED:]
    labels = label_guesses(listed[own], apart) == thought.labels[own]
    larger = (
        max(np.mean(thought.labels[own] == label) for label in (0, 1)) if trial[0] > 1 else np.mean(thought.labels == 1)
    )
    have = [
        place for place, word in enumerate(thought.words) if any(word in thought.held_words[index] for index in own)
    ]
    words = moved(change, thought.word_features)
    named = (hits(ranked(words, words), have), hits(range(_WORDS), have)) if have else (0.0, 0.0)
    return float(labels.mean()), hits(ranked(listed, apart), own), *named, float(larger)


def _trained(round_: FirstRound, rows: Sequence[Encoded], path: Path) -> Path:
    round_.train(rows, node_name(0), path)
    return path


def _replayed(round_: FirstRound, thought: _Thought, out: Path) -> str:
    """Train on each of the first guesses of a node with one text, as it would have."""
    right = int(np.random.default_rng((1, 0)).choice(_LISTED, 1, replace=False)[0])
    sent = round_.numbers(out / "leak-1-0.bin", node_name(0))
    moves = moved(head_change(round_, sent), thought.features)
    guesses = [int(index) for index in ranked(moves[:_LISTED], moves[_LISTED:])[:_REPLAYED]]
    if right not in guesses:
        guesses[-1] = right
    equal = []
    for index in guesses:
        path = _trained(round_, [thought.rows[index]], out / f"replay-{index}.bin")
        equal.append(np.array_equal(round_.numbers(path, node_name(0)), sent))
    told = [index for index, same in zip(guesses, equal, strict=True) if same]
    return (
        f"of {len(guesses)} guesses {len(told)} gave the very numbers, {'the right one' if told == [right] else told}"
    )


def _memberships(texts: Texts, heads: HeadData, whole: WholeModel, others: Floats) -> list[str]:
    """Lines of a table."""
    members = [texts.train[index] for index in texts.dealt("iid")[0]]
    round_, own = whole.round, whole.numbers(0)
    before = [round_.losses(rows) for rows in (members, texts.held)]
    lines = [_line("a node's 100 rows", "-loss", "nothing: the model before", -before[0], -before[1])]
    for seen, numbers in (("its update", own), ("the mean of 20", (own + (NODES - 1) * others) / NODES)):
        after = [round_.losses(rows, numbers) for rows in (members, texts.held)]
        lines.append(_line("a node's 100 rows", "-loss", seen, -after[0], -after[1]))
        fall = [one - other for one, other in zip(before, after, strict=True)]
        lines.append(_line("a node's 100 rows", "fall of the loss", seen, fall[0], fall[1]))
    head = head_of(Cell("head", "iid", "mean", "", 0), texts, heads)
    x, y = (np.concatenate(part) for part in zip(*heads.nodes, strict=True))
    lines.append(
        _line(
            "2,000 rows of all nodes",
            "-loss",
            "the head after ten rounds",
            -_losses(head, x, y),
            -_losses(head, *heads.held),
        )
    )
    return lines


def _line(whose: str, score: str, seen: str, members: Floats, others: Floats) -> str:
    return f"| {whose} | {score} | {seen} | {area(members, others):.2f} | {advantage(members, others):.2f} |"


def _losses(head: Floats, x: NDArray[np.float32], y: NDArray[np.int64]) -> Floats:
    scores = x @ head[:, :-1].T + head[:, -1]
    scores = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(y)), y])


if __name__ == "__main__":
    main()
