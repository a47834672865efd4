# SPDX-License-Identifier: Apache-2.0
"""MQTT over paho: version 5 where the broker has it, else 3.1.1, with a link that comes back by itself.

paho's habits that matter here: callbacks run on its network thread and must not wait, so they only forward to the sink;
it resends its whole queue after a reconnect, so no more than one window is ever handed to it; its reconnect has no
jitter, so ours does it, and grows its pauses until a link has all of its subscriptions: a broker that many come to at
once may let them in and then throw them off."""

from __future__ import annotations

import random
import ssl
import threading
import time
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

from fedcore.errors import BrokerRefused, BrokerUnreachable, ConfigError, TransportError
from fedcore.transport.address import MqttSettings
from fedcore.transport.backoff import Backoff
from fedcore.transport.base import Connected, Disconnected, Limits, Message, Received, Sink
from fedcore.transport.client import (
    LACKS_FOR_WILLS,
    connect_options,
    cut,
    limits_of,
    new_client,
    short_client_id,
    unreachable,
)
from fedcore.transport.filters import PATIENCE_SECONDS, Filters
from fedcore.transport.pace import Pace
from fedcore.transport.tls import tls_refusal, told_by_peer

__all__ = ["MqttSettings", "MqttTransport"]

# One window of chunks and the small messages beside it.
_MOST_UNDER_WAY = 32
_KEEPALIVE_SECONDS = 60
_ANSWER_SECONDS = 2.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 30.0
# CONNACK codes (3.1.1 and 5) for a wrong user or password and for missing rights.
_WRONG_LOGIN = {4, 5, 134, 135}
_WRONG_VERSION = {1, 132}
_WRONG_CLIENT_ID = {2, 133}
_TAKEN_OVER = 142
# A full window without an acknowledgement for so long: a broker that throttles may acknowledge nothing, and paho sends
# nothing again while the link is up.
_UNANSWERED_SECONDS = 60.0
_UNANSWERED = "the broker acknowledged nothing any more: if it limits messages a second, set broker.messages_per_second"
_SHORT_LINK_SECONDS, _MANY_SHORT_LINKS = 3.0, 4


class MqttTransport:
    """See `Transport`.

    Args:
        settings: Broker and login.
        jitter: Spreads reconnects of many nodes over time.
        patience_seconds: See `fedcore.transport.filters`.
    """

    def __init__(
        self, settings: MqttSettings, jitter: random.Random, *, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        self._settings = settings
        self._backoff = Backoff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, jitter)
        self._host, self._port = settings.address
        self._filters = Filters(jitter, patience_seconds)
        self._lock = threading.Lock()
        self._under_way, self._answered_at = 0, 0.0
        self._pace = Pace(settings.messages_per_second, settings.bytes_per_second)
        self._linked = threading.Event()
        self._stopping = threading.Event()
        self._failure: TransportError | None = None
        self._lost_for: str | None = None
        self._closed, self._stirred = threading.Event(), threading.Event()
        self._limits = Limits(None, "")
        self._protocol = MQTTProtocolVersion.MQTTv5
        self._client_id, self._at_once = settings.client_id, False
        self._takeovers = self._short_links = 0
        self._taken_over, self._linked_at = False, 0.0
        self._spoken = self._unanswered = self._explained = False
        self._client: paho.Client | None = None
        self._sink: Sink = lambda event: None
        self._will: Message | None = None
        self._lacks: frozenset[int] = frozenset()
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    def start(self, sink: Sink, will: Message | None = None) -> None:
        """See `Transport`."""
        self._sink, self._will = sink, will
        self._thread.start()

    def wait_connected(self, timeout_seconds: float) -> Limits:
        """See `Transport`."""
        deadline = time.monotonic() + timeout_seconds
        while not self._linked.wait(0.05):
            failure, late = self._failure, time.monotonic() > deadline
            if failure is not None and (late or isinstance(failure, BrokerRefused)):
                raise failure
            if late:
                raise BrokerUnreachable("no answer", place=self._place, remedy="is the broker running there?")
        return self._limits

    def publish(self, message: Message) -> bool:
        """See `Transport`."""
        client, limit = self._client, self._limits.max_packet_bytes
        if client is None or not self._linked.is_set():
            return False
        if limit is not None and len(message.payload) + len(message.topic) + 64 > limit:
            raise TransportError(
                f"a message of {len(message.payload)} bytes is above the broker's limit of {limit}",
                place=message.topic,
                remedy="lower round.chunk_bytes",
            )
        now = time.monotonic()
        with self._lock:
            full = self._under_way >= _MOST_UNDER_WAY
            self._unanswered = full and now - self._answered_at > _UNANSWERED_SECONDS
            if not full and self._pace.takes(len(message.payload), now):
                self._answered_at = self._answered_at if self._under_way else now
                self._under_way += 1
            elif not self._unanswered:
                return False
        if self._unanswered:
            cut(client)
            return False
        # A broker that keeps nothing ends the link of who asks it to; one without QoS 1 likewise.
        qos, retain = min(self._settings.qos, self._limits.max_qos), message.retain and self._limits.retain
        info = client.publish(message.topic, message.payload, qos=qos, retain=retain)
        return info.rc == paho.MQTT_ERR_SUCCESS

    def subscribe(self, topic_filter: str, *, again: bool = True) -> None:
        """See `Transport`; `again` needs version 5."""
        self._filters.add(topic_filter, again=again)
        if self._client is not None and self._linked.is_set():
            self._subscribe(self._client, topic_filter)

    def unsubscribe(self, topic_filter: str) -> None:
        """See `Transport`."""
        self._filters.remove(topic_filter)
        if self._client is not None and self._linked.is_set():
            self._client.unsubscribe(topic_filter)

    def stop(self) -> None:
        """See `Transport`; messages handed over get a moment to leave."""
        deadline = time.monotonic() + 2.0
        while self._linked.is_set() and self._under_way and time.monotonic() < deadline:
            time.sleep(0.01)
        self._stopping.set()
        if self._client is not None:
            self._client.disconnect()
        self._close()
        self._thread.join(5.0)

    def abandon(self) -> None:
        """See `Transport`."""
        self._stopping.set()
        if self._client is not None:
            cut(self._client)
        self._close()
        self._thread.join(5.0)

    @property
    def _place(self) -> str:
        return f"{self._host}:{self._port}"

    def _run(self) -> None:
        """Connect, serve, and after a loss connect again with a growing, jittered pause."""
        while not self._stopping.is_set():
            self._under_way = 0
            connected = self._explained = False
            self._closed.clear()
            try:
                self._client = client = self._new_client()
                options = connect_options(self._protocol, _MOST_UNDER_WAY)
                client.connect(self._host, self._port, keepalive=_KEEPALIVE_SECONDS, **options)
                # paho's own loop thread, because only then does publish leave the writing to it.
                client.loop_start()
                first = self._protocol == MQTTProtocolVersion.MQTTv5 and not self._spoken
                if first and not self._wait_for_answer(_ANSWER_SECONDS) and not self._stopping.is_set():
                    # Brokers that only know 3.1.1 may wait for ever inside a version 5 CONNECT.
                    self._other_version()
                else:
                    self._serve(client)
                client.loop_stop()
                connected = self._linked.is_set()
            except ssl.SSLError as error:
                self._fail(tls_refusal(error, self._place, self._host))
            except ConfigError as error:
                # A file that is being renewed, or is gone: the next attempt reads it again.
                self._fail(BrokerRefused(error.message, place=error.place, remedy=error.remedy))
            except OSError as error:
                self._fail(unreachable(error, self._place, tls=self._settings.tls))
            else:
                self._no_answer(connected)
            if self._linked.is_set():
                self._linked.clear()
                self._tell_loss()
            elif (
                self._lost_for is not None and self._failure is not None and self._failure.one_line() != self._lost_for
            ):
                # Why it does not come back: revoked meanwhile, another certificate there. Once for each reason.
                self._lost_for = self._failure.one_line()
                self._sink(Disconnected(self._lost_for))
            if connected and self._filters.granted:
                self._backoff.begin()
            at_once, self._at_once = self._at_once, False
            # Two that take the link from each other without end would leave it to neither.
            self._stopping.wait(0.0 if at_once else self._backoff.next_seconds(2 ** min(self._takeovers, 4)))

    def _serve(self, client: paho.Client) -> None:
        """Until the link is closed; what the broker refused is asked for again when its time has come."""
        while not self._closed.is_set():
            for topic_filter in self._filters.due(time.monotonic()):
                self._subscribe(client, topic_filter)
            self._stirred.wait(self._filters.wait_seconds(time.monotonic()))
            self._stirred.clear()

    def _close(self) -> None:
        """The link is over."""
        self._closed.set()
        self._stirred.set()

    def _new_client(self) -> paho.Client:
        client = new_client(self._settings, self._client_id, self._protocol, self._will, self._lacks)
        client.max_inflight_messages_set(_MOST_UNDER_WAY)
        client.on_connect = self._on_connect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_socket_close = self._on_socket_close
        return client

    def _on_connect(self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        del userdata, flags
        if reason.is_failure:
            self._close()
            code = int(reason.value)
            if code in _WRONG_VERSION and client.protocol == MQTTProtocolVersion.MQTTv5:
                # Perhaps late, when the other version is asked for already.
                self._other_version()
                return
            if code in _WRONG_CLIENT_ID and self._client_id == self._settings.client_id:
                self._client_id, self._at_once = short_client_id(self._client_id), True
                return
            if code in LACKS_FOR_WILLS - self._lacks:
                self._lacks, self._at_once = self._lacks | {code}, True
                return
            remedy = "check broker.username and broker.password" if code in _WRONG_LOGIN else "see the broker's log"
            self._fail(BrokerRefused(f"the broker refused: {reason}", place=self._place, remedy=remedy))
            return
        self._limits, self._linked_at = limits_of(properties, client.protocol), time.monotonic()
        for topic_filter in self._filters.linked():
            self._subscribe(client, topic_filter)
        self._failure, self._lost_for = None, ""
        # A broker that has answered once is not asked for its version again: a slow link must not cost the limits that
        # version 5 tells.
        self._spoken = True
        self._linked.set()
        self._sink(Connected(self._limits))

    def _subscribe(self, client: paho.Client, topic_filter: str) -> None:
        if self._protocol != MQTTProtocolVersion.MQTTv5:
            self._filters.ask(topic_filter, lambda: client.subscribe(topic_filter, qos=self._settings.qos)[1])
            return
        handling = SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE
        if not self._filters.again(topic_filter):
            handling = SubscribeOptions.RETAIN_SEND_IF_NEW_SUB
        options = SubscribeOptions(qos=self._settings.qos, retainHandling=handling)
        self._filters.ask(topic_filter, lambda: client.subscribe(topic_filter, options=options)[1])

    def _on_subscribe(self, client: paho.Client, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
        del client, userdata, properties
        for reason in reasons:
            denied = self._filters.answered(mid, int(reason.value), str(reason), time.monotonic())
            if denied is not None:
                self._sink(denied)
        self._stirred.set()

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        del client, userdata
        self._sink(Received(message.topic, bytes(message.payload), bool(message.retain)))

    def _on_publish(self, client: paho.Client, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        del userdata, mid, reason, properties
        with self._lock:
            # Acknowledgements of an earlier link's messages do not count.
            if client is self._client:
                self._under_way, self._answered_at = max(0, self._under_way - 1), time.monotonic()

    def _on_disconnect(self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        del userdata, flags, properties
        if client is self._client:
            self._taken_over = int(reason.value) == _TAKEN_OVER
            self._close()

    def _tell_loss(self) -> None:
        """The link was lost; another program that took our session is named once, however often it does."""
        taken, self._taken_over = self._taken_over, False
        lasted = time.monotonic() - self._linked_at
        self._short_links = self._short_links + 1 if lasted < _SHORT_LINK_SECONDS else 0
        if lasted > _LONGEST_PAUSE_SECONDS:
            self._takeovers = 0
        # Not every broker says why.
        if not taken and self._short_links < _MANY_SHORT_LINKS:
            unanswered, self._unanswered = self._unanswered, False
            self._sink(Disconnected(_UNANSWERED if unanswered else "the connection was lost"))
            return
        self._takeovers += 1
        words = f"another program with our client id ({self._client_id})"
        words = f"{words} took this session over: stop one" if taken else f"lost again and again: is there {words}?"
        self._sink(Disconnected(words if self._takeovers == 1 else "lost to another program again"))

    def _on_socket_close(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        del client, userdata
        error = told_by_peer(sock)
        if error is not None and not self._stopping.is_set():
            self._fail(tls_refusal(error, self._place, self._host))

    def _no_answer(self, connected: bool) -> None:
        """The link closed. Brokers without MQTT 5 close it at once, unasked: try 3.1.1 next."""
        if connected or self._at_once or self._explained or self._stopping.is_set():
            return
        if self._protocol == MQTTProtocolVersion.MQTTv5 and not self._spoken:
            self._other_version()
        else:
            if not self._spoken:
                # Perhaps nobody was there behind a relay: the next attempt begins with version 5 again.
                self._protocol = MQTTProtocolVersion.MQTTv5
            self._fail(unreachable(None, self._place, tls=self._settings.tls))

    def _other_version(self) -> None:
        self._protocol = MQTTProtocolVersion.MQTTv311
        self._at_once = True

    def _wait_for_answer(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not (self._linked.is_set() or self._closed.is_set()) and time.monotonic() < deadline:
            self._closed.wait(0.02)
        return self._linked.is_set() or self._closed.is_set()

    def _fail(self, error: TransportError) -> None:
        self._failure, self._explained = error, True
