# SPDX-License-Identifier: Apache-2.0
"""A coordinator that lies has no update of anybody's; a node that lies does not end a round for the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from plans import make_plan

from edge_client.secure.party import Kept, Trust
from edge_client.secure.work import Ways, Work
from fedcore.methods.beside.secure import SecureSection
from fedcore.round.masked import lanes_bytes
from fedcore.round.plan import Plan
from fedcore.secure.keys import Secrets
from fedcore.wire.identity import SigningKey
from fedcore.wire.secure import (
    SecureAgreed,
    SecureBody,
    SecureEcho,
    SecureRelay,
    SecureReveal,
    SecureRoster,
    SecureSurvivors,
    keys_bytes,
)
from tests.coordinator.secure.parties import Rounds, signed_trust

NAMES = ("a", "b", "c", "d", "e")
RUN_ID = "0" * 32


def begun(folder: Path, trust: Callable[[str], Trust] = signed_trust, threshold: float = 0.5) -> tuple[Rounds, Plan]:
    """A round that is about to open; of five holders three give a secret back."""
    section = SecureSection(threshold=threshold)
    plan = make_plan(cohort=NAMES, secure=section.asked(len(NAMES), 0.0, 0, "examples"), run_id=RUN_ID)
    return Rounds(folder, NAMES, section, trust), plan


def masked(rounds: Rounds, plan: Plan) -> dict[str, Path]:
    """Everybody masks an update of ones."""
    for member in rounds.members.values():
        assert plan.secure is not None
        lane = (1).to_bytes(plan.secure.lane_bytes, "little")
        member.lanes(1).write_bytes(lane * (lanes_bytes(plan) // len(lane)))
    return rounds.masked(plan, NAMES)


def said(rounds: Rounds, name: str) -> str:
    return rounds.members[name].lines[-1]


def test_keys_that_are_not_a_node_s_own_are_refused_by_its_neighbours(tmp_path: Path) -> None:
    """The coordinator knows the secret keys of `b`, and could take its pairwise masks off."""
    rounds, plan = begun(tmp_path)
    forger = SigningKey(bytes([7]) * 32)

    def forged(node: str, body: SecureBody) -> SecureBody:
        if isinstance(body, SecureRoster) and node != "b":
            secrets = Secrets(bytes(32), "b", b"")
            false = msgspec.structs.replace(body.members[1], mask=secrets.mask_public, identity=forger.public.hex)
            context = f"r\0{RUN_ID}\0{plan.key}".encode()
            false = msgspec.structs.replace(false, signature=forger.sign(keys_bytes(context, false)))
            return msgspec.structs.replace(body, members=(body.members[0], false, *body.members[2:]))
        return body

    rounds.change = forged
    rounds.open(plan)
    rounds.settle()
    for name in ("a", "c", "d", "e"):
        assert said(rounds, name) == (
            "secure aggregation: b: the coordinator gave keys for this node that are not its own"
        )
    assert rounds.leading.sum() is None


def test_nodes_that_see_other_keys_for_themselves_or_two_lists_of_keys_say_so(tmp_path: Path) -> None:
    rounds, plan = begun(tmp_path)

    def changed(node: str, body: SecureBody) -> SecureBody:
        if isinstance(body, SecureRoster) and node == "a":
            own = msgspec.structs.replace(body.members[0], mask=body.members[1].mask)
            return msgspec.structs.replace(body, members=(own, *body.members[1:]))
        if isinstance(body, SecureRoster) and node == "b":
            # Of a list without `e`: what it seals is bound to that one.
            return msgspec.structs.replace(body, members=body.members[:-1])
        return body

    rounds.change = changed
    rounds.open(plan)
    rounds.settle()
    assert said(rounds, "a") == ("secure aggregation: the coordinator shows other keys for this node than it has sent")
    assert ("declined", "b", "its shares are not for its neighbours") in rounds.notes
    rounds.change = lambda node, body: body
    rounds.members["c"].work.heard(
        SecureRoster(plan.key, rounds.leading._exchange.kept.roster.members[1:]),  # type: ignore[union-attr]
        0.0,
    )
    assert said(rounds, "c") == "secure aggregation: the coordinator shows a second list of keys in one attempt"


@pytest.mark.parametrize("agreeing", [3, 2])
def test_of_different_lists_of_survivors_at_most_one_is_opened(agreeing: int, tmp_path: Path) -> None:
    """Told that `c` is lost, `d` and `e` would give the key of its pairwise masks; the others are told that it is not,
    and would give its own mask. They see that others have signed another list: with three of five agreeing, those open
    theirs; with two, nobody opens anything."""
    rounds, plan = begun(tmp_path)
    rounds.open(plan)
    rounds.settle()
    updates, revealed = masked(rounds, plan), set[str]()

    def split(node: str, body: SecureBody) -> SecureBody:
        if isinstance(body, SecureSurvivors) and node in ("d", "e"):
            return msgspec.structs.replace(body, places=(0, 1, 3, 4))
        if isinstance(body, SecureSurvivors) and node == "c" and agreeing == 2:
            return msgspec.structs.replace(body, places=(0, 1, 2, 3))
        return body

    rounds.change = split
    carried = rounds.carried

    def watched(node: str, body: object) -> object:
        revealed.update({node} if isinstance(body, SecureReveal) else ())
        return carried(node, body)

    rounds.carried = watched  # type: ignore[assignment,method-assign]
    found = rounds.close(updates)
    assert found.participants == (NAMES if agreeing == 3 else ())
    assert revealed == ({"a", "b", "c"} if agreeing == 3 else set())
    words = "the coordinator showed this node another list of survivors"
    told = {name for name, member in rounds.members.items() if any(words in line for line in member.lines)}
    assert {"d", "e"} <= told


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ((0, 1, 3), "a list of survivors that this node is not on"),
        ((2, 4), "too few to hide this node's update among"),
        ((4, 2, 3, 1), "a list of survivors that this node is not on"),
        ((1, 2, 3, 9), "too few to hide this node's update among"),
    ],
)
def test_lists_that_would_betray_an_update_are_refused(places: tuple[int, ...], words: str, tmp_path: Path) -> None:
    rounds, plan = begun(tmp_path)
    rounds.open(plan)
    rounds.settle()
    rounds.members["c"].work.heard(SecureSurvivors(plan.key, places), 0.0)
    assert words in said(rounds, "c")


def test_one_list_is_signed_in_an_attempt_also_by_a_node_that_was_killed(tmp_path: Path) -> None:
    rounds, plan = begun(tmp_path)
    rounds.open(plan)
    rounds.settle()
    rounds.members["c"].work.heard(SecureSurvivors(plan.key, (0, 1, 2)), 0.0)
    rounds.members["c"].again(plan, wanted=False)
    rounds.members["c"].work.heard(SecureSurvivors(plan.key, (0, 1, 2, 3)), 0.0)
    assert said(rounds, "c") == "secure aggregation: the coordinator shows a second list of survivors in one attempt"


def test_of_each_node_one_secret_is_told_and_never_both(tmp_path: Path) -> None:
    rounds, plan = begun(tmp_path)
    rounds.open(plan)
    rounds.settle()
    updates = masked(rounds, plan)
    rounds.members["b"].lost = True
    del updates["b"]
    found = rounds.close(updates)
    assert found.participants == ("a", "c", "d", "e")
    kept = msgspec.msgpack.decode((tmp_path / "a" / "secure-r.msgpack").read_bytes(), type=Kept)
    assert kept.survivors == (0, 2, 3, 4) and kept.opened == 1
    # Of ones, each times one: every lane has the number of nodes.
    assert found.unmasked.weight == 4


def test_a_wrong_share_does_not_end_a_round(tmp_path: Path) -> None:
    rounds, plan = begun(tmp_path)
    rounds.open(plan)
    rounds.settle()
    updates, carried = masked(rounds, plan), rounds.carried

    def lied(node: str, body: object) -> object:
        if isinstance(body, SecureReveal) and node == "a":
            body = msgspec.structs.replace(body, shares=tuple((place, bytes(33)) for place, _ in body.shares))
        return carried(node, body)

    rounds.carried = lied  # type: ignore[assignment,method-assign]
    assert rounds.close(updates).participants == NAMES


def test_a_node_that_seals_nonsense_is_left_out_of_nobody_else_s_round(tmp_path: Path) -> None:
    rounds, plan = begun(tmp_path)

    def spoiled(node: str, body: SecureBody) -> SecureBody:
        if isinstance(body, SecureRelay):
            boxes = tuple((place, bytes(82) if place == 0 else box) for place, box in body.boxes)
            return msgspec.structs.replace(body, boxes=boxes)
        return body

    rounds.change = spoiled
    rounds.open(plan)
    rounds.settle()
    updates = masked(rounds, plan)
    del updates["a"]
    # Nobody holds a share of its key: its masks stay on.
    found = rounds.close(updates)
    assert found.participants == () and "shares came that take off the mask of a" in rounds.notes[-1][2]


def test_a_run_without_keys_masks_too_and_a_run_with_them_needs_the_authority_to_be_sure(tmp_path: Path) -> None:
    for name, trust in (("none", lambda node: Trust()), ("keys", lambda node: Trust(signed_trust(node).key))):
        rounds, plan = begun(tmp_path / name, trust)
        rounds.open(plan)
        rounds.settle()
        assert rounds.close(masked(rounds, plan)).participants == NAMES


def test_secrets_are_their_owner_s_and_end_with_the_attempt(tmp_path: Path) -> None:
    rounds, plan = begun(tmp_path)
    rounds.open(plan)
    rounds.settle()
    path = tmp_path / "a" / "secure-r.msgpack"
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(msgspec.msgpack.decode(path.read_bytes(), type=Kept).seed) == 32
    rounds.members["a"].work.plan(
        msgspec.structs.replace(plan, phase="finished", cohort=(), secure=None), 0.0, able=True
    )
    assert msgspec.msgpack.decode(path.read_bytes(), type=Kept) == Kept(run_id=RUN_ID, least=0)
    path.write_bytes(b"damaged")
    rounds.members["a"].again(plan, wanted=False)
    rounds.wait(3)
    assert said(rounds, "a") == "secure aggregation: the coordinator shows other keys for this node than it has sent"


def test_masks_hide_one_update_and_no_second_one(tmp_path: Path) -> None:
    rounds, plan = begun(tmp_path)
    rounds.open(plan)
    rounds.settle()
    masked(rounds, plan)
    member = rounds.members["a"]
    member.sent = None
    member.again(plan, wanted=True)
    rounds.masked(plan, ["a"])
    member.lanes(1).write_bytes(bytes(lanes_bytes(plan)))
    member.again(plan, wanted=True)
    assert said(rounds, "a") == "secure aggregation: another update than the one that was masked in this attempt"


def test_a_node_that_asks_for_masks_takes_no_plan_without(tmp_path: Path) -> None:
    rounds, plan = begun(tmp_path)
    bare = msgspec.structs.replace(plan, secure=None)
    member = rounds.members["a"]
    ways = Ways(member._up, member.lanes, member._send, member._drop, member.lines.append)
    for required in (False, True):
        work = Work("a", "r", member.folder, member.trust, ways, required=required)
        assert work.takes(plan) and work.takes(msgspec.structs.replace(bare, phase="finished"))
        assert [work.takes(bare) for _ in range(2)] == [not required] * 2
    assert len(member.lines) == 1 and member.lines[0].startswith("round 1 declined: a run without secure aggregation")
    assert [type(body).__name__ for _, body in rounds.post] == ["Declined"]


def test_what_is_not_heard_is_said_again_more_and_more_seldom(tmp_path: Path) -> None:
    rounds, plan = begun(tmp_path)
    rounds.members = {"a": rounds.members["a"]}
    rounds.open(plan)
    counts = []
    for _ in range(6):
        counts.append(len(rounds.post))
        rounds.post = []
        rounds.now += 2.0
        rounds.members["a"].work.tick(rounds.now)
    assert counts == [1, 1, 0, 1, 0, 0]
    assert rounds.members["a"].work.patience_seconds(rounds.now) > 0


def test_echoes_that_are_no_signatures_count_for_nothing(tmp_path: Path) -> None:
    rounds, plan = begun(tmp_path)
    rounds.open(plan)
    rounds.settle()
    node = rounds.members["a"]
    node.work.heard(SecureSurvivors(plan.key, (0, 1, 2)), 0.0)
    assert isinstance(rounds.post[-1][1], SecureEcho)
    node.work.heard(SecureAgreed(plan.key, ((0, b""),)), 0.0)
    assert isinstance(rounds.post[-1][1], SecureEcho), "its own alone is not enough"
    node.work.heard(SecureAgreed(plan.key, ((1, bytes(64)), (2, bytes(64)))), 0.0)
    assert "another list of survivors" in said(rounds, "a")
