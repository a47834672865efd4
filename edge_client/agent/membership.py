# SPDX-License-Identifier: Apache-2.0
"""Which run of its name a node takes part in. A name can be used again; each run has a random id.

A node goes to another run when the coordinator says so in a message that repeats the word the node gave last, which no
message of before can. Without that, it goes where it has never been, and nowhere that it has left: so neither plans of
an earlier run nor older ones of this run lead it back, whatever any clock says."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec

from fedcore.errors import ForgedMessage
from fedcore.fields.checked import RunId
from fedcore.round.plan import Plan
from fedcore.system.durable import write_durably
from fedcore.wire.messages import Envelope, Welcome
from fedcore.wire.post import LARGEST_START, start_of

__all__ = ["Membership"]

# Runs that were left, of one name: a node that has been to more has forgotten the first ones.
_MOST_LEFT = 200
# A coordinator starts again a few times in a run, not this often.
_LARGEST_JUMP = 10_000


class _Kept(msgspec.Struct):
    run_id: RunId = ""
    plan: Annotated[int, msgspec.Meta(ge=0)] = 0
    left: Annotated[list[RunId], msgspec.Meta(max_length=_MOST_LEFT)] = []


class Membership:
    """A node's place among the runs of one name; survives a restart.

    Args:
        path: Its file.
        signed: Whether messages are: then the number of the last plan is kept on the disk too. Whoever can write an
            unsigned message could otherwise stop the node for good.
        word: Makes a word that nobody can foresee.

    Attributes:
        word: What a coordinator has to repeat.
    """

    def __init__(self, path: Path, *, signed: bool, word: Callable[[], str] = lambda: secrets.token_hex(8)) -> None:
        self._path, self._signed, self._make_word = path, signed, word
        self._kept = _Kept()
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
            self._kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
        self.word = word()

    @property
    def run_id(self) -> str:
        """Of the run that the node is in; empty before it has heard of one."""
        return self._kept.run_id

    def hear(self, envelope: Envelope, place: str) -> bool:
        """Take a message of the coordinator; whether the node is in another run from here on.

        Args:
            envelope: The message.
            place: Its topic, for an error.

        Raises:
            ForgedMessage: It is of another run, or a plan or welcome that was made before what is known.
        """
        body, fresh = envelope.body, envelope.correlation == self.word
        # One for a word of before, which has brought the node here by then, changes nothing.
        if isinstance(body, Welcome) and not fresh and envelope.run_id != self.run_id:
            raise ForgedMessage("an old welcome, played again", place=place)
        if envelope.run_id == self.run_id:
            if isinstance(body, Plan):
                self._check_order(envelope.sequence, place, fresh=fresh)
            return False
        if not isinstance(body, Plan | Welcome):
            raise ForgedMessage("a message of another run of this name", place=place)
        if envelope.run_id in self._kept.left and not fresh:
            raise ForgedMessage("a plan of an earlier run of this name, played again", place=place)
        if isinstance(body, Plan):
            self._check_jump(envelope.sequence, 0, place, fresh=fresh)
        self._enter(envelope.run_id, envelope.sequence if isinstance(body, Plan) else 0)
        return True

    def _enter(self, run_id: str, plan: int) -> None:
        kept = self._kept
        left = [run for run in (*kept.left, kept.run_id) if run not in ("", run_id)]
        self._keep(_Kept(run_id, plan if self._signed else 0, left[-_MOST_LEFT:]))
        self._kept.plan = plan
        self.word = self._make_word()

    def _check_order(self, sequence: int, place: str, *, fresh: bool) -> None:
        last = self._kept.plan
        if sequence < last and not fresh:
            raise ForgedMessage("an older plan, played again", place=place)
        self._check_jump(sequence, last, place, fresh=fresh)
        if sequence != last and self._signed:
            self._keep(msgspec.structs.replace(self._kept, plan=sequence))
        self._kept.plan = sequence

    def _check_jump(self, sequence: int, last: int, place: str, *, fresh: bool) -> None:
        """A number that is far ahead would have every later plan refused."""
        start = start_of(sequence)
        if start > LARGEST_START or (not self._signed and not fresh and start - start_of(last) > _LARGEST_JUMP):
            raise ForgedMessage("a plan whose number jumps", place=place)

    def _keep(self, kept: _Kept) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(self._path, msgspec.json.encode(kept))
        self._kept = kept
