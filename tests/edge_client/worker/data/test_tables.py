# SPDX-License-Identifier: Apache-2.0
"""Tables that people have: each row is read as its author meant it, or named by file and line with the remedy."""

from __future__ import annotations

import csv
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edge_client.worker.data.reading import load_examples
from edge_client.worker.data.sources import read_rows, rows_of
from fedcore.config.sections import DataSection, TaskSection
from fedcore.errors import DataError

TWO = TaskSection(kind="text-classification", labels=("good", "bad"))
PLAIN = TaskSection(kind="causal-lm")


def section_of(tmp_path: Path, name: str, content: str | bytes, **keys: Any) -> DataSection:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return DataSection(source=str(path), **keys)


def read(section: DataSection) -> list[dict[str, Any]]:
    return [dict(row) for _, row in rows_of(section)]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('text,label\n5" pipe,good\n"5"" pipe",bad\n', ['5" pipe', '5" pipe']),
        ("text;label\nwarm kettle, cold tea;good\ndull;bad\n", ["warm kettle, cold tea", "dull"]),
        ("text\tlabel\none, two; three\tgood\n", ["one, two; three"]),
        ("id|text|label\n1|one, two|good\n", ["one, two"]),
        ("text,label\r\none,good\r\n\r\ntwo,bad\r\n", ["one", "two"]),
        ("text,label\rone,good\rtwo,bad", ["one", "two"]),
        ("\n\ntext,label\none,good\n", ["one"]),
        ('text,label\n"two\nlines, good day",good\n', ["two\nlines, good day"]),
        ('"text","label"\n"a ""fine"" day","good"\n', ['a "fine" day']),
        ("text,label\n" + "long " * 40_000 + ",good\n", ["long " * 40_000]),
        ("text,label,,\none,good,,\n", ["one"]),
        ("text,label\nna\u2028me\x0bhere,good\n", ["na\u2028me\x0bhere"]),
        ("sep=;\r\ntext;label\r\none, two;good\r\n", ["one, two"]),
    ],
    ids=[
        "inch",
        "semicolons",
        "tabs",
        "bars",
        "crlf",
        "cr",
        "blank-lines",
        "two-lines",
        "quoted",
        "long",
        "empty-names",
        "odd-spaces",
        "separator-named",
    ],
)
def test_a_table_is_read_as_it_was_meant(tmp_path: Path, content: str, texts: list[str]) -> None:
    limit = csv.field_size_limit()
    found = load_examples(section_of(tmp_path, "a.csv", content), TWO)
    assert [example.text for example in found] == texts
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (
            'text,label\n"warm,good\ndull,bad\nthe "fine" day,good\nbright,good\n',
            r"a\.csv:2: a quotation mark is opened, and the next one, in line 4, is inside a text \(a mark inside .* twice",
        ),
        ('text,label\none,good\n"warm,good\ndull,bad\n', r"a\.csv:3: a quotation mark is opened and never closed"),
        # Well formed, and swallowed: the second line is a row, whose label others have.
        ('text,label\nb,bad\nx,good\n"warm,good\ndull,bad\na pipe of 5",good\n', r"a\.csv:4: .* rows of the next lines"),
        ('label,text\nbad,b\ngood,x\ngood,"warm\nbad,dull\nbad,a pipe of 5"\n', r"a\.csv:4: .* rows of the next lines"),
        ('text,label\n"the 5" pipe",good\n', r"a\.csv:2: a quotation mark inside a text that is in quotation marks"),
        ('text,label\none, "good"\n', r"a\.csv:2: a blank before a quotation mark"),
        ("text,label\none,two,good\n", r"a\.csv:2: 3 columns .* separated by commas: put a text that has some in quo"),
        ("text;label\none;two;good\n", r"a\.csv:2: 3 columns .* separated by semicolons"),
        ("text,label\none\n", r"a\.csv:2: 1 columns where the header has 2 \(repair the line\)"),
        ("text,text,label\na,b,good\n", r"a\.csv:1: two columns are named 'text' \(rename one\)"),
        ("text,label\n ,good\none,good\n,bad\n\t,bad\n", r"a\.csv:2: text: the text is empty, and 2 more .* wrong: 4-5 \("),
        ("text,label\none,Good\n", r"a\.csv:2: label 'Good' is not in task\.labels"),
        ("text,label\nz\0ro,good\n", r"a\.csv:2: a zero byte"),
        ("sep=;\ntext;label\none;fine\n", r"a\.csv:3: label 'fine' is not in"),
        ("sep=;\n", r"a\.csv: the file is empty"),
        ("text,label\none,good,\n", r"a\.csv:2: 3 columns .*the line ends in a delimiter: leave it out"),
        ("text,label\none,good\u200b\n", r"a\.csv:2: .* \(it looks like 'good', and is 'good\\u200b': write both alike"),
        ("text,label\none,ｇｏｏｄ\n", r"a\.csv:2: .* \(it looks like 'good', and is '\\uff47\\uff4f\\uff4f\\uff44': write both alike"),
        ("text,label\none,good\u00a0\n", r"a\.csv:2: .* \(it looks like 'good', and is 'good\\xa0': write both alike"),
        ("text,label\none," + "x" * 9999 + "\n", r"a\.csv:2: label 'x{79}\.\.\. is not in task\.labels \(labels: good, bad\)"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", r"a\.csv: a pointer of Git LFS, not the data \(git lfs pull"),
        ("one,good\ntwo,bad\n", r"a\.csv:2: data\.text: no column 'text' \(columns: one, good\)"),
    ],
    ids=["swallowed", "unclosed", "well-formed", "label-first", "inside", "blank", "commas", "semicolons", "few", "twice", "empty", "label", "zero", "separator-named", "separator-alone", "ends-in-comma", "zero-width", "wide-letters", "no-break", "long-label", "lfs", "no-header"],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_its_line(tmp_path: Path, content: str, match: str) -> None:
    with pytest.raises(DataError, match=match) as found:
        load_examples(section_of(tmp_path, "a.csv", content), TWO)
    assert found.value.remedy and "\n" not in found.value.one_line()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("1,5", r"a\.jsonl:1: '1,5' is not a number \(.*; decimals have a point, not a comma\)"),
        ("1_5", r"'1_5' is not a number \(regression needs a finite score in data\.label\)"),
        ("nan", "'nan' is not a number"),
        (True, "True is not a number"),
        (None, "there is no label"),
        (10**400, r"10{79}\.\.\. is not a number"),
        ([1], r"\[1\] is not a number"),
    ],
)
def test_a_score_is_a_number_as_people_write_one(tmp_path: Path, content: object, match: str) -> None:
    section = section_of(tmp_path, "a.jsonl", json.dumps({"text": "a", "label": content}) + "\n")
    with pytest.raises(DataError, match=match):
        load_examples(section, TaskSection(kind="regression"))


def test_a_table_of_commas_under_the_name_of_one_of_tabs_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.tsv:1: columns are separated by semicolons, not tabs \(set data\.format"):
        load_examples(section_of(tmp_path, "a.tsv", "text;label\na;good\n"), TWO)


def test_a_number_swallowed_is_found_too_and_texts_of_several_lines_are_not(tmp_path: Path) -> None:
    scores = TaskSection(kind="regression")
    with pytest.raises(DataError, match=r"a\.csv:3: .* rows of the next lines"):
        load_examples(section_of(tmp_path, "a.csv", 'text,label\na,1.5\n"b,2\nc,3\nd",4\n'), scores)
    poem = 'text,label\nplain,good\n"Roses, red\nviolets, blue\n",bad\n'
    assert [e.text for e in load_examples(section_of(tmp_path, "a.csv", poem), TWO)] == [
        "plain",
        "Roses, red\nviolets, blue\n",
    ]


def test_marks_of_a_tab_separated_table_are_characters_unless_all_of_them_are_quoting(tmp_path: Path) -> None:
    glue = 'text\tlabel\n"Go," he said.\tgood\n"quoted ""twice"" here"\tbad\n'
    assert [e.text for e in load_examples(section_of(tmp_path, "a.tsv", glue), TWO)] == [
        '"Go," he said.',
        '"quoted ""twice"" here"',
    ]
    saved = 'text\tlabel\nplain\tgood\n"quoted ""twice"" here"\tbad\n'
    with pytest.raises(DataError, match=r'a\.tsv:3: a text in quotation marks.*data\.format to "csv"'):
        load_examples(section_of(tmp_path, "a.tsv", saved), TWO)
    as_csv = load_examples(section_of(tmp_path, "a.tsv", saved, format="csv"), TWO)
    as_tsv = load_examples(section_of(tmp_path, "a.tsv", saved, format="tsv"), TWO)
    assert (as_csv[1].text, as_tsv[1].text) == ('quoted "twice" here', '"quoted ""twice"" here"')
    with pytest.raises(DataError, match=r'a\.tsv:1: .* in quotation marks \(set data\.format to "csv"'):
        load_examples(section_of(tmp_path, "a.tsv", '"text"\t"label"\n"a"\t"good"\n'), TWO)
    with pytest.raises(DataError, match=r'a\.tsv:2: 3 columns .* set data\.format to "csv"'):
        load_examples(section_of(tmp_path, "a.tsv", 'text\tlabel\n"a\tb"\tgood\n'), TWO)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_encodings_that_name_themselves_are_read(tmp_path: Path, encoding: str, name: str) -> None:
    content = {
        "a.csv": "text,label\ncafé 茶,good\n",
        "a.tsv": "text\tlabel\ncafé 茶\tgood\n",
        "a.jsonl": '{"text": "café 茶", "label": "good"}\n',
    }[name]
    assert load_examples(section_of(tmp_path, name, content.encode(encoding)), TWO)[0].text == "café 茶"


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.csv", "text,label\nfine,good\ncafé,good\n".encode("latin-1"), r"a\.csv:3: not UTF-8: byte 0xe9 .*iconv -f WINDOWS-1252"),
        ("a.csv", b"text,label\nx\x81\xff,good\n", r"a\.csv:2: not UTF-8: byte 0x81 \(write it anew as UTF-8\)"),
        ("a.csv", "text,label\nplain,good\n".encode("utf-16-le"), r"a\.csv:1: zero bytes, as UTF-16 .*iconv -f UTF-16LE"),
        ("a.csv", "text,label\ncafé,good\n".encode("utf-16-be"), r"a\.csv:1: zero bytes, as UTF-16 .*iconv -f UTF-16BE"),
        ("a.csv", "text,label\nplain,good\n".encode("utf-16")[:-1], r"a\.csv:2: not UTF-16: byte 0x0a \(write it anew as UTF-8\)"),
        ("a.csv", b"PK\x03\x04rest", r"a\.csv: a workbook, not text \(save its sheet as CSV"),
        ("a.csv", b"\x1f\x8b\x08", r"a\.csv: an archive, not text"),
        ("a.csv", b"PAR1", r'a\.csv: Parquet, not text \(set data\.format to "parquet"'),
        ("a.xlsx", b"x", r"a\.xlsx: a workbook, not text \(save its sheet as CSV \(UTF-8\)"),
        ("a.ods", b"x", "a workbook, not text"),
        ("a.csv.gz", b"x", "an archive, not text .unpack it"),
        ("a.json", b"[]", r"a\.json: JSON, of which one object a line is read .*jq"),
        ("a.txt", b"x", r"cannot tell the format from '\.txt' \(set data\.format to csv, tsv, jsonl or parquet"),
        ("a.jsonl", b'{"text": "a", "text": "b", "label": "good"}\n', r"a\.jsonl:1: not JSON: two values are named 'text'"),
        ("a.jsonl", b'[{"text": "a"},\n', r"a\.jsonl:1: not JSON.*and not a list: jq"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1: not JSON"),
        ("a.jsonl", b'{"text": "a\\ud800", "label": "good"}\n', r"a\.jsonl:1: text: half a character"),
        ("a.jsonl", b'{"text": "a", "label": null}\n', r"a\.jsonl:1: label: there is no label"),
        ("a.jsonl", b'{"text": null, "label": "good"}\n', r"a\.jsonl:1: column 'text' holds NoneType, not text"),
    ],
)  # fmt: skip
def test_files_that_are_no_such_text_are_refused_by_name(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    with pytest.raises(DataError, match=match):
        load_examples(section_of(tmp_path, name, content), TWO)


def test_a_folder_and_a_file_that_may_not_be_read_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="a folder, not a file"):
        load_examples(DataSection(source=str(tmp_path)), TWO)
    section = section_of(tmp_path, "a.csv", "text,label\na,good\n")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        load_examples(section, TWO)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("of_rows:fails", "OSError: no disk"),
        ("of_rows:breaks", r"it failed after 1 rows: KeyError: 'gone'"),
        ("of_rows:nothing", "TypeError"),
    ],
)
def test_whatever_a_function_raises_is_told(monkeypatch: pytest.MonkeyPatch, source: str, match: str) -> None:
    def fails() -> None:
        raise OSError("no disk")

    def breaks() -> Any:
        yield {"text": "a", "label": "good"}
        raise KeyError("gone")

    module = types.ModuleType("of_rows")
    module.__dict__.update(fails=fails, breaks=breaks, nothing=lambda: None)
    monkeypatch.setitem(sys.modules, "of_rows", module)
    with pytest.raises(DataError, match=match):
        load_examples(DataSection(source=source), TWO)


@pytest.mark.parametrize(
    ("content", "keys", "task", "match"),
    [
        ("text,label\nwhy?,because\n", {}, PLAIN, r"a\.csv:2: data\.label: causal-lm learns column 'text' alone, and 'label'.*instr"),
        ("text,more\nwhy?,because\n", {"text_pair": "more"}, PLAIN, r"a\.csv:2: data\.text_pair: .* 'more' would not be learned"),
        ("prompt,completion\nwhy?,because\n", {}, PLAIN, r'a\.csv:2: a conversation, which causal-lm does not learn .*"instr'),
        ("text,label\nwhy?,because\n", {}, TaskSection(kind="instruction"), r"data\.label: plain text learns column 'text' alone"),
    ],
)  # fmt: skip
def test_an_answer_that_would_not_be_learned_is_refused(
    tmp_path: Path, content: str, keys: dict[str, str], task: TaskSection, match: str
) -> None:
    section = section_of(tmp_path, "a.csv", content, **keys)
    with pytest.raises(DataError, match=match):
        load_examples(section, task)


def test_a_column_beside_plain_text_can_be_left_out_on_purpose(tmp_path: Path) -> None:
    section = section_of(tmp_path, "a.csv", "text,label\nwords,x\n", label="")
    assert [example.text for example in load_examples(section, PLAIN)] == ["words"]


def test_parquet_is_read_or_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = section_of(tmp_path, "a.parquet", b"PAR1")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(DataError, match=r"Parquet needs pyarrow.*pip install 'fedkrso\[parquet\]'"):
            load_examples(section, TWO)
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    with pytest.raises(DataError, match=r"a\.parquet: not Parquet"):
        load_examples(section, TWO)
    table = pyarrow.table({"text": ["one", "", "two\nlines"], "label": ["good", "bad", "bad"]})
    parquet.write_table(table, section.source)
    with pytest.raises(DataError, match=r"a\.parquet row 2: text: the text is empty"):
        load_examples(section, TWO)
    parquet.write_table(table.take([0, 2]), section.source)
    assert [(e.text, e.target) for e in load_examples(section, TWO)] == [("one", 0), ("two\nlines", 1)]


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)


def as_csv(rows: list[tuple[str, str]], delimiter: str, end: str, all_quoted: bool) -> str:
    """As spreadsheets write it. `csv.writer` quotes those line ends alone that it writes itself."""

    def field(text: str) -> str:
        needed = all_quoted or any(character in text for character in f'{delimiter}"\r\n')
        return f'"{text.replace(chr(34), chr(34) * 2)}"' if needed else text

    return "".join(delimiter.join(map(field, row)) + end for row in rows)


@given(
    rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6),
    delimiter=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    all_quoted=st.booleans(),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
@example([('5" pipe', "a,b"), ("two\nlines", '"')], ",", "\n", False, "utf-8")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
def test_whatever_a_spreadsheet_writes_is_read_back(
    tmp_path: Path, rows: list[tuple[str, str]], delimiter: str, end: str, all_quoted: bool, encoding: str
) -> None:
    """No row is changed and none disappears. Refused is only what could be a row that a mark has swallowed."""
    content = as_csv([("text", "label"), *rows], delimiter, end, all_quoted)
    (tmp_path / "a.csv").write_bytes(content.encode(encoding))
    found = list(read_rows(DataSection(source=str(tmp_path / "a.csv"))))
    assert len(found) == len(rows)
    for (_, row), (text, label) in zip(found, rows, strict=True):
        assert isinstance(row, DataError) or dict(row) == {"text": text, "label": label}
        assert not isinstance(row, DataError) or "\n" in text or "\r" in text


@given(st.text('ab,"\n ', max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
def test_every_character_of_any_table_is_in_a_row_or_in_an_error(tmp_path: Path, body: str) -> None:
    """Rows and errors begin on lines of their own, in order, and every line that has anything is in one of them."""
    (tmp_path / "a.csv").write_text("text,label\n" + body, newline="")
    found = list(read_rows(DataSection(source=str(tmp_path / "a.csv"))))
    places = [int(place.rpartition(":")[2]) for place, _ in found]
    assert places == sorted(set(places))
    letters = sum(character in "ab" for character in body)
    kept = sum(
        text.count("a") + text.count("b") for _, row in found if not isinstance(row, DataError) for text in row.values()
    )
    if not any(isinstance(row, DataError) for _, row in found):
        assert kept == letters
