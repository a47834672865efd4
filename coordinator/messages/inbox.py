# SPDX-License-Identifier: Apache-2.0
"""Updates on their way in: one receiver per node, chunks to disk, nothing kept in memory.

All nodes may offer at once. What they may have under way together is bounded, since it lies in the broker's and in our
own queue until it is written: the others wait for their grant. So memory does not grow with the number of nodes, and
what is acknowledged within seconds is not sent again.

What comes by way of a store of objects is not there, and takes no room: it is granted at once, and fetched beside the
coordinator's loop, a few at a time (`coordinator.objects.uploads`). What does not come so comes in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from coordinator.objects.uploads import Fetched, Uploads
from fedcore.system.durable import flush_folder
from fedcore.wire.actions import Action, Fetch, Send, Store, Verify
from fedcore.wire.files import PartialFile
from fedcore.wire.messages import Ack, Chunk, Commit, Grant, Missing, Offer, Refuse, Way
from fedcore.wire.transfer import Receiver, StoreReceiver

__all__ = ["Accept", "Inbox", "Reply"]

Accept = Callable[[str, Offer, Path], str]
"""(node, offer, file) -> "" when the file is checked and in the ledger, else the reason it is refused."""
Reply = Callable[[str, Grant | Ack | Commit | Refuse], None]

_MOST_BYTES = 32 * 2**20
# File handles are bounded too.
_MOST_TRANSFERS = 200
_SPARE_SECONDS = 0.05


class Inbox:
    """Receivers of a round.

    Args:
        accept: Called with a complete file whose SHA-256 is right.
        reply: Sends a message to a node.
        window: Chunks a node may have under way.
        most_bytes: What all nodes may have under way together.
        uploads: The store that updates may come by; none by default.

    Attributes:
        by_store: How many updates came by way of the store, since `clear`.
    """

    def __init__(
        self,
        accept: Accept,
        reply: Reply,
        *,
        window: int = 8,
        most_bytes: int = _MOST_BYTES,
        uploads: Uploads | None = None,
    ) -> None:
        self._accept = accept
        self._reply = reply
        self._window = window
        self._most_bytes = most_bytes
        self._open: dict[str, tuple[Offer, Receiver, PartialFile]] = {}
        self._waiting: dict[str, tuple[Offer, Path]] = {}
        self._under_way: dict[str, int] = {}
        self._spare_at = float("-inf")
        self._uploads = uploads
        self._stored: dict[str, tuple[Offer, StoreReceiver, Path]] = {}
        self._missed: dict[str, str] = {}
        """Transfers that did not come by way of the store, by node: their chunks are waited for."""
        self.by_store = 0

    @property
    def waiting(self) -> Iterable[str]:
        """Nodes that have offered and wait: for their grant, or until we have fetched what they have put."""
        yield from self._waiting
        yield from (node for node, (_, receiver, _) in self._stored.items() if receiver.fetching)

    def offer(self, node: str, offer: Offer, path: Path, now: float) -> None:
        """A node offers an object that is wanted at `path`. A new transfer of a node replaces its old one."""
        way, offer = offer.way, msgspec.structs.replace(offer, way="chunks")
        if self._uploads is not None and self._offer_by_store(self._uploads, node, offer, way, path):
            return
        known = self._open.get(node)
        if known is not None and known[0] == offer:
            self._run(node, known[1].handle(offer, now))
        else:
            self._forget(node)
            self._waiting[node] = offer, path
            self._admit(now)

    def chunk(self, node: str, chunk: Chunk, now: float) -> bool:
        """A chunk; one of an unknown transfer is ignored, the sender's next offer brings a grant.

        Returns:
            Whether the transfer made progress.
        """
        if node not in self._open:
            return False
        actions = self._open[node][1].handle(chunk, now)
        self._run(node, actions)
        self._admit(now)
        return any(isinstance(action, Store) for action in actions)

    def spare(self, now: float) -> None:
        """Nothing is left to do here: what is granted comes slowly, or not at all. So that nobody waits for it, one
        more may begin."""
        if self._waiting and abs(now - self._spare_at) >= _SPARE_SECONDS:
            self._spare_at = now
            self._begin(next(iter(self._waiting)), now)

    def clear(self, wanted: Callable[[str], bool] = lambda transfer: False) -> None:
        """A round is over: forget its transfers; files of unfinished ones stay for a while.

        Args:
            wanted: Whether an unfinished transfer goes on.
        """
        for node, (offer, _, _) in list(self._open.items()):
            # One that is finished is known to the ledger.
            if node not in self._under_way or not wanted(offer.transfer):
                self._forget(node)
        self._waiting = {node: one for node, one in self._waiting.items() if wanted(one[0].transfer)}
        self._missed = {node: transfer for node, transfer in self._missed.items() if wanted(transfer)}
        for node in [node for node, (offer, _, _) in self._stored.items() if not wanted(offer.transfer)]:
            self.leave_store(node)
        self.by_store = 0
        if self._uploads is not None:
            self._uploads.sweep(wanted)

    def collect(self, now: float) -> int:
        """Take what has come by way of the store; how many bytes of it there were."""
        came = [] if self._uploads is None else self._uploads.collect()
        for found in came:
            known = self._stored.get(found.node)
            if known is not None and known[0] == found.offer and known[1].fetching:
                self._fetched(found, now)
            # Taken, wrong, or of a transfer that another has replaced.
            found.file.unlink(missing_ok=True)
        return sum(found.read_bytes for found in came)

    def stop(self) -> None:
        """Nothing comes any more."""
        if self._uploads is not None:
            self._uploads.stop()

    def unwanted(self, node: str, offer: Offer) -> None:
        """An offer was refused: what it put into the store can go."""
        if self._uploads is not None and offer.way == "stored":
            self._uploads.drop(node, offer.transfer)

    def leave_store(self, node: str) -> None:
        """What a node has put, or is to put, is not wanted any more."""
        if self._stored.pop(node, None) is not None and self._uploads is not None:
            self._uploads.leave(node)

    def _offer_by_store(self, uploads: Uploads, node: str, offer: Offer, way: Way, path: Path) -> bool:
        """Take an offer by way of the store; False: it comes in chunks."""
        chunks = self._open.get(node)
        in_chunks = way == "chunks" or self._missed.get(node) == offer.transfer or not uploads.takes(offer.manifest)
        if in_chunks or (chunks is not None and chunks[0] == offer):
            self.leave_store(node)
            return False
        if node not in self._stored or self._stored[node][0] != offer:
            self.leave_store(node)
            self._stored[node] = offer, StoreReceiver(offer.transfer, offer.manifest), path
        receiver = self._stored[node][1]
        asks = way == "store" and not receiver.fetching
        address = uploads.address(node, offer.transfer) if asks else ""
        if asks and not address:
            self.leave_store(node)
            return False
        self._forget(node)
        self._waiting.pop(node, None)
        for action in receiver.handle(msgspec.structs.replace(offer, way=way), address):
            match action:
                case Fetch():
                    uploads.fetch(node, offer, path)
                case Send(Grant() as grant):
                    self._reply(node, grant)
        return True

    def _fetched(self, found: Fetched, now: float) -> None:
        """What a node has put is here; or it is to come in chunks after all."""
        assert self._uploads is not None
        node, (offer, receiver, path) = found.node, self._stored.pop(found.node)
        if not found.whole:
            self._missed[node] = offer.transfer
            self._waiting[node] = offer, path
            self._admit(now)
        else:
            found.file.replace(path)
            flush_folder(path.parent)
            if reason := self._accept(node, offer, path):
                path.unlink(missing_ok=True)
                self._reply(node, Refuse(offer.transfer, reason))
            else:
                self.by_store += 1
                self._reply(node, receiver.committed())
        self._uploads.drop(node, offer.transfer)

    def _admit(self, now: float) -> None:
        while (
            self._waiting
            and sum(self._under_way.values()) < self._most_bytes
            and len(self._under_way) < _MOST_TRANSFERS
        ):
            self._begin(next(iter(self._waiting)), now)

    def _begin(self, node: str, now: float) -> None:
        offer, path = self._waiting.pop(node)
        part = PartialFile(path, offer.manifest)
        receiver = Receiver(offer.transfer, offer.manifest, part.bitmap.tobytes(), window=self._window)
        self._open[node] = offer, receiver, part
        self._under_way[node] = min(self._window, offer.manifest.chunks) * offer.manifest.chunk_bytes
        self._run(node, receiver.handle(offer, now))

    def _forget(self, node: str) -> None:
        known = self._open.pop(node, None)
        if known is not None:
            known[2].close()
        self._under_way.pop(node, None)

    def _run(self, node: str, actions: list[Action]) -> None:
        offer, receiver, part = self._open[node]
        for action in actions:
            match action:
                case Store(index, data):
                    part.write(index, data)
                case Verify():
                    self._verify(node, offer, receiver, part)
                case Send(message) if not isinstance(message, Offer | Missing):
                    self._reply(node, message)

    def _verify(self, node: str, offer: Offer, receiver: Receiver, part: PartialFile) -> None:
        if not part.finish():
            self._run(node, receiver.verified(whole=False))
            return
        self._under_way.pop(node, None)
        reason = self._accept(node, offer, part.path)
        if reason:
            part.path.unlink(missing_ok=True)
            del self._open[node]
            self._reply(node, Refuse(offer.transfer, reason))
            return
        self._run(node, receiver.verified(whole=True))
