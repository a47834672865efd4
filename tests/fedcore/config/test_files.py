# SPDX-License-Identifier: Apache-2.0
"""Job and node files as editors save them and people write them: read as meant, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.job import Job
from edge_client.node import Node
from fedcore.config.reading import load_config
from fedcore.errors import ConfigError

BROKER = '[broker]\nurl = "mqtts://h"\n'
JOB = f'run = "r"\n[model]\nfolder = "m"\n[task]\nkind = "causal-lm"\n{BROKER}'
NODE = f'node = "n"\nrun = "r"\nmodel_folder = "m"\n[data]\nsource = "x.csv"\n{BROKER}'


def refused(folder: Path, content: str | bytes, kind: type = Job) -> str:
    path = folder / "f.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as found:
        load_config(path, kind)
    return found.value.one_line().removeprefix(f"{path}: ")


@pytest.mark.parametrize("content", [JOB, f"\ufeff{JOB}", JOB.replace("\n", "\r\n")], ids=["plain", "mark", "crlf"])
def test_a_file_is_read_whatever_editor_saved_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "f.toml").write_bytes(content.encode())
    assert load_config(tmp_path / "f.toml", Job).run == "r"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (JOB.encode("utf-16"), "not UTF-8: byte 0xff in line 1 (save it as UTF-8)"),
        (f"# job\n# für mich\n{JOB}".encode("latin-1"), "not UTF-8: byte 0xfc in line 2 (save it as UTF-8)"),
        (f'{JOB}[method]\nname = "fedkrso"\nbits = 5\n', "method.bits: invalid value 5 (one of 4, 8, 16)"),
        (JOB.replace('"m"', '"m"\nbase = "int4"'), "model.base: invalid value 'int4' (one of int8, float32,"),
        (JOB.replace("s://h", "s://h "), "broker.url: 'mqtts://h ' is not an MQTT address"),
        (JOB.replace("mqtts://h", " mqtts://h"), "broker.url: ' mqtts://h' is not an MQTT address"),
        (JOB.replace("s://h", "s://h?x=1"), "broker.url: 'mqtts://h?x=1' is not an MQTT address"),
        (JOB.replace("s://h", "s://h#x"), "broker.url: 'mqtts://h#x' is not an MQTT address"),
        (f'{JOB}[evaluation]\nsource = "x.csv"\ntext_pair = "text"\n', "evaluation.text_pair: text and text_pair are both"),
    ],
)  # fmt: skip
def test_what_a_job_cannot_mean_is_refused_with_the_remedy(tmp_path: Path, content: str | bytes, words: str) -> None:
    assert refused(tmp_path, content).startswith(words)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ('text = "label"', "data.label: text and label are both column 'label' (name another, or write label"),
        ('label = "text"', "data.label: text and label are both column 'text'"),
        ('text_pair = "label"', "data.label: text_pair and label are both column 'label'"),
        ('held_out = "x.csv"', "data.held_out: the rows that are held out are those that are trained on"),
        ('format = "excel"', "data.format: invalid value 'excel' (one of auto, csv, tsv, jsonl, parquet)"),
    ],
)
def test_what_a_node_cannot_mean_is_refused_with_the_remedy(tmp_path: Path, keys: str, words: str) -> None:
    assert refused(tmp_path, NODE.replace('"x.csv"', f'"x.csv"\n{keys}'), Node).startswith(words)


def test_columns_that_are_left_out_are_no_columns(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text(NODE.replace('"x.csv"', '"x.csv"\ntext_pair = ""\nlabel = ""'))
    assert load_config(tmp_path / "f.toml", Node).data.label == ""
