# SPDX-License-Identifier: Apache-2.0
"""What one participant can do to a round: no more than the policy says, whatever it claims and sends."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import make_plan

from coordinator.job import SafetySection
from coordinator.rounds.policy import clip_for, outliers, round_shares
from fedcore.config.reading import load_config
from fedcore.config.sections import TaskSection
from fedcore.errors import ConfigError, UpdateRefused
from fedcore.methods import server_half
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.model.state import ExactState
from fedcore.model.update import CheckedUpdate, WeightedUpdate, check_update, write_update
from fedcore.numbers.accumulator import MAX_EXAMPLES, RowScaled, quantise_rows
from fedcore.numbers.records import Record
from fedcore.round.checksums import checksums as checksums_of
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec

SCHEMA = ModelSchema((LayerSpec("l", 30, 40),), (TensorSpec("head", (3, 20), False),))
HALF = server_half(FedKRSOSettings(rank=4, num_seeds=2, steps=20, projection="signs", bits=8, published_bits=16))
HEADER = UpdateHeader(
    run="r", round=1, node="a", version=0, examples=50, rank=4, subspaces=(0, 1), loss=1.0, seconds=1.0
)
NO_LIMITS = SafetySection(max_share_ratio=0.0, norm_ratio=0.0)

claims = st.dictionaries(st.sampled_from("abcdefghijk"), st.integers(1, MAX_EXAMPLES), min_size=1)
limits = st.builds(
    SafetySection,
    max_share_ratio=st.one_of(st.just(0.0), st.floats(1, 50)),
    max_examples=st.one_of(st.just(0), st.integers(1, 10**6)),
)


@settings(max_examples=300, deadline=None)
@given(claims, limits, st.randoms(use_true_random=False))
def test_weights_are_within_the_limits_and_depend_on_no_order(
    claimed: dict[str, int], safety: SafetySection, chance: object
) -> None:
    found = round_shares(claimed, "examples", safety)
    order = list(claimed.items())
    chance.shuffle(order)  # type: ignore[attr-defined]
    again = round_shares(dict(order), "examples", safety)
    assert again.weights == found.weights and again.capped == found.capped
    median = sorted(min(c, safety.max_examples or c) for c in claimed.values())[(len(claimed) - 1) // 2]
    for node, weight in found.weights.items():
        assert 1 <= weight <= claimed[node]
        assert not safety.max_examples or weight <= safety.max_examples
        assert not safety.max_share_ratio or weight <= safety.max_share_ratio * median
        assert (node in found.capped) == (claimed[node] > found.limit)
    assert sum(found.weights.values()) <= MAX_EXAMPLES
    if not found.capped and sum(claimed.values()) <= MAX_EXAMPLES:
        assert found.weights == claimed


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(20, 100), min_size=2, max_size=9), st.data())
def test_a_minority_of_liars_weighs_at_most_the_ratio_times_the_largest_honest_claim(
    honest: list[int], data: st.DataObject
) -> None:
    lies = data.draw(st.lists(st.integers(1, MAX_EXAMPLES), max_size=len(honest) - 1))
    claimed = {f"honest-{i}": n for i, n in enumerate(honest)} | {f"liar-{i}": n for i, n in enumerate(lies)}
    found = round_shares(claimed, "examples", SafetySection(max_share_ratio=5.0))
    assert min(honest) * 5 <= found.limit <= max(honest) * 5
    # Honest participants within the ratio of each other are never capped.
    assert not [name for name in found.capped if name.startswith("honest")]


def test_no_limits_and_uniform_shares_leave_claims_alone() -> None:
    claimed = {"a": 1, "b": 5_000, "c": 16_000_000}
    assert round_shares(claimed, "examples", NO_LIMITS).weights == claimed
    assert round_shares(claimed, "uniform", SafetySection(max_examples=3)).weights == {"a": 1, "b": 1, "c": 1}
    assert round_shares({}, "examples", SafetySection()).weights == {}


def test_claims_beyond_what_exact_sums_allow_together_are_halved_until_they_fit() -> None:
    claimed = {"a": MAX_EXAMPLES, "b": MAX_EXAMPLES, "c": 1}
    assert round_shares(claimed, "examples", NO_LIMITS).weights == {
        "a": MAX_EXAMPLES // 2,
        "b": MAX_EXAMPLES // 2,
        "c": 1,
    }


def test_a_norm_beyond_the_bound_is_clipped_or_refused_by_name_and_one_at_the_bound_is_neither() -> None:
    update = CheckedUpdate(HEADER, 25 * 2**64)
    for policy in ("clip", "refuse"):
        assert clip_for(update, SafetySection(norm_bound=5.0, norm_policy=policy)) is None  # type: ignore[arg-type]
        assert clip_for(update, SafetySection(norm_policy=policy)) is None  # type: ignore[arg-type]
    below = math.nextafter(5.0, 0.0)
    clip = clip_for(update, SafetySection(norm_bound=below))
    assert clip is not None and clip.factor < 1
    with pytest.raises(UpdateRefused, match="a: a norm of 5 is beyond the bound of 4.5"):
        clip_for(update, SafetySection(norm_bound=4.5, norm_policy="refuse"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("norm_bound = -1.0", "safety.norm_bound: norm_bound is -1.0"),
        ("norm_bound = nan", "safety.norm_bound"),
        ("norm_bound = inf", "safety.norm_bound"),
        ("max_share_ratio = 0.5", "safety.max_share_ratio"),
        ("max_share_ratio = inf", "safety.max_share_ratio"),
        ("norm_ratio = 0.5", "safety.norm_ratio"),
        ("max_examples = -1", "safety.max_examples"),
        ('norm_policy = "drop"', "norm_policy"),
        ("norm_bond = 1.0", "norm_bound"),
    ],
)
def test_wrong_limits_are_refused_with_the_key(tmp_path: Path, line: str, message: str) -> None:
    class OnlySafety(msgspec.Struct, forbid_unknown_fields=True):
        safety: SafetySection

    (tmp_path / "job.toml").write_text(f"[safety]\n{line}\n")
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "job.toml", OnlySafety)


# An attack: four honest participants, and one that claims 10,000 times the examples or sends 1,000 times the norm.


def the_plan() -> Plan:
    training = HALF.training(1, 5)
    return make_plan(
        cohort=(),
        task=TaskSection(kind="regression"),
        model_schema=SCHEMA,
        checksums=checksums_of(training, SCHEMA),
        training=training,
    )


def published_state(
    folder: Path, sent: dict[str, tuple[int, float]], safety: SafetySection
) -> tuple[ExactState, dict[str, int]]:
    """The state after a round in which each participant claims examples and sends an update of a norm; and the
    weights."""
    updates, clips = {}, {}
    for seed, (node, (examples, norm)) in enumerate(sent.items()):
        generator = np.random.default_rng(seed)
        arrays = [generator.normal(size=shape) for shape in ((30, 8), (3, 20))]
        size = norm / math.sqrt(sum((array**2).sum() for array in arrays))
        layer, head = ((array * size).astype(np.float32) for array in arrays)
        header = msgspec.structs.replace(HEADER, node=node, examples=examples)
        write_update(
            folder / node,
            header,
            [Record("l", quantise_rows(layer, 8), 8), Record("head", quantise_rows(head, 16), 16)],
        )
        checked = check_update(folder / node, the_plan(), "r", node)
        updates[node], clips[node] = checked.header, clip_for(checked, safety)
    shares = round_shares({node: header.examples for node, header in updates.items()}, "examples", safety)
    weighted = [
        WeightedUpdate(folder / node, header, shares.weights[node], clips[node]) for node, header in updates.items()
    ]
    one = HALF.aggregate(ExactState.zero(HALF.training(1, 5), SCHEMA), the_plan(), weighted)
    other = HALF.aggregate(ExactState.zero(HALF.training(1, 5), SCHEMA), the_plan(), reversed(weighted))
    assert one.publish().digest() == other.publish().digest()
    return one, dict(shares.weights)


def distance(one: ExactState, other: ExactState | None = None) -> float:
    differences = [sums - (other.sums[name] if other else 0) for name, sums in one.sums.items()]
    return math.sqrt(sum((d.astype(np.float64) ** 2).sum() for d in differences)) / 2**32


def test_an_honest_round_under_the_default_limits_has_the_digest_it_had_before_there_were_limits(
    tmp_path: Path,
) -> None:
    def numbers(shape: tuple[int, int], largest: int, step: int) -> np.ndarray:
        return (np.arange(shape[0] * shape[1]).reshape(shape) * step % (2 * largest + 1) - largest).astype(np.int16)

    updates = []
    for place, examples in enumerate((50, 60, 40, 55)):
        header = msgspec.structs.replace(HEADER, node=f"h{place}", examples=examples)
        layer = RowScaled(numbers((30, 8), 127, 37 + place), np.full(30, -12, np.int8))
        head = RowScaled(numbers((3, 20), 32767, 5001 + place), np.full(3, -20, np.int8))
        write_update(tmp_path / header.node, header, [Record("l", layer, 8), Record("head", head, 16)])
        updates.append(check_update(tmp_path / header.node, the_plan(), "r", header.node))
    shares = round_shares({u.header.node: u.header.examples for u in updates}, "examples", SafetySection())
    weighted = [
        WeightedUpdate(tmp_path / u.header.node, u.header, shares.weights[u.header.node], clip_for(u, SafetySection()))
        for u in updates
    ]
    digest = HALF.aggregate(ExactState.zero(HALF.training(1, 5), SCHEMA), the_plan(), weighted).publish().digest()
    assert digest == "7e9fee02f0fa83ac05f35071f198e853b6aa7b61b511b8c069c9a2ce8df7310b"


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.01, 0.1), min_size=1),
    st.lists(st.floats(0.01, 0.1), max_size=9),
)
def test_honest_norms_within_ten_times_of_each_other_are_no_outliers(
    norms: dict[str, float], earlier: list[float]
) -> None:
    assert outliers(norms, earlier, SafetySection()) == {}


def test_an_outlier_is_scaled_to_ten_times_the_median_of_its_round_and_of_those_before() -> None:
    alone = outliers({"a": 64.0}, [1.0, 1.1, 0.9], SafetySection())
    assert alone["a"].median == 1.0 and 9.99 < alone["a"].clip.factor * 64 <= 10
    both = outliers({"a": 64.0, "b": 1.0}, [], SafetySection())
    assert list(both) == ["a"] and outliers({"a": 64.0}, [], SafetySection()) == {}
    assert outliers({"a": 64.0, "b": 1.0}, [], NO_LIMITS) == {} == outliers({"a": 64.0, "b": 0.0}, [], SafetySection())


def test_of_four_none_outweighs_the_others_by_claiming_more() -> None:
    claimed = {"a": 480, "b": 500, "c": 510, "liar": 2_000_000}
    weights = round_shares(claimed, "examples", SafetySection()).weights
    assert weights["liar"] / sum(weights.values()) < 0.51


HONEST = {"h1": (50, 0.08), "h2": (60, 0.09), "h3": (40, 0.1), "h4": (55, 0.07)}


@pytest.mark.parametrize("attacker", [(500_000, 0.1), (50, 100.0), (500_000, 100.0)], ids=["share", "norm", "both"])
def test_an_attacker_moves_the_published_state_no_further_than_the_bound_says(
    tmp_path: Path, attacker: tuple[int, float]
) -> None:
    safety = SafetySection(norm_bound=0.105, max_share_ratio=3.0)
    without, _ = published_state(tmp_path, HONEST, safety)
    plain, _ = published_state(tmp_path, HONEST, NO_LIMITS)
    assert without.publish().digest() == plain.publish().digest(), "limits change nothing among the honest"
    attacked, weights = published_state(tmp_path, {**HONEST, "liar": attacker}, safety)
    assert {node: weights[node] for node in HONEST} == {node: examples for node, (examples, _) in HONEST.items()}
    # The lower median of 40, 50, 55, 60 and a liar's claim is 50 or 55.
    assert weights["liar"] <= 3 * 55
    share = weights["liar"] / sum(weights.values())
    bound = share * (safety.norm_bound + distance(without))
    moved = distance(attacked, without)
    # Every number of the mean is rounded once, by half of 2**-32.
    rounding = math.sqrt(300) * 2.0**-32
    assert moved <= bound + rounding
    assert distance(attacked) <= safety.norm_bound
    # Without the limits the same attacker is far beyond that.
    unbounded, _ = published_state(tmp_path, {**HONEST, "liar": attacker}, NO_LIMITS)
    assert distance(unbounded, without) > 1.5 * bound
