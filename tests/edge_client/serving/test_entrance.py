# SPDX-License-Identifier: Apache-2.0
"""Who gets in, labels from a classifier, and the page's commands as they are typed."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from edge_client.owner.serving import ServeSection, training_bytes
from edge_client.serving.server import open_socket
from fedcore.errors import BudgetError, ConfigError
from tests.causal_models import byte_tokenizer
from tests.edge_client.serving.served import Served, chat, served
from tests.edge_client.serving.tiny_chat import write_tiny_chat
from tests.house import ROOT
from tests.patience import until

TOKEN = "a-token-of-some-length"
KNOWN = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(1)
    tokenizer = byte_tokenizer()
    config = BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        pad_token_id=tokenizer.pad_token_id,
        id2label={0: "left", 1: "right"},
        label2id={"left": 0, "right": 1},
    )
    BertForSequenceClassification(config).save_pretrained(folder / "sides")
    tokenizer.model_max_length = 32
    tokenizer.save_pretrained(folder / "sides")
    tokens = folder / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    tokens.chmod(0o600)
    with served(folder, "--model", folder / "sides", "--token-file", tokens) as server:
        yield server


def test_a_classifier_says_labels_with_their_probabilities(classifier: Served) -> None:
    texts = ["to the left", "to the right", "x" * 100]
    answer = classifier.post("/v1/classify", {"input": texts}, KNOWN)
    assert answer.status == 200, answer.body
    results = answer.json["results"]
    for index, result in enumerate(results):
        assert result["index"] == index and set(result["probabilities"]) == {"left", "right"}
        assert sum(result["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert result["probability"] == max(result["probabilities"].values())
        assert result["probabilities"][result["label"]] == result["probability"]
    assert [result["truncated"] for result in results] == [False, False, True]
    # One at a time or together, padding changes nothing.
    alone = classifier.post("/v1/classify", {"input": texts[0]}, KNOWN).json["results"][0]
    assert alone["probability"] == pytest.approx(results[0]["probability"], abs=1e-5)
    refused = classifier.post("/v1/chat/completions", chat(), KNOWN)
    assert refused.status == 400 and "/v1/classify" in refused.json["error"]["message"]


def test_without_the_token_nothing_is_told(classifier: Served) -> None:
    for path in ("/v1/models", "/v1/classify", "/elsewhere"):
        answer = classifier.get(path)
        assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert "wrong token" not in classifier.said
    assert classifier.get("/health").json == {"status": "ok"}
    assert classifier.get("/health", KNOWN).json["model"] == "sides"


def test_an_address_that_guesses_has_to_wait_and_is_told_once(classifier: Served) -> None:
    wrong = {"Authorization": f"Bearer {TOKEN}x"}
    answers = [classifier.get("/v1/models", wrong) for _ in range(12)]
    refused = [answer for answer in answers if answer.status == 429]
    assert {answer.status for answer in answers} == {401, 429} and refused[-1] is answers[-1]
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
    # Not even the right one tells whether a guess was near.
    assert classifier.get("/v1/models", {"Authorization": f"Bearer {TOKEN}"}).status == 429
    assert classifier.said.count("wrong tokens from 127.0.0.1") == 1
    until(lambda: classifier.get("/v1/models", {"Authorization": f"Bearer {TOKEN}"}).status == 200)


def test_an_address_that_others_reach_needs_tokens() -> None:
    with pytest.raises(ConfigError, match="others can reach this address"):
        open_socket(ServeSection(host="0.0.0.0", port=0))
    sock, tokens = open_socket(ServeSection(port=0))
    with sock:
        assert not tokens
        with pytest.raises(ConfigError, match="cannot listen"):
            open_socket(ServeSection(port=sock.getsockname()[1]))


def test_a_share_is_named_with_go_on_and_leaves_something() -> None:
    for section in ({"while_training": "go_on"}, {"memory_budget": "1 GiB"}):
        with pytest.raises(ConfigError, match="belong together"):
            ServeSection(**section)  # type: ignore[arg-type]
    share = ServeSection(while_training="go_on", memory_budget="1 GiB")
    assert training_bytes(3 * 2**30, share) == 2 * 2**30
    assert training_bytes(3 * 2**30, ServeSection()) == 3 * 2**30
    with pytest.raises(BudgetError, match="nothing is left to train with"):
        training_bytes(2**30, share)


def test_the_pages_commands_work(tmp_path: Path, classifier: Served) -> None:
    page = (ROOT / "docs" / "serve.md").read_text()
    commands = [
        line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in re.split(r"\n(?=curl)", block)
    ]
    assert len(commands) == 6
    with served(tmp_path, "--model", write_tiny_chat(tmp_path / "tiny")) as server:
        for command in commands:
            there = classifier if "classify" in command else server
            url = f"http://127.0.0.1:{there.port}"
            asked = command.replace("curl ", f"curl -H 'Authorization: Bearer {TOKEN}' ")
            done = subprocess.run(
                ["sh", "-c", asked], env={"URL": url, "PATH": "/usr/bin:/bin"}, stdout=subprocess.PIPE
            )
            assert done.returncode == 0 and b'"error"' not in done.stdout, (command, done.stdout)
            if "json_schema" in command:
                said = json.loads(json.loads(done.stdout)["choices"][0]["message"]["content"])
                assert list(said) == ["name", "brightness"]
