# SPDX-License-Identifier: Apache-2.0
"""A user's own data, right and wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_client.worker.data.reading import load_examples, load_texts
from fedcore.config.sections import DataSection, TaskSection
from fedcore.errors import DataError

TWO = TaskSection(kind="text-classification", labels=("0", "1"))


def write(tmp_path: Path, name: str, text: str) -> str:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_texts_are_spread_over_the_source_and_their_labels_do_not_matter(tmp_path: Path) -> None:
    source = write(
        tmp_path, "a.tsv", "\n".join(["text\tpair\tlabel", *(f"t{i}\tp{i}\tnonsense" for i in range(10))]) + "\n"
    )
    found = load_texts(DataSection(source=source), 4, TWO)
    assert [(example.text, example.text_pair, example.target) for example in found] == [
        (f"t{i}", None, None) for i in (0, 2, 5, 7)
    ]
    pairs = load_texts(DataSection(source=source, text_pair="pair", label=None), 99, TWO)
    assert [(example.text, example.text_pair) for example in pairs] == [(f"t{i}", f"p{i}") for i in range(10)]
    with pytest.raises(DataError, match="no column 'sentence'"):
        load_texts(DataSection(source=source, text="sentence"), 4, TWO)


def test_csv_tsv_and_jsonl_agree(tmp_path: Path) -> None:
    csv = write(tmp_path, "a.csv", '\ufefftext,label\r\n"hello, ""you""",1\r\n')
    tsv = write(tmp_path, "a.tsv", 'label\ttext\n1\thello, "you"\n')
    jsonl = write(tmp_path, "a.jsonl", '{"text": "hello, \\"you\\"", "label": 1}\n\n')
    found = [load_examples(DataSection(source=source), TWO) for source in (csv, tsv, jsonl)]
    assert found[0] == found[1] == found[2] and found[0][0].target == 1


@pytest.mark.parametrize(
    ("text", "section", "task", "match"),
    [
        (
            "txt\tlabel\nx\t1\n",
            {},
            TWO,
            r"a\.tsv:2: data\.text: no column 'text' \(did you mean 'txt'\? columns: txt, label\)",
        ),
        ("text\tlabel\nx\tmaybe\n", {}, TWO, r"a\.tsv:2: label 'maybe' is not in task\.labels \(labels: 0, 1\)"),
        ("text\tlabel\nx\n", {}, TWO, r"a\.tsv:2: 1 columns where the header has 2"),
        ("", {}, TWO, "the file is empty"),
        ("text\tlabel\n", {}, TWO, "there are no rows"),
        ("text\tlabel\nx\thigh\n", {}, TaskSection(kind="regression"), "'high' is not a number"),
        (
            "text\tlabel\nx\t1\n",
            {},
            TaskSection(kind="pair-classification", labels=("0", "1")),
            "needs a second column",
        ),
        ("text\nx\n", {"label": None}, TWO, "needs a label column"),
    ],
)
def test_wrong_tables_name_place_and_remedy(
    tmp_path: Path, text: str, section: dict, task: TaskSection, match: str
) -> None:
    with pytest.raises(DataError, match=match):
        load_examples(DataSection(source=write(tmp_path, "a.tsv", text), **section), task)


def test_other_wrong_sources_are_one_line(tmp_path: Path) -> None:
    latin = tmp_path / "l.csv"
    latin.write_bytes("text,label\ncafé,1\n".encode("latin-1"))
    cases = {
        str(tmp_path / "no.csv"): "no such file",
        str(latin): "not UTF-8",
        write(tmp_path, "a.xml", "x"): "cannot tell the format",
        write(tmp_path, "b.jsonl", "{"): r"b\.jsonl:1: not JSON",
        write(tmp_path, "c.jsonl", "[1]"): "not a JSON object",
        "no_such_module:f": "cannot import",
        "examples.voice_intents.data:hom": "did you mean 'home'",
    }
    for source, match in cases.items():
        with pytest.raises(DataError, match=match) as found:
            load_examples(DataSection(source=source), TWO)
        assert "\n" not in found.value.one_line()


@pytest.mark.parametrize(
    ("file", "task", "columns", "rows"),
    [
        ("SST-2/dev.tsv", TWO, {"text": "sentence"}, 872),
        ("CoLA/dev.tsv", TWO, {"text": "sentence"}, 1043),
        (
            "MRPC/dev.tsv",
            TaskSection(kind="pair-classification", labels=("0", "1")),
            {"text": "#1 String", "text_pair": "#2 String", "label": "Quality"},
            408,
        ),
        (
            "RTE/dev.tsv",
            TaskSection(kind="pair-classification", labels=("entailment", "not_entailment")),
            {"text": "sentence1", "text_pair": "sentence2"},
            277,
        ),
        (
            "STS-B/dev.tsv",
            TaskSection(kind="regression"),
            {"text": "sentence1", "text_pair": "sentence2", "label": "score"},
            1500,
        ),
    ],
)
def test_real_glue_tables_are_read_whole(
    shared_folder: Path, file: str, task: TaskSection, columns: dict, rows: int
) -> None:
    examples = load_examples(DataSection(source=str(shared_folder / "data" / file), **columns), task)
    assert len(examples) == rows and all(example.text for example in examples)
