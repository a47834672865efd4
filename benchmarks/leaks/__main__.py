# SPDX-License-Identifier: Apache-2.0
"""What the plain protocol tells of a node's texts to whoever sees its updates: coordinator and broker.

    python -m benchmarks.leaks --data DATA --out FOLDER

SST-2 with MiniLM. From what a node with 1, 4 or 16 texts sends of the task head in a first round are guessed: the
labels; which texts of a list of 250 they were; which of 1,000 frequent words they have. In brackets is what the trivial
guess comes to: the larger class, chance, the most frequent words. The same from the mean of 20 updates, all that secure
aggregation would leave to see. Membership: of a node with 100 rows, from its update and from the mean of 20; and of the
2,000 rows of ten rounds, from the published model. At last a node with one text trains FedKRSO on the whole model, and
a guess of its text is checked by training on it. FOLDER may be that of `benchmarks.attacks`, whose features are then
used."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.attacks.cells import NODES, Cell
from benchmarks.attacks.first import METHOD, FirstRound, node_name
from benchmarks.attacks.heads import HeadData, Rows, head_data, head_of, head_start, trained
from benchmarks.attacks.texts import Texts, features, read_texts
from benchmarks.leaks.guessing import advantage, area, head_change, hits, label_guesses, moved, ranked
from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.data.reading import Example
from edge_client.worker.data.tasks import encode
from fedcore.round.plan import Plan

__all__ = ["main"]

_LISTED: Final = 250
_WORDS: Final = 1000
_TRIALS: Final = {1: 100, 4: 50, 16: 25}
_REPLAYED: Final = 3
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Thought:
    """What a guesser thinks of.

    Attributes:
        held: Held-out texts, of which a node may have one of the first 250; their features and labels.
        words: Frequent words, and what the model makes of each as a text of its own.
        words_of: Words of each held-out text.
    """

    held: Rows
    words: tuple[Sequence[str], NDArray[np.float32]]
    words_of: Sequence[frozenset[str]]


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="With a folder SST-2.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="For features and updates.")
@click.option("--rows", default=2000, show_default=True, help="That nodes share.")
@click.option("--held", default=500, show_default=True, help="Held-out rows.")
@click.option("--max-length", default=48, show_default=True)
def main(data: Path, out: Path, rows: int, held: int, max_length: int) -> None:
    """Print two tables and a line."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    texts = read_texts(data, rows, held, max_length)
    heads, (plan, start) = head_data(texts, "iid", out), head_start(texts)
    changes = [trained(start, *own, plan, node) - start for node, own in enumerate(heads.nodes)]
    thought = _thought(data, texts, heads, out)
    click.echo("| texts of the node | seen | labels right | texts of a list of 250 found | words of 1,000 found |")
    click.echo("|---|---|---|---|---|")
    for count, trials in _TRIALS.items():
        for seen, others in (("its update", []), (f"the mean of {NODES}", changes[1:])):
            each = [_guessed(plan, start, thought, (count, trial), others) for trial in range(trials)]
            labels, listed, words, frequent, larger = (f"{number:.2f}" for number in np.mean(each, axis=0))
            found = f"{labels} ({larger}) | {listed} ({count / _LISTED:.3f}) | {words} ({frequent})"
            click.echo(f"| {count} | {seen} | {found} |")
    click.echo("\n| members | seen | score | chance that a member's is higher | advantage |\n|---|---|---|---|---|")
    for line in _memberships(texts, heads, start, changes):
        click.echo(line)
    click.echo(f"\nThe whole model, one text: {_replayed(texts, thought, out)}")


def _thought(data: Path, texts: Texts, heads: HeadData, out: Path) -> _Thought:
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
        found = loaded["words"]
    said = [frozenset(tokenizer.decode(row.ids, skip_special_tokens=True).split()) for row in texts.held]
    return _Thought(heads.held, (words, found), said)


def _guessed(
    plan: Plan, start: Floats, thought: _Thought, trial: tuple[int, int], others: Sequence[Floats]
) -> tuple[float, ...]:
    """Of one node: right labels, texts and words; of words, those found by naming the most frequent; and labels right
    by naming the larger class.

    Args:
        plan: The round's.
        start: The head before it.
        thought: Of the guesser.
        trial: How many texts the node has, and a number of the trial.
        others: Changes that the node's is put together with before it is seen.
    """
    x, y = thought.held
    own = np.random.default_rng(trial).choice(_LISTED, trial[0], replace=False)
    change = np.mean([trained(start, x[own], y[own], plan, 0) - start, *others], axis=0)
    moves = moved(change, x)
    listed, apart = moves[:_LISTED], moves[_LISTED:]
    labels = label_guesses(listed[own], apart) == y[own]
    have = [place for place, word in enumerate(thought.words[0]) if any(word in thought.words_of[one] for one in own)]
    by_word = moved(change, thought.words[1])
    named = (hits(ranked(by_word, by_word), have), hits(range(_WORDS), have)) if have else (0.0, 0.0)
    return float(labels.mean()), hits(ranked(listed, apart), own.tolist()), *named, _of_larger_class(y, y[own])


def _of_larger_class(all_labels: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """How many labels are right by saying everywhere what most held-out texts have."""
    return float((labels == np.bincount(all_labels).argmax()).mean())


def _memberships(texts: Texts, heads: HeadData, start: Floats, changes: Sequence[Floats]) -> Iterator[str]:
    """Lines of a table: of the first node's rows, and of all."""
    own, words = heads.nodes[0], "a node's 100 rows"
    before = _losses(start, *own), _losses(start, *heads.held)
    yield _line(words, "nothing: the model before", "-loss", -before[0], -before[1])
    for seen, change in (("its update", changes[0]), (f"the mean of {NODES}", np.mean(changes, axis=0))):
        after = _losses(start + change, *own), _losses(start + change, *heads.held)
        yield _line(words, seen, "-loss", -after[0], -after[1])
        yield _line(words, seen, "fall of the loss", before[0] - after[0], before[1] - after[1])
    head = head_of(Cell("iid", "mean", "", 0), texts, heads)
    x, y = np.concatenate([one for one, _ in heads.nodes]), np.concatenate([one for _, one in heads.nodes])
    after = _losses(head, x, y), _losses(head, *heads.held)
    yield _line(f"{len(y):,} rows of all nodes", "the model after ten rounds", "-loss", -after[0], -after[1])


def _line(whose: str, seen: str, score: str, members: Floats, others: Floats) -> str:
    return f"| {whose} | {seen} | {score} | {area(members, others):.2f} | {advantage(members, others):.2f} |"


def _losses(head: Floats, x: NDArray[np.float32], y: NDArray[np.int64]) -> Floats:
    scores = x @ head[:, :-1].T + head[:, -1]
    scores = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(y)), y])


def _replayed(texts: Texts, thought: _Thought, out: Path) -> str:
    """A node with one text trains FedKRSO; then somebody else on each of the first guesses, as the node would have."""
    round_, right = FirstRound(texts, out / "run"), 7

    def sent(index: int, name: str) -> Floats:
        path = out / f"{name}-{index}.bin"
        round_.train([texts.held[index]], node_name(0), path)
        return round_.numbers(path, node_name(0))

    own = sent(right, "sent")
    change = head_change(round_, own)
    moves = moved(change, thought.held[0])
    guesses = [int(index) for index in ranked(moves[:_LISTED], moves[_LISTED:])]
    place, label = guesses.index(right) + 1, int(change[1, -1] > change[0, -1])
    tried = [right, *(index for index in guesses if index != right)][:_REPLAYED]
    same = [index for index in tried if np.array_equal(sent(index, "guess"), own)]
    return (
        f"its label is told {'right' if label == texts.held[right].target else 'wrong'}, the text is guess {place} of "
        f"{_LISTED}; of {len(tried)} texts trained on, {len(same)} gave the very numbers: "
        f"{'the right one' if same == [right] else same}"
    )


if __name__ == "__main__":
    main()
