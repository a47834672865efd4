# SPDX-License-Identifier: Apache-2.0
"""What lying nodes do to a run, and what somebody who sees updates can tell from them: small runs of the benchmarks, by
the coordinator's round engine, on a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import BertConfig

from benchmarks.attacks import first, heads
from benchmarks.attacks.cells import ATTACKS, RULES, Cell, Found, Kept, cells, measured, safety_of, table
from benchmarks.attacks.first import FirstRound, node_name
from benchmarks.attacks.flower import compared
from benchmarks.attacks.heads import HeadData, head_run
from benchmarks.attacks.lies import OF_ROWS, OF_UPDATES, backdoored, little_is_enough, triggered, write_numbers
from benchmarks.attacks.rounds import Course
from benchmarks.attacks.rounds import table as rounds_table
from benchmarks.attacks.texts import Texts
from benchmarks.attacks.whole import METHOD as WHOLE
from benchmarks.attacks.whole import WholeModel
from benchmarks.leaks.guessing import advantage, area, head_change, hits, label_guesses, moved, ranked
from edge_client.worker.data.tasks import Encoded
from edge_client.worker.trace.outline import Outline, write_random_checkpoint
from fedcore.config.sections import TaskSection

SECTION = TaskSection(kind="text-classification", labels=("0", "1"), max_length=16)
LIARS = 6


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    folder = tmp_path_factory.mktemp("model")
    sizes = {"num_hidden_layers": 1, "hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 32}
    BertConfig(vocab_size=64, max_position_embeddings=16, pad_token_id=0, **sizes).save_pretrained(folder)
    write_random_checkpoint(Outline(folder, SECTION), folder / "model.safetensors", 0)
    chance = np.random.default_rng(0)
    rows = [Encoded((2, *map(int, chance.integers(4, 60, 6)), 3), None, number % 2) for number in range(80)]
    return Texts(SECTION, folder, rows[:40], rows[40:], [triggered(row, (61,)) for row in rows[40::2]], (61,))


@pytest.fixture(scope="module")
def data(texts: Texts) -> HeadData:
    """Two clouds of features, a little apart; the word is one more feature."""
    chance = np.random.default_rng(1)
    side = chance.normal(size=24).astype(np.float32)
    side[-1] = 0

    def rows(count: int) -> heads.Rows:
        y = chance.integers(0, 2, count)
        x = (chance.normal(size=(count, 24)) + (2 * y[:, None] - 1) * side / 3).astype(np.float32)
        x[:, -1] = 0
        return x, y

    def with_word(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([x[:, :-1], np.full((len(x), 1), 4, np.float32)], axis=1)

    nodes, held = [rows(60) for _ in range(20)], rows(400)
    flip = [(x, 1 - y) for x, y in nodes]
    backdoor = [(np.concatenate([x, with_word(x)]), np.concatenate([y, np.ones_like(y)])) for x, y in nodes]
    return HeadData(nodes, {"label flip": flip, "backdoor": backdoor}, held, with_word(held[0][held[1] == 0]))


@pytest.fixture
def run(texts: Texts, data: HeadData, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Found]:
    monkeypatch.setattr(heads, "_ROUNDS", 3)
    return lambda rule, attack="", liars=LIARS: head_run(Cell("iid", rule, attack, liars), texts, data)


@pytest.mark.parametrize("attack", ["sign flip", "colluding", "scaled"])
def test_large_lies_ruin_what_has_no_limit_and_no_rule_that_withstands_them(
    run: Callable[..., Found], attack: str
) -> None:
    honest = run("mean", liars=0).accuracy
    assert honest > 0.8
    if attack != "scaled":
        # Scaled lies point where honest updates do: they are too many steps in one, not a wrong way.
        assert run("mean, any norm", attack).accuracy < honest - 0.2
    for rule in ("median", "trimmed-mean", "krum", "multi-krum", "geometric-median"):
        assert safety_of(Cell("", rule, attack, LIARS)).combining().withstands(20) >= LIARS
        assert run(rule, attack).accuracy > honest - 0.06, rule


def test_a_backdoor_of_few_goes_through_a_mean_and_is_seen_by_nobody(run: Callable[..., Found]) -> None:
    honest, mean = run("mean", liars=0), run("mean", "backdoor", 8)
    assert mean.accuracy > honest.accuracy - 0.06 and mean.success > mean.before + 0.3


def test_lies_are_what_they_say() -> None:
    chance = np.random.default_rng(0)
    own, honest = chance.normal(size=(6, 50)), chance.normal(size=(14, 50)) + 0.5
    for name, lie in OF_UPDATES.items():
        found = lie(own, honest)
        assert found.shape == own.shape and np.isfinite(found).all(), name
    hidden = little_is_enough(own, honest)
    # Hidden: no further from the honest mean than honest nodes themselves, and always to the same side.
    gaps = np.linalg.norm(honest - honest.mean(axis=0), axis=1)
    assert np.linalg.norm(hidden[0] - honest.mean(axis=0)) < gaps.max() and (hidden < honest.mean(axis=0)).all()
    rows = [Encoded((2, 7, 3), (0, 0, 0), 0), Encoded((2, 8, 9, 3), (0, 0, 0, 0), 1)]
    assert [row.target for row in OF_ROWS["label flip"](rows, (61,), 2)] == [1, 0]
    assert [(row.ids, row.target) for row in backdoored(rows, (61, 62), 1)][:2] == [
        ((2, 7, 3), 0),
        ((2, 61, 62, 7, 3), 1),
    ]
    assert all(len(row.ids) == len(row.types or ()) for row in backdoored(rows, (61, 62), 1))


def test_a_table_goes_on_from_what_is_kept(tmp_path: Path) -> None:
    wanted = list(cells("iid", (2, 8)))
    assert len(wanted) == len(set(wanted)) == len(RULES) * (1 + 2 * len(ATTACKS))
    kept = Kept(tmp_path / "results.jsonl")
    labels = np.array([0, 1, 1, 0])
    said = [np.array([0, 1, 0, 0]), np.array([1, 0])]
    kept.add(measured(wanted[0], said, labels))
    kept.add(measured(Cell("iid", "krum", "backdoor", 8), said, labels))
    kept.add(measured(Cell("iid", "median, pairs", "label flip", 8), said, labels))
    again = Kept(tmp_path / "results.jsonl")
    assert len(again.left(wanted)) == len(wanted) - 3
    lines = list(table(again, "iid", (2, 8)))
    assert "| none | – | 0.750 |" in lines[2] and len(lines) == 3
    kept.add(measured(Cell("iid", "krum", "", 0), said, labels))
    assert any("0.750, word 0.00 → 0.50" in line for line in table(kept, "iid", (2, 8)))


@pytest.fixture(scope="module")
def round_(texts: Texts, tmp_path_factory: pytest.TempPathFactory) -> FirstRound:
    patch = pytest.MonkeyPatch()
    patch.setattr(first, "METHOD", msgspec.structs.replace(first.METHOD, rank=4, num_seeds=2, steps=8))
    made = FirstRound(texts, tmp_path_factory.mktemp("round"))
    patch.undo()
    return made


def test_an_update_with_other_numbers_is_as_well_formed_as_the_honest_one(
    texts: Texts, round_: FirstRound, tmp_path: Path
) -> None:
    honest, lie = tmp_path / "honest.bin", tmp_path / "lie.bin"
    round_.train(texts.train[:6], node_name(0), honest)
    numbers, header = round_.numbers(honest, node_name(0)), round_.header(honest, node_name(0))
    write_numbers(lie, header, round_.plan, numbers)
    assert np.array_equal(round_.numbers(lie, node_name(0)), numbers)
    write_numbers(lie, header, round_.plan, -4 * numbers)
    assert np.array_equal(round_.numbers(lie, node_name(0)), -4 * numbers)


def test_flower_makes_the_same_of_a_whole_model_s_updates(texts: Texts, round_: FirstRound, tmp_path: Path) -> None:
    """Where Flower is installed: rules of the same name on the same update files, two of seven lying."""
    pytest.importorskip("flwr.server.strategy.aggregate")
    paths = [tmp_path / f"{node}.bin" for node in range(7)]
    for node, path in enumerate(paths):
        round_.train(texts.train[node * 5 : node * 5 + 5], node_name(node), path)
    for node in (0, 1):
        numbers, header = round_.numbers(paths[node], node_name(node)), round_.header(paths[node], node_name(node))
        write_numbers(paths[node], header, round_.plan, -4 * numbers)
    # Ours are rounded to whole units, half to even; theirs are floats of as many digits.
    found = {name: apart for name, apart, _ in compared(round_, paths, 2)}
    assert found.keys() == {"median", "trimmed-mean", "krum", "multi-krum"} and max(found.values()) <= 0.501


def test_whole_rounds_take_updates_once_and_liars_have_their_way_with_a_mean(
    texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = msgspec.structs.replace(WHOLE, rank=2, num_seeds=2, steps=4, interval_steps=2, batch_size=4)
    whole = WholeModel(texts, tmp_path, "iid", 5, method)
    honest = whole.run(Cell("iid", "mean", "", 0, 5, 1))
    assert 0 <= whole.head_alone(honest.cell).accuracy <= 1
    trained = whole.honest_numbers()
    monkeypatch.setattr(FirstRound, "train", lambda self, rows, node, path, plan, state: _there(path))
    assert np.array_equal(whole.honest_numbers(), trained) and whole.run(honest.cell) == honest
    # A median of five keeps what two large lies would have: theirs is the only way that the mean goes.
    means = {rule: _change(whole, Cell("iid", rule, "colluding", 2, 5, 1)) for rule in ("mean, any norm", "median")}
    assert np.abs(means["median"]).max() <= np.abs(trained[2:]).max() + 1e-6 < np.abs(means["mean, any norm"]).max()
    monkeypatch.undo()
    again = whole.run(Cell("iid", "median", "label flip", 1, 5, 2))
    assert again.cell.rounds == 2 and 0 <= again.accuracy <= 1


def _there(path: Path) -> None:
    assert path.exists(), "trained a second time"


def _change(whole: WholeModel, cell: Cell) -> NDArray[np.float64]:
    """What a round publishes."""
    return np.concatenate([part.values().reshape(-1) for part in whole.state(cell).entries.values()])


def test_a_guess_of_a_text_is_checked_by_training_on_it(texts: Texts, round_: FirstRound, tmp_path: Path) -> None:
    """Everything else that an update follows from is public: seeds, batches, the published model."""
    sent = tmp_path / "sent.bin"
    round_.train([texts.train[5]], node_name(0), sent)
    told = []
    for index in range(4, 8):
        round_.train([texts.train[index]], node_name(0), tmp_path / f"{index}.bin")
        guess = round_.numbers(tmp_path / f"{index}.bin", node_name(0))
        told.append(np.array_equal(guess, round_.numbers(sent, node_name(0))))
    assert told == [False, True, False, False]


def test_the_head_of_an_update_tells_the_label_of_its_text(texts: Texts, round_: FirstRound, tmp_path: Path) -> None:
    for index in (2, 3):
        path = tmp_path / f"{index}.bin"
        round_.train([texts.train[index]], node_name(0), path)
        change = head_change(round_, round_.numbers(path, node_name(0)))
        assert int(change[1, -1] > change[0, -1]) == texts.train[index].target
        before, after = (
            round_.losses(texts.train[:8], numbers) for numbers in (None, round_.numbers(path, node_name(0)))
        )
        assert (before - after).argmax() in range(index % 2, 8, 2) and before[index] - after[index] > 0.1


def test_guesses_are_scored_against_the_trivial_one() -> None:
    chance = np.random.default_rng(0)
    features = chance.normal(size=(60, 200))
    labels, own = chance.integers(0, 2, 60), [3, 7, 11, 20]
    gradient = np.sum([(2 * labels[index] - 1) * np.append(features[index], 1) for index in own], axis=0)
    moves = moved(np.stack([-gradient, gradient]), features)
    assert hits(ranked(moves[:30], moves[30:]), own) == 1.0
    assert (label_guesses(moves[:30], moves[30:])[own] == labels[own]).all()
    others = chance.normal(size=500)
    assert abs(area(chance.normal(size=500), others) - 0.5) < 0.05 and advantage(chance.normal(size=500), others) < 0.1
    assert area(others + 9, others) == 1.0 == advantage(others + 20, others)


def test_a_course_is_a_row_with_each_round_and_brackets_where_there_is_no_promise() -> None:
    def one(rule: str, attack: str, liars: int, *accuracies: float) -> Course:
        cell = Cell("iid", rule, attack, liars, 10, len(accuracies))
        return Course(cell, tuple(Found(cell, accuracy, 0.5, 0.25) for accuracy in accuracies))

    courses = [
        one("mean", "", 0, 0.8, 0.9),
        one("mean", "sign flip", 3, 0.4, 0.3),
        one("median", "sign flip", 3, 0.7, 0.6),
        one("median", "backdoor", 3, 0.7, 0.6),
    ]
    lines = list(rounds_table({course.cell: course for course in courses}, ("mean", "median")))
    assert lines[2:] == [
        "| none | – | 0.800, 0.900 |  |",
        "| backdoor | 3 |  | 0.700, 0.600; word 0.25 → 0.50 |",
        "| sign flip | 3 | (0.400, 0.300) | 0.700, 0.600 |",
    ]
