# SPDX-License-Identifier: Apache-2.0
"""What every method makes of every rule: it takes it, or a job that asks for it is refused by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from method_runs import CASES, Case, name_of, settings_of
from plans import make_plan

from coordinator.job import Job
from coordinator.reports.objects import job_words
from fedcore.config.reading import load_config
from fedcore.config.sections import TaskSection
from fedcore.errors import ConfigError
from fedcore.methods import server_half
from fedcore.methods.combining import require_combining
from fedcore.methods.interface import MethodSettings
from fedcore.model.state import ExactState
from fedcore.model.update import WeightedUpdate, write_update
from fedcore.numbers.choosing import Krum
from fedcore.numbers.codecs import encoded
from fedcore.numbers.records import Record
from fedcore.numbers.rules import MEAN, Median, rule_of
from fedcore.registry import RULES
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import ArtefactObject
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec
from fedcore.wire.files import manifest_of

SCHEMA = ModelSchema((LayerSpec("0.o_proj", 12, 16),), (TensorSpec("head", (3, 4), False),))
REFUSED = (
    *("fed3r", "flora", "fedex-lora", "fedkseed", "fedkseed-pro", "ferret", "fedavg-top-k", "fedcybgd"),
    *("fedpeptao", "fedpeptao-1.0", "fedbpt-12-4", "fedkrso-rows-fresh-uniform", "split-1-1400"),
)
JOB = """
run = "r"
[model]
folder = "m"
[task]
kind = "regression"
[method]
{method}
[round]
quorum = {quorum}
min_nodes = 9
[safety]
{safety}
[broker]
url = "mqtts://host"
"""


def job(folder: Path, method: str = 'name = "fedkrso"', safety: str = 'rule = "median"', quorum: int = 3) -> Job:
    path = folder / "job.toml"
    path.write_text(JOB.format(method=method, safety=safety, quorum=quorum))
    return load_config(path, Job)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_method_takes_every_rule_or_says_why_not(case: Case, tmp_path: Path) -> None:
    settings = settings_of(case)
    if name_of(case) in REFUSED:
        for name in ("median", "trimmed-mean", "krum", "geometric-median"):
            with pytest.raises(ConfigError, match=f"'{name}' means nothing for {settings.name}: ") as refused:
                require_combining(settings, rule_of(name, 0.2), name, 3)
            assert refused.value.place == "safety.rule" and len(refused.value.one_line()) < 240
        require_combining(settings, MEAN, "mean", 1)
        return
    training = server_half(settings).training(1, 5)
    artefact = None
    if training.artefact_kind is not None:
        (tmp_path / "artefact").write_bytes(b"rows")
        artefact = ArtefactObject(manifest_of(tmp_path / "artefact", 1024))
    half = server_half(settings, "" if artefact is None else artefact.manifest.sha256)
    training = half.training(1, 5)
    plan = make_plan(
        cohort=(),
        task=TaskSection(kind="regression"),
        model_schema=SCHEMA,
        checksums=("",) * (len(SCHEMA.layers) if training.seeds else 0),
        training=training,
        artefact=artefact,
    )
    updates, numbers = [], []
    for number, node in enumerate("abcde"):
        header = UpdateHeader(
            run="r",
            round=1,
            node=node,
            version=0,
            examples=10,
            rank=training.rank,
            subspaces=tuple(range(len(training.seeds))),
            loss=1.0,
            seconds=1.0,
        )
        chance, records, parts = np.random.default_rng(number), [], {}
        for name, want in training.expected(SCHEMA, header).items():
            change = np.abs(chance.normal(size=want.shape) * (0.01 if node != "e" else 5)).astype(np.float32)
            parts[name] = encoded(change, want.coding, name)
            records.append(Record(name, parts[name], want.coding.bits, kind=want.coding.kind))
        write_update(tmp_path / node, header, records)
        updates.append(WeightedUpdate(tmp_path / node, header, 10))
        numbers.append({name: part.units(slice(None)) for name, part in parts.items()})
    zero = ExactState.zero(training, SCHEMA)
    mean = half.aggregate(zero, plan, updates)
    for rule in RULES.names():
        require_combining(settings, rule_of(rule, 0.2), rule, 5)
    chosen = half.aggregate(zero, plan, updates, Krum())
    assert any(all(np.array_equal(chosen.sums[name], one[name]) for name in one) for one in numbers[:4])
    median = half.aggregate(zero, plan, updates, Median())
    for name in numbers[0]:
        honest = np.stack([one[name] for one in numbers[:4]])
        assert np.array_equal(median.sums[name], np.median(np.stack([one[name] for one in numbers]), axis=0)), name
        assert (median.sums[name] <= honest.max(axis=0)).all() and (mean.sums[name] > honest.max(axis=0)).any()


class Silent(MethodSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="silent"):
    """Of a package from outside that knows of no rules."""


def test_a_method_from_outside_that_says_nothing_keeps_to_the_mean() -> None:
    with pytest.raises(ConfigError, match="'median' means nothing for silent: it does not say that its updates"):
        require_combining(Silent(), Median(), "median", 3)
    require_combining(Silent(), MEAN, "mean", 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"safety": 'rule = "medain"'}, "safety.rule: no rule 'medain' (did you mean 'median'?)"),
        ({"safety": 'rule = "median"\ntrim = 0.5'}, "safety.trim: trim is 0.5, it must be above 0 and below 0.5"),
        ({"safety": "trim = nan"}, "safety.trim: nan is not a number"),
        ({"safety": 'rule = "krum"\nliars = 0'}, "safety.liars: liars is 0, it must be 1 to 1000"),
        ({"safety": "bucket = 2"}, "safety.bucket: the mean of buckets is the mean (leave it out, or choose"),
        (
            {"safety": 'rule = "multi-krum"\nliars = 2', "quorum": 3},
            "round.quorum: 'multi-krum' of 3 updates with liars = 2 cannot tell which of them lies (set it and round.min_nodes",
        ),
        (
            {"quorum": 2},
            "round.quorum: 'median' of 2 updates cannot tell which of them lies (set it and round.min_nodes to 3 or",
        ),
        (
            {"method": 'name = "flora"', "safety": 'rule = "trimmed-mean"'},
            "safety.rule: 'trimmed-mean' means nothing for flora: it stacks each participant's factors, whole (use",
        ),
        ({"method": 'name = "fedkseed"'}, "'median' means nothing for fedkseed: each participant moves along a few"),
        ({"method": 'name = "ferret"'}, "'median' means nothing for ferret: with allocation = \"norm\" each"),
        ({"method": 'name = "fedavg"\ncodec = "top-k"'}, "'median' means nothing for fedavg: codec = \"top-k\" sends"),
        ({"method": 'name = "fedkrso"\norder = "uniform"'}, 'means nothing for fedkrso: with order = "uniform" each'),
    ],
)
def test_a_job_whose_rule_means_nothing_is_one_line(tmp_path: Path, changes: dict, words: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ConfigError) as refused:
        job(tmp_path, **changes)
    assert words in refused.value.one_line()


def test_a_job_has_the_mean_unless_it_says_another(tmp_path: Path) -> None:
    assert job(tmp_path, safety="", quorum=1).safety.combining() == rule_of("mean", 0.2)
    assert job(tmp_path).safety.combining() == Median(rule_of("median", 0.2).trim)
    trimmed = job(tmp_path, safety='rule = "trimmed-mean"\ntrim = 0.1').safety.combining()
    assert trimmed.tolerates(30) == 3
    krum = job(tmp_path, safety='rule = "krum"\nliars = 2\nbucket = 1', quorum=7).safety.combining()
    assert krum == Krum(rule_of("krum", 0.2).trim, 2, 1)
    assert job(tmp_path, method='name = "ferret"\nallocation = "equal"').safety.rule == "median"


def test_a_report_says_which_rule_a_run_had(tmp_path: Path) -> None:
    def said(safety: str, quorum: int = 3) -> str:
        record: Any = SimpleNamespace(job=job(tmp_path, safety=safety, quorum=quorum))
        return job_words(record)["safety"]

    assert said('rule = "median"\nbucket = 2', 7) == "no norm bound, median of buckets of 2 updates that weigh the same"
    assert said('rule = "median"') == "no norm bound, median of updates that weigh the same"
    assert said("norm_bound = 2.0") == "norm bound 2 (clip), weight at most 3 to 10 times the median"
    assert said("max_share_ratio = 0.0") == "no norm bound"
