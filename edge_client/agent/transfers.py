# SPDX-License-Identifier: Apache-2.0
"""The agent's transfers: one update on its way up, one published object on its way down, both chunk by chunk from and
to the disk; or by HTTP, where the coordinator has a store beside the broker and the owner lets this node use it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from edge_client.agent import lines
from edge_client.agent.messages import Messages
from edge_client.agent.outbox import Outbox
from edge_client.fetching.download import Download
from edge_client.fetching.servers import Servers
from edge_client.fetching.upload import Upload
from fedcore.round.plan import PublishedObject
from fedcore.transport.base import Limits, Transport
from fedcore.wire.actions import Action, Done, Put, Refused, Send, SendChunk, Store, Verify
from fedcore.wire.files import PartialFile, manifest_of, read_chunk
from fedcore.wire.gather import Gather
from fedcore.wire.messages import Ack, Chunk, Commit, Grant, Missing, Offer, Refuse
from fedcore.wire.transfer import Sender

__all__ = ["MOST_CHUNK_BYTES", "Transfers"]

MOST_CHUNK_BYTES = 65_536
"""Of what goes up. Chunks under way are in memory, each of them more than once, and eight may be."""
# Room for topic and envelope within the broker's largest packet.
_ENVELOPE_BYTES = 2048
_SILENT_SECONDS = 60.0


class Transfers:
    """Drives `Sender` and `Gather`.

    Args:
        outbox: Where updates lie.
        inbox: Folder for fetched objects; only the present one is kept.
        transport: To subscribe to an object's chunks while it is fetched.
        messages: Publishes under this node's prefix.
        jitter: Spreads requests of many nodes.
        fetched: Told the SHA-256 of an object that is whole and on disk.
        gone: Told (round, refusal or "") when an update needs no more sending.
        say: Gets one line where nobody answers.

    Attributes:
        servers: For what goes by HTTP; none, unless others are put here.
    """

    def __init__(
        self,
        outbox: Outbox,
        inbox: Path,
        transport: Transport,
        messages: Messages,
        jitter: random.Random,
        fetched: Callable[[str], None],
        gone: Callable[[int, str], None],
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._outbox, self._inbox, self._transport, self._messages = outbox, inbox, transport, messages
        self._jitter, self._fetched, self._gone = jitter, fetched, gone
        self._say, self._moved_at, self._told = say, 0.0, False
        self._chunk_bytes = MOST_CHUNK_BYTES
        self._sender: Sender | None = None
        self._round, self._path = 0, inbox
        self._fetching: tuple[PublishedObject, Gather, PartialFile] | None = None
        self.servers = Servers()
        self._upload: Upload | None = None
        self._download: Download | None = None
        """Has the partial file for itself while it goes on; then the broker brings what is missing."""

    def link_came(self, limits: Limits) -> None:
        """The link is up (again): keep to the broker's limit, and offer what is being sent anew."""
        if limits.max_packet_bytes is not None:
            # A broker that takes less than a small chunk takes nothing; a chunk of no bytes would never end.
            self._chunk_bytes = max(1024, min(MOST_CHUNK_BYTES, limits.max_packet_bytes - _ENVELOPE_BYTES))
        if self._sender is not None:
            self._sender.link_lost()
        if self._fetching is not None:
            self._fetching[1].link_lost()

    def object_path(self, obj: PublishedObject) -> Path:
        """Where a fetched object lies."""
        return self._inbox / f"{obj.manifest.sha256[:32]}.bin"

    def send(self, server_round: int, chunk_bytes: int, now: float, path: Path | None = None) -> None:
        """Offer a round's update until it is committed or refused; takes the place of an older one.

        Args:
            server_round: Whose update.
            chunk_bytes: What the coordinator found to pass the broker; this node's own link may ask for less.
            now: Steady clock, seconds.
            path: What is sent in its place: the update, masked.
        """
        self._end_upload()
        self._round, self._path = server_round, path or self._outbox.path(server_round)
        manifest = manifest_of(self._path, min(chunk_bytes, self._chunk_bytes))
        # The digest in its name: an update that was trained again is another transfer.
        transfer = f"{server_round}-{manifest.sha256[:16]}"
        self._sender = Sender(transfer, manifest, by_store=self.servers.take_updates)
        self._run_sender(self._sender, self._sender.tick(now), now)

    def drop_update(self) -> None:
        """Offer no more what is being sent; it stays on the disk."""
        self._end_upload()
        self._sender = None

    def forget_before(self, server_round: int) -> None:
        """Offer updates of earlier rounds no more, and remove them: their rounds are over, whether or not we heard of
        their commit."""
        if self._round < server_round:
            self.drop_update()
        self._outbox.forget_before(server_round)

    def fetch(self, obj: PublishedObject, now: float, address: str = "") -> None:
        """Get a published object; repeating the call changes nothing.

        Args:
            obj: Which.
            now: Steady clock, seconds.
            address: Where it lies beside the broker, as the plan says; empty for nowhere.
        """
        if self._fetching is not None and self._fetching[0] == obj:
            return
        self._end_fetch()
        for old in self._inbox.glob("*"):
            # Also what was begun and overtaken by a newer plan.
            if not old.name.startswith(self.object_path(obj).name):
                old.unlink()
        part = PartialFile(self.object_path(obj), obj.manifest)
        self._gather(obj, part, now)
        self._download = self.servers.download(address, part, now)
        if self._download is None:
            self._listen(obj)

    def _gather(self, obj: PublishedObject, part: PartialFile, now: float) -> None:
        self._fetching = obj, Gather(obj.manifest, part.bitmap.tobytes(), now, self._jitter), part
        self._moved_at, self._told = now, False

    def _listen(self, obj: PublishedObject) -> None:
        # After a reconnect only what is missing is asked for: all chunks again would fill a slow link.
        self._transport.subscribe(self._messages.topics.published_state(obj.manifest.sha256[:16], "+"), again=False)

    def handle(self, body: Grant | Ack | Commit | Refuse | Chunk, now: float) -> None:
        """A message about a transfer."""
        if isinstance(body, Chunk):
            if self._fetching is not None and self._download is None:
                actions = self._fetching[1].handle(body, now)
                self._moved_at = now if actions else self._moved_at
                self._run_gather(actions)
        elif self._sender is not None:
            self._run_sender(self._sender, self._sender.handle(body, now), now)

    @property
    def busy(self) -> bool:
        """Whether something is on its way, up or down."""
        return self._sender is not None or self._fetching is not None

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self._upload is not None and self._upload.ended:
            self._was_put(self._upload, now)
        if self._sender is not None:
            self._run_sender(self._sender, self._sender.tick(now), now)
        if self._download is not None and self._download.ended:
            self._take_over(self._download, now)
        if self._download is not None:
            return
        if self._fetching is not None:
            self._run_gather(self._fetching[1].tick(now))
        if self._fetching is not None and not self._told and now - self._moved_at > _SILENT_SECONDS:
            self._told = True
            self._say(lines.nobody_answers(self._fetching[0]))

    def _take_over(self, download: Download, now: float) -> None:
        """A download is over: the broker brings what is still missing, also where what came is not what it should be.

        Raises:
            OSError: The disk is full.
        """
        assert self._fetching is not None
        self._download = None
        obj, _, part = self._fetching
        self.servers.ended(download, now)
        self._messages.downlink_bytes += download.read_bytes
        self._say(lines.downloaded(obj, download))
        self._gather(obj, part, now)
        if download.full is not None:
            raise download.full
        if not part.bitmap.full:
            self._listen(obj)

    def pause(self) -> None:
        """Stop fetching without another write; what was flushed stays, and another `fetch` goes on from there."""
        self._end_download()
        if self._fetching is not None:
            obj, _, part = self._fetching
            self._transport.unsubscribe(self._messages.topics.published_state(obj.manifest.sha256[:16], "+"))
            part.abandon()
        self._fetching = None

    def stop(self) -> None:
        """Neither fetch nor send any more."""
        self.pause()
        self.drop_update()
        self._round = 0

    def _put(self, sender: Sender, address: str, now: float) -> None:
        self._upload = self.servers.upload(address, self._path, sender.manifest.size_bytes, now)
        if self._upload is None:
            self._run_sender(sender, sender.put(False, now), now)

    def _was_put(self, upload: Upload, now: float) -> None:
        """An upload is over: the coordinator hears that the update lies there, or is offered its chunks."""
        self._end_upload()
        self.servers.ended(upload, now)
        self._say(lines.uploaded(self._round, upload))
        if self._sender is not None:
            self._run_sender(self._sender, self._sender.put(not upload.why, now), now)

    def _end_upload(self) -> None:
        if self._upload is not None:
            self._upload.stop()
            self._messages.uplink_bytes += self._upload.sent_bytes
        self._upload = None

    def _run_sender(self, sender: Sender, actions: list[Action], now: float) -> None:
        for action in actions:
            match action:
                case Send(Offer() as offer):
                    self._messages.up("offer", offer, self._round)
                case SendChunk(index):
                    self._messages.up(
                        "chunk",
                        read_chunk(self._path, sender.transfer, index, sender.manifest.chunk_bytes),
                        self._round,
                    )
                case Put(address):
                    self._put(sender, address, now)
                case Done():
                    self.drop_update()
                    self._gone(self._round, "")
                case Refused(reason):
                    self.drop_update()
                    self._gone(self._round, reason)

    def _run_gather(self, actions: list[Action]) -> None:
        if self._fetching is None:
            return
        obj, gather, part = self._fetching
        for action in actions:
            match action:
                case Send(Missing() as missing):
                    self._messages.up("missing", missing, obj.version)
                case Store(index, data):
                    part.write(index, data)
                case Verify():
                    whole = part.finish()
                    self._run_gather(gather.verified(whole))
                    if whole:
                        self._end_fetch()
                        self._fetched(obj.manifest.sha256)

    def _end_download(self) -> None:
        if self._download is not None:
            self._download.stop()
        self._download = None

    def _end_fetch(self) -> None:
        self._end_download()
        if self._fetching is not None:
            obj, _, part = self._fetching
            self._transport.unsubscribe(self._messages.topics.published_state(obj.manifest.sha256[:16], "+"))
            part.close()
        self._fetching = None
