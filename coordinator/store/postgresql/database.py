# SPDX-License-Identifier: Apache-2.0
"""A database that holds runs' ledgers: how it is reached, its tables, and what its errors mean."""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from coordinator.store.ledger import VERSION
from coordinator.store.places import Database
from coordinator.store.tables import TABLES
from fedcore.config.passwords import read_password
from fedcore.errors import ConfigError, RunError, StorageError

__all__ = ["SCHEMA", "Away", "Connection", "begin_run", "connect", "in_our_words", "make_table"]

Connection = psycopg.Connection[tuple[Any, ...]]
_TYPES: Final = {"name": 'text COLLATE "C"', "node": 'text COLLATE "C"'}
"""Of key columns that are no numbers: names in the order of their bytes, as everywhere."""
_RUN: Final = "run bigint NOT NULL REFERENCES fedkrso.runs ON DELETE CASCADE"
_TABLE: Final = "CREATE TABLE IF NOT EXISTS fedkrso.{} ({}, {}, {} bytea NOT NULL, PRIMARY KEY (run, {}))"
SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS fedkrso.runs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE, key text NOT NULL UNIQUE, format integer NOT NULL, writer text NOT NULL,
    writes bigint NOT NULL)""",
    *(
        _TABLE.format(
            table.name,
            _RUN,
            ", ".join(f"{key} {_TYPES.get(key, 'bigint')} NOT NULL" for key in table.keys),
            table.value,
            ", ".join(table.keys),
        )
        for table in TABLES
    ),
    f"""CREATE TABLE IF NOT EXISTS fedkrso.events ({_RUN}, number bigint NOT NULL, at double precision NOT NULL,
    kind text NOT NULL, node text COLLATE "C" NOT NULL, text text NOT NULL, round bigint NOT NULL,
    PRIMARY KEY (run, number))""",
)
"""Tables of all runs, in the schema `fedkrso` of the database."""
# Of `pg_advisory_xact_lock`: who makes the tables does so alone.
_MAKING: Final = 0x6665646B
_CONNECT_SECONDS: Final = 10
# A server that shuts down, starts up, has no connection left, or stands by for another; and changes that were in each
# other's way.
_PASSES: Final = ("08", "40", "57", "53300", "25006")


class Away(Exception):
    """The database cannot be used at this moment.

    Args:
        words: What it, or the network, says.
    """

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words


def connect(database: Database, *, writes: bool = True) -> Connection:
    """A connection to a database whose settings keep what a ledger promises.

    Args:
        database: Which.
        writes: Of several servers that are named, to the one that takes writes.

    Raises:
        psycopg.Error: There is none (`in_our_words`).
        ConfigError: The address or the password file cannot be used.
        RunError: It is no database for a ledger.
    """
    # Autocommit: a transaction is begun where one is meant.
    db = psycopg.connect(_conninfo(database, writes=writes), autocommit=True)
    try:
        _require(db, database)
    except BaseException:
        db.close()
        raise
    return db


def _conninfo(database: Database, *, writes: bool) -> str:
    try:
        given = conninfo_to_dict(database.url)
    except psycopg.Error as error:
        raise ConfigError(_line(error), place=f"ledger.url: {database.place}") from None
    known: dict[str, Any] = {
        "connect_timeout": _CONNECT_SECONDS,
        "application_name": "fedkrso",
        # A machine that is gone without a word is noticed within about a minute.
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 60_000,
    }
    if writes:
        known["target_session_attrs"] = "read-write"
    if not _is_here(str(given.get("host") or given.get("hostaddr") or "")):
        known["sslmode"] = "verify-full"
    if database.password_file is not None:
        known["password"] = read_password(Path(database.password_file), "ledger.password_file")
    return make_conninfo(**{**known, **given})


def _is_here(hosts: str) -> bool:
    """Whether none of the hosts is another machine, as far as the words say: a socket's folder, or the loopback."""
    for host in filter(None, hosts.split(",")):
        try:
            here = ipaddress.ip_address(host).is_loopback
        except ValueError:
            here = host == "localhost" or host.startswith(("/", "@"))
        if not here:
            return False
    return True


def _require(db: Connection, database: Database) -> None:
    """Check that what is committed stays, and that every text can be kept."""
    found = db.execute("SELECT current_setting('fsync'), current_setting('server_encoding')").fetchone()
    if found != ("on", "UTF8"):
        what = f"the database has fsync = {found[0]} and the encoding {found[1]}" if found else "it says nothing"
        remedy = "a ledger needs fsync = on, and a database that was made with --encoding=UTF8"
        raise RunError(what, place=database.place, remedy=remedy)
    # Whatever is set for all others: nodes are told that their update is kept. And a session whose client is gone
    # holds nobody up.
    db.execute(
        "SELECT set_config('synchronous_commit', 'on', false)"
        " WHERE current_setting('synchronous_commit') IN ('off', 'local')"
    )
    db.execute("SELECT set_config('idle_in_transaction_session_timeout', '60s', false)")


@contextlib.contextmanager
def in_our_words(database: Database, *, waits: bool = False) -> Iterator[None]:
    """Around what is asked of a database.

    Args:
        database: Which.
        waits: Whether a database that is away is waited for.

    Raises:
        Away: It is, and is waited for.
        StorageError: Its disk is full.
        RunError: Whatever else it says.
    """
    try:
        yield
    except psycopg.Error as error:
        state, place, line = error.sqlstate or "", database.place, _line(error)
        connection = isinstance(error, psycopg.InterfaceError | psycopg.OperationalError) and not state
        if waits and (connection or state.startswith(_PASSES)):
            raise Away(line) from None
        if state == "53100":
            raise StorageError("the database's disk is full", place=place, remedy="free space there") from None
        if state == "42501":
            remedy = "CREATE SCHEMA fedkrso AUTHORIZATION this user, or a user who may make one"
            raise RunError(f"the database does not allow it: {line}", place=place, remedy=remedy) from None
        remedy = "look whether PostgreSQL runs there, and whether `psql` with the same address connects"
        words = "the database cannot be reached" if connection else "the database refuses"
        raise RunError(f"{words}: {line}", place=place, remedy=remedy if connection else "") from None


def _line(error: Exception) -> str:
    """What the server says, without what belongs to no line of ours."""
    words = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(words[:2]) or type(error).__name__


def begin_run(database: Database, name: str) -> Database:
    """Make room for a run, and the tables where there are none; the database with the run's key.

    Nothing is written for the run yet: whoever is killed right after this may begin again.

    Args:
        database: Which.
        name: The run's, the only one of its name in there.

    Raises:
        RunError: There is a run of this name already, or the database cannot be used.
    """
    key = secrets.token_hex(16)
    with in_our_words(database), contextlib.closing(connect(database)) as db, db.transaction():
        # Whoever makes the tables does so alone.
        db.execute("SELECT pg_advisory_xact_lock(%s)", (_MAKING,))
        _make_tables(db)
        # What somebody began and never came to write to; a copy that was cut short.
        db.execute("DELETE FROM fedkrso.runs WHERE name = %s AND writes = 0", (name,))
        taken = db.execute(
            "INSERT INTO fedkrso.runs (name, key, format, writer, writes) VALUES (%s, %s, %s, '', 0)"
            " ON CONFLICT (name) DO NOTHING",
            (name, key, VERSION),
        )
    if taken.rowcount != 1:
        raise RunError(
            f"run {name!r} is already in the database",
            place=database.place,
            remedy="another name; or, where its folder is gone and nobody needs it, delete its row of fedkrso.runs",
        )
    return msgspec.structs.replace(database, key=key)


def make_table(db: Connection, statement: str) -> None:
    """Make one more table in the schema, where it is not there.

    Args:
        db: Outside of a transaction.
        statement: That makes it, unless it is there.

    Raises:
        psycopg.Error: This user may not (`in_our_words`).
    """
    with db.transaction():
        db.execute("SELECT pg_advisory_xact_lock(%s)", (_MAKING,))
        if db.execute("SELECT to_regnamespace('fedkrso') IS NULL").fetchone() == (True,):
            db.execute("CREATE SCHEMA fedkrso")
        db.execute(statement)


def _make_tables(db: Connection) -> None:
    """Make what is not there. Where the schema is, this user need not be allowed to make one."""
    found = db.execute("SELECT to_regnamespace('fedkrso') IS NULL, to_regclass('fedkrso.events') IS NULL").fetchone()
    assert found is not None
    no_schema, no_tables = found
    if no_schema:
        db.execute("CREATE SCHEMA fedkrso")
    for statement in SCHEMA if no_schema or no_tables else ():
        db.execute(statement)
