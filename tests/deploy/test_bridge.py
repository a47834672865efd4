# SPDX-License-Identifier: Apache-2.0
"""Two mosquittos, one bridged to the other with what `fedkrso provision --site` makes: what passes, what does not, and
what a cut costs."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import SITE, Bridged, Client, eventually, nonce
from cluster import HOMES, Cluster, check, needs_mosquitto, run, wait_for

from coordinator.provisioning.provision import provision
from fedcore.transport.base import Message
from fedcore.transport.mqtt import MqttTransport
from fedcore.wire.messages import Topics

TOPICS = Topics("voice")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Bridged]:
    needs_mosquitto()
    with Bridged(tmp_path, "voice", ("near",), ("far", "other")) as made:
        yield made


def joined(coordinator: Client, there: Client, node: str = "far") -> None:
    """Wait until both brokers, the bridge between and both clients have their subscriptions."""
    there.ready(coordinator, TOPICS.down(node, "telemetry"))
    coordinator.ready(there, TOPICS.up(node, "telemetry"))


def test_each_kind_of_topic_goes_one_way_and_comes_once(pair: Bridged) -> None:
    with Client(pair.settings("coordinator"), "#") as coordinator, Client(pair.settings("far"), "#") as far:
        joined(coordinator, far)
        end, back = nonce(), nonce()
        coordinator.say(TOPICS.plan, b"plan", retain=True)
        coordinator.say(TOPICS.published_state("1-whole", 0), b"published_state", retain=True)
        coordinator.say(TOPICS.down("near", "grant"), b"not for the site")
        coordinator.say(TOPICS.down("far", "grant"), end)
        assert far.heard(end) == [
            (TOPICS.plan, b"plan"),
            (TOPICS.published_state("1-whole", 0), b"published_state"),
            (TOPICS.down("far", "grant"), end),
        ]
        far.say(TOPICS.status("far"), b"status", retain=True)
        # Neither another node's topics nor the coordinator's: the site's broker drops them.
        for topic in (TOPICS.status("other"), TOPICS.up("near", "offer"), TOPICS.plan, TOPICS.down("near", "grant")):
            far.say(topic, b"forged", retain=True)
        far.say(TOPICS.up("far", "offer"), back)
        expected = [(TOPICS.status("far"), b"status"), (TOPICS.up("far", "offer"), back)]
        # What the coordinator hears of the topics that it wrote itself came from the central broker, once.
        own = {
            TOPICS.plan,
            TOPICS.published_state("1-whole", 0),
            TOPICS.down("near", "grant"),
            TOPICS.down("far", "grant"),
        }
        heard = coordinator.heard(back)
        assert [entry for entry in heard if entry[0] not in own] == expected
        # A loop would still go on: another message after all of these finds nothing between.
        end, back = nonce(), nonce()
        far.say(TOPICS.up("far", "offer"), back)
        assert coordinator.heard(back) == [(TOPICS.up("far", "offer"), back)]
        coordinator.say(TOPICS.down("far", "grant"), end)
        assert far.heard(end) == [(TOPICS.down("far", "grant"), end)]
    # Retained on both sides: who comes later to the site hears the plan there, and the coordinator the status.
    with (
        Client(pair.settings("other"), TOPICS.plan) as late,
        Client(pair.settings("coordinator"), TOPICS.status("+")) as again,
    ):
        assert late.heard(b"plan") == [(TOPICS.plan, b"plan")]
        assert again.heard(b"status") == [(TOPICS.status("far"), b"status")]


def test_a_bridge_speaks_for_its_own_nodes_alone(pair: Bridged) -> None:
    # Whoever has the site's broker has its certificate, and can say at the central broker what the access rules there
    # allow.
    pair.site.stop()
    everything = (TOPICS.status("+"), TOPICS.up("+", "#"))
    with (
        Client(pair.settings("coordinator"), *everything) as coordinator,
        Client(pair.settings("near")) as near,
        Client(pair.settings(SITE), "#") as thief,
    ):
        thief.ready(coordinator, TOPICS.down("far", "telemetry"))
        coordinator.ready(near, TOPICS.up("near", "telemetry"))
        for topic in (
            TOPICS.status("near"),
            TOPICS.up("near", "offer"),
            TOPICS.plan,
            TOPICS.down("far", "grant"),
            TOPICS.probe,
        ):
            thief.say(topic, b"forged", retain=True)
        end, last = nonce(), nonce()
        thief.say(TOPICS.up("far", "offer"), end)
        assert coordinator.heard(end) == [(TOPICS.up("far", "offer"), end)]
        near.say(TOPICS.up("near", "offer"), b"private")
        coordinator.say(TOPICS.down("near", "grant"), b"private")
        coordinator.say(TOPICS.down("far", "grant"), last)
        assert thief.heard(last) == [(TOPICS.down("far", "grant"), last)]
    with Client(pair.settings("near"), TOPICS.plan) as near, Client(pair.settings("coordinator")) as coordinator:
        near.ready(coordinator, TOPICS.plan)
        coordinator.say(TOPICS.plan, end := nonce())
        assert near.heard(end) == [(TOPICS.plan, end)]


def test_while_the_link_is_down_each_side_waits_for_the_other(pair: Bridged) -> None:
    everything = (TOPICS.status("+"), TOPICS.up("+", "#"))
    own = (TOPICS.plan, TOPICS.published_state("+", "+"), TOPICS.down("far", "#"))
    with Client(pair.settings("coordinator"), *everything) as coordinator, Client(pair.settings("far"), *own) as far:
        joined(coordinator, far)
        coordinator.say(TOPICS.published_state("1-whole", 0), b"old", retain=True)
        coordinator.say(TOPICS.plan, end := nonce(), retain=True)
        far.heard(end)
        pair.relay.cut()
        eventually(lambda: "Client annex " in pair.central.text(), pair.central.text)
        far.say(TOPICS.up("far", "offer"), b"said in the dark")
        coordinator.say(TOPICS.published_state("1-whole", 0), b"", retain=True)
        coordinator.say(TOPICS.plan, b"next", retain=True)
        coordinator.say(TOPICS.down("far", "grant"), down := nonce())
        # A node that goes now: its last will is the site broker's to say, and waits with the rest.
        will = MqttTransport(pair.settings("other"), random.Random(0))
        will.start(lambda event: None, Message(TOPICS.status("other"), lost := nonce(), retain=True))
        will.wait_connected(60)
        will.abandon()
        eventually(lambda: "Client other closed" in pair.site.text() and not far.transport._under_way, pair.site.text)
        pair.relay.restore()
        # Retained statuses go out by themselves, the rest as it waited: either may come first.
        heard: set[tuple[str, bytes]] = set()
        while not {(TOPICS.status("other"), lost), (TOPICS.up("far", "offer"), b"said in the dark")} <= heard:
            heard.add(coordinator.next())
        assert [entry for entry in far.heard(down) if entry[0] == TOPICS.plan][-1] == (TOPICS.plan, b"next")
    with Client(pair.settings("other"), "#") as late:
        # What was taken away meanwhile is gone at the site too.
        kept = late.heard(b"next")
        assert (TOPICS.published_state("1-whole", 0), b"old") not in kept


def test_a_new_node_of_a_site_needs_no_restart(pair: Bridged) -> None:
    provision(pair.yard.root, "voice", ["new"], site=SITE, now=dt.datetime.now(dt.timezone.utc))
    pair._there += ("new",)
    for broker in (pair.central, pair.site):
        broker.reload()
    with (
        Client(pair.settings("coordinator"), TOPICS.up("+", "#")) as coordinator,
        Client(pair.settings("new"), "#") as new,
    ):
        joined(coordinator, new, "new")
        new.say(TOPICS.up("new", "offer"), end := nonce())
        assert coordinator.heard(end)
        coordinator.say(TOPICS.down("new", "grant"), end)
        assert new.heard(end)


def bridged_run(folder: Path, *, cut: bool) -> str:
    """The same run with one home at each broker; its digest."""
    folder.mkdir()
    with Bridged(folder / "brokers", "t", ("home-0",), ("home-1",)) as brokers:
        cluster = Cluster(folder, "mosquitto", broker=brokers)
        try:
            coordinator = cluster.coordinator()
            homes = [cluster.home(index) for index in range(HOMES)]
            if cut:
                wait_for(cluster, "round 1 is open")
                cluster.worker(homes[1])
                before = brokers.relay.links
                brokers.relay.cut()
                # The nearer home's update is in, and the other one's waits at the site.
                wait_for(cluster, "round 1: update of home-0")
                eventually(
                    lambda: (
                        (folder / "node-1" / "outbox" / "t").exists()
                        and any((folder / "node-1" / "outbox" / "t").iterdir())
                    ),
                    cluster.output,
                )
                assert "round 1: update of home-1" not in cluster.output()
                brokers.relay.restore()
            summary = cluster.summary(coordinator)
            assert cluster.exit_codes(*homes) == [0, 0], cluster.output()[-3000:]
            assert not cut or brokers.relay.links > before
        finally:
            cluster.close()
    return check(summary)


@pytest.fixture(scope="module")
def on_one_broker(tmp_path_factory: pytest.TempPathFactory) -> str:
    needs_mosquitto()
    return check(run(tmp_path_factory.mktemp("plain") / "run", "mosquitto"))


@pytest.mark.chaos
def test_a_run_over_two_bridged_brokers_survives_a_cut_between_them(tmp_path: Path) -> None:
    needs_mosquitto()
    bridged_run(tmp_path / "run", cut=True)


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("cut", [False, True], ids=["steady", "cut"])
def test_a_run_over_two_bridged_brokers_ends_with_the_digest_of_one(
    tmp_path: Path, on_one_broker: str, cut: bool
) -> None:
    assert bridged_run(tmp_path / "run", cut=cut) == on_one_broker
