# SPDX-License-Identifier: Apache-2.0
"""Run artefacts: asked for by a method, believed only as the file that plans name."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from plans import TRAINING, make_plan, with_artefact

from fedcore.errors import ArtefactDamaged, MalformedMessage
from fedcore.fields.manifest import Manifest
from fedcore.model.state import PublishedState
from fedcore.round.artefact import read_artefact
from fedcore.round.plan import ArtefactObject
from fedcore.round.training import Training
from fedcore.round.training.artefact import ArtefactKind
from fedcore.round.training.base import Shapes
from fedcore.subspaces.projection import projection_of
from fedcore.system.durable import sha256_of
from fedcore.weights.schema import ModelSchema

SCHEMA = ModelSchema((), ())


class Vectors(Training, frozen=True, kw_only=True, tag_field="method", tag="vectors"):
    """A method of somebody else's that asks for a file of lines."""

    artefact: str = ""

    @property
    def artefact_kind(self) -> ArtefactKind | None:
        return ArtefactKind("vectors", "outside:write_vectors", from_text=False)

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        return {}


class Lines(Vectors, frozen=True, kw_only=True, tag_field="method", tag="lines"):
    """The same, which says how it is read."""

    def read_artefact(self, path: Path, schema: ModelSchema) -> list[str]:
        lines = path.read_text().splitlines()
        if not lines:
            raise MalformedMessage("no vectors", place=path.name)
        return lines


def of(kind: type[Vectors], path: Path) -> Vectors:
    common = {key: getattr(TRAINING, key) for key in Training.__struct_fields__}
    return kind(**common, artefact=sha256_of(path))


def test_a_method_gets_its_file_or_what_it_says_that_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "artefact.bin"
    path.write_text("1 0\n0 1\n")
    assert read_artefact(path, of(Vectors, path), SCHEMA) == path
    assert read_artefact(path, of(Lines, path), SCHEMA) == ["1 0", "0 1"]
    path.write_text("")
    with pytest.raises(MalformedMessage, match=r"^artefact\.bin: no vectors"):
        read_artefact(path, of(Lines, path), SCHEMA)


def test_a_method_that_asks_for_none_reads_none(tmp_path: Path) -> None:
    assert TRAINING.artefact_kind is None and read_artefact(None, TRAINING, SCHEMA) is None
    assert read_artefact(tmp_path / "nothing", TRAINING, SCHEMA) is None


def test_another_file_or_none_is_damage_that_names_the_kind(tmp_path: Path) -> None:
    path = tmp_path / "artefact.bin"
    path.write_bytes(bytes(range(100)))
    training = of(Lines, path)
    for place in (0, 50, 99):
        data = bytearray(range(100))
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(ArtefactDamaged, match=r"this artefact \(vectors\) is \w{12}, not the run's \w{12}"):
            read_artefact(path, training, SCHEMA)
    path.unlink()
    for none in (path, None):
        with pytest.raises(ArtefactDamaged, match=r"artefact \(vectors\) is not here") as caught:
            read_artefact(none, training, SCHEMA)
        assert "\n" not in str(caught.value)


def test_a_plan_names_the_artefact_that_its_training_does_and_no_other() -> None:
    made, other = (ArtefactObject(Manifest("artefact.bin", 9, digit * 64, 4)) for digit in "ab")
    training = with_artefact("a" * 64)
    assert make_plan(training=training, artefact=made).artefact == made
    for wrong in (
        {"training": training},
        {"training": training, "artefact": other},
        {"artefact": made},
        {"training": msgspec.structs.replace(training, artefact="")},
        {"training": msgspec.structs.replace(training, informed_subspaces=0), "artefact": made},
    ):
        plan = msgspec.structs.asdict(make_plan()) | wrong
        with pytest.raises(ValueError, match="artefact is not that of its training"):
            type(make_plan())(**plan)


class Silent(Lines, frozen=True, kw_only=True, tag_field="method", tag="silent"):
    """One whose states do not name the file."""

    @property
    def rows_from(self) -> str:
        return "signs"


def test_digests_of_states_say_which_artefact_they_were_trained_with(tmp_path: Path) -> None:
    path, found = tmp_path / "artefact.bin", set()
    for content in ("", "1\n", "2\n"):
        path.write_text(content)
        found.add(PublishedState.zero(of(Lines, path), SCHEMA).digest())
    plain = msgspec.structs.replace(of(Lines, path), artefact="")
    assert len(found | {PublishedState.zero(plain, SCHEMA).digest()}) == 4
    made = ArtefactObject(Manifest("artefact.bin", 2, sha256_of(path), 64))
    make_plan(training=of(Lines, path), artefact=made)
    with pytest.raises(ValueError, match="would not name its artefact"):
        fields = msgspec.structs.asdict(make_plan()) | {"training": of(Silent, path), "artefact": made}
        type(make_plan())(**fields)


def test_rows_of_a_method_that_says_no_more_are_signs(tmp_path: Path) -> None:
    path = tmp_path / "artefact.bin"
    path.write_text("1\n")
    made = projection_of(of(Lines, path).rows_from, (3, 4), 2, "layer", 16)
    assert np.array_equal(made.rows, projection_of("signs", (3, 4), 2, "layer", 16).rows)
