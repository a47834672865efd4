# SPDX-License-Identifier: Apache-2.0
"""What a command line means: methods with options, presets, the grid of learning rates and what was found on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from fedcore.config.adapters import PromptTuning
from fedcore.errors import ConfigError
from fedcore.methods import settings_by_name
from research.command import paper
from research.data.splits import parse_split
from research.data.tasks import task_by_name
from research.planning import Request, planned, planned_tuning
from research.runner import prepare
from research.runs.methods import Usual, parse_methods, settings_of
from research.runs.presets import PRESETS
from research.runs.rates import Rate, Rates, chosen
from research.runs.rows import Setup
from tests.research.paper_runs import row


def request(methods: str = "fedkrso,fedavg", preset: str = "small", task: str = "sst2", **others: Any) -> Request:
    given: dict[str, Any] = {"seeds": (0, 1), "split": parse_split("dirichlet:0.5"), **others}
    return Request(tasks=[task_by_name(task)], methods=parse_methods(methods), preset=PRESETS[preset], **given)


def test_the_label_is_the_text_and_options_are_the_methods_own() -> None:
    named = parse_methods("fedkrso[schedule=fresh, rank=4],fedavg, fedit[learning_rate=3e-3,bits=16,base=float32]")
    assert [one.label for one in named] == [
        "fedkrso[schedule=fresh,rank=4]",
        "fedavg",
        "fedit[learning_rate=3e-3,bits=16,base=float32]",
    ]
    found: list[Any] = [settings_of(one, {"rank": 16, "steps": 100}) for one in named]
    assert (found[0].schedule, found[0].rank, found[0].steps) == ("fresh", 4, 100)
    assert not hasattr(found[1], "rank") and found[1].steps == 100
    assert (found[2].learning_rate, found[2].bits, found[2].rank, named[2].base) == (3e-3, 16, 16, "float32")
    (nested,) = parse_methods("fedavg-peft[peft.type=prompt,peft.num_virtual_tokens=8]")
    tokens: Any = settings_of(nested, {"rank": 16})
    assert tokens.peft == PromptTuning(num_virtual_tokens=8)


@pytest.mark.parametrize("kind", list(settings_by_name().values()), ids=lambda kind: kind.__struct_config__.tag)
def test_every_method_of_the_house_can_be_run(kind: type) -> None:
    name = str(kind.__struct_config__.tag)  # type: ignore[attr-defined]
    for preset in PRESETS:
        (setup,) = planned(request(name, preset, seeds=(0,)), Rates(Path("nowhere")))
        assert type(setup.method) is kind and setup.label == name
        # What its process reads is what was planned.
        assert msgspec.json.decode(msgspec.json.encode(setup), type=Setup) == setup


def test_a_head_from_sums_is_an_option_of_every_method() -> None:
    setups = planned(request("fedavg,fedavg[head=ridge]", "small", seeds=(0,)), Rates(Path("nowhere")))
    assert [setup.head for setup in setups] == ["random", "ridge"] and setups[0].method == setups[1].method
    setups = planned(request("fedavg,fedavg[pooling=mean]", "small", seeds=(0,)), Rates(Path("nowhere")))
    assert [setup.pooling for setup in setups] == ["model", "mean"] and setups[0].method == setups[1].method


def test_heads_again_come_beside_a_run_s_rounds_and_a_search_s() -> None:
    asked = request("fedkrso[head=ridge,again=4],fedkrso[head=random,again=4]", "learn", seeds=(0,))
    heads, random = planned(asked, Rates(Path("nowhere")))
    # Twelve of the method, and a head before them and after each four.
    assert (heads.again, heads.rounds) == (4, 16) and (random.again, random.rounds) == (0, 13)
    assert {(one.again, one.rounds) for one in planned_tuning(asked, Rates(Path("nowhere")), (1.0,))} == {
        (2, 4),
        (0, 3),
    }
    with pytest.raises(ConfigError, match=r"heads after 5 of 12 rounds each do not end it"):
        planned(request("fedkrso[head=ridge,again=5]", "learn"), Rates(Path("nowhere")))


def test_what_holds_for_all_methods_is_said_once_and_brackets_say_otherwise() -> None:
    usual = Usual(head="ridge", pooling="mean", head_rate=2.0, trained=("pooler.*",))
    labels = "fedkrso,fedavg[head=random,trained=*,head_rate=0.5],fedsa-lora,fed3r,fedit[tensor_learning_rate=0.1]"
    asked = replace(request(seeds=(0,)), methods=parse_methods(labels, usual))
    found = {setup.label.partition("[")[0]: setup for setup in planned(asked, Rates(Path("nowhere")))}
    # A method without a shared head has none from sums, and one that is a head needs none before it.
    assert {name: setup.head for name, setup in found.items()} == {
        "fedkrso": "ridge",
        "fedavg": "random",
        "fedsa-lora": "random",
        "fed3r": "random",
        "fedit": "ridge",
    }
    assert {setup.pooling for setup in found.values()} == {"mean"}
    assert found["fedkrso"].trained_tensors == ("pooler.*",) and found["fedavg"].trained_tensors == ("*",)
    rates = {name: setup.method.tensor_learning_rate for name, setup in found.items()}
    assert (rates["fedkrso"], rates["fedavg"], rates["fedit"]) == (2e-3, 5e-4, 0.1)
    # A search moves both rates.
    tried = planned_tuning(replace(asked, methods=asked.methods[:1]), Rates(Path("nowhere")), (0.3, 3.0))
    assert [setup.method.tensor_learning_rate for setup in tried] == [6e-4, 6e-3]
    # An adapter's default is its own.
    prompts = settings_of(parse_methods("fedavg-peft[peft.type=prompt]", replace(usual, head_rate=0.01))[0], {})
    assert (prompts.learning_rate, prompts.tensor_learning_rate) == (1e-1, 1e-3)


def test_rates_come_from_another_split_and_then_from_another_task(tmp_path: Path) -> None:
    rates = Rates(tmp_path)
    asked = replace(
        request("fedkrso,fedavg", seeds=(0,), split=parse_split("dirichlet:0.1")),
        rates_split=parse_split("dirichlet:0.5"),
        rates_of="mrpc",
    )

    def of(task: str, split: str, rate: float) -> Rate:
        return Rate(task=task, split=split, label="fedkrso", learning_rate=rate, tried=())

    for rate, own in (
        (0.3, ("mrpc", "dirichlet:0.5")),
        (0.2, ("sst2", "dirichlet:0.5")),
        (0.1, ("sst2", "dirichlet:0.1")),
    ):
        rates.add([of(*own, rate)])
        assert [setup.method.learning_rate for setup in planned(asked, rates)] == [rate, 1e-3]


@pytest.mark.parametrize(
    ("text", "said", "remedy"),
    [
        ("fedkrsp", "no method 'fedkrsp'", "did you mean 'fedkrso'?"),
        ("", "'' is not a method", "fedkrso[rank=4"),
        ("fedavg,,fedit", "'' is not a method", ""),
        ("fedkrso[rank=4", "'fedkrso[rank=4' is not a method", ""),
        ("fedkrso[rank]", "'rank' is not an option", "option=value"),
        ("fedkrso[rank=]", "'rank=' is not an option", "option=value"),
        ("fedkrso[rank=4,rank=8]", "rank is there twice", ""),
        ("fedavg,fedavg", "fedavg is there twice", ""),
        ("fedkrso[rnak=4]", "fedkrso has no option 'rnak'", "did you mean 'rank'?"),
        ("fedavg[rank=4]", "fedavg has no option 'rank'", "options: interval_steps"),
        ("fedkrso[rank=four]", "Expected int, got str", ""),
        ("fedkrso[rank=0]", "rank is 0, it must be positive", ""),
        ("fedkrso[schedule=weekly]", "Invalid enum value 'weekly'", ""),
        ("fedkrso[learning_rate=nan]", "Expected float, got str", ""),
        ("fedkrso[interval_steps=7]", "20 steps are not a whole number of intervals of 7", "use 14"),
        ("fedkrso[base=int4]", "'int4' is not a base", "int8, float32"),
        ("fedkrso[head_rate=0]", "head_rate 0 is no factor above 0", "head_rate=2"),
        ("fedkrso[average=0]", "average 0 is no number of rounds", "average=4"),
        ("fedkrso[head=flat]", "'flat' is no start of a head", "random or ridge"),
        ("fedkrso[pooling=cls]", "'cls' is no pooling", "one of auto, model, first, mean, last, max"),
    ],
)
def test_wrong_methods_are_refused_in_one_line(text: str, said: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as refused:
        planned(request(text), Rates(Path("nowhere")))
    assert said in refused.value.message and remedy in refused.value.remedy
    assert refused.value.place.startswith("--methods") and "\n" not in refused.value.one_line()


def test_the_papers_preset_is_the_papers() -> None:
    setups = planned(request("fedkrso,fedit,fedavg", "paper"), Rates(Path("nowhere")))
    method: Any = setups[0].method
    assert (setups[0].clients, setups[0].rounds, setups[0].max_length, setups[0].most_train) == (10, 30, 128, 0)
    assert (method.num_seeds, method.rank, method.interval_steps, method.steps, method.batch_size) == (
        10,
        4,
        10,
        100,
        32,
    )
    other: Any = setups[1].method
    assert (other.rank, other.alpha, other.steps, other.batch_size) == (4, 8.0, 100, 32)


def test_the_command_offers_every_preset() -> None:
    (option,) = (one for one in paper.params if one.name == "preset")
    assert isinstance(option.type, click.Choice) and list(option.type.choices) == list(PRESETS)


@pytest.mark.parametrize("name", list(PRESETS))
def test_rates_fall_as_asked(name: str) -> None:
    preset = PRESETS[name].changed(learning_rate_decay=0.95)
    asked = replace(request("fedkrso,fedavg,fedkseed,fedkseed-pro", seeds=(0,)), preset=preset)
    setups = planned(asked, Rates(Path("nowhere")))
    assert [setup.method.learning_rate_decay for setup in setups] == [0.95] * 4


def test_all_methods_of_a_seed_come_before_the_next_seed() -> None:
    setups = planned(request(dropouts=(0.0, 0.3), changes={"rounds": 3}), Rates(Path("nowhere")))
    assert [(one.seed, one.dropout, one.label) for one in setups[:5]] == [
        (0, 0.0, "fedkrso"),
        (0, 0.0, "fedavg"),
        (0, 0.3, "fedkrso"),
        (0, 0.3, "fedavg"),
        (1, 0.0, "fedkrso"),
    ]
    assert len(setups) == 8 and {one.rounds for one in setups} == {3}
    assert len({one.place for one in setups}) == len({one.name for one in setups}) == 8


@pytest.mark.parametrize(
    "changes", [{"dropouts": (1.0,)}, {"dropouts": (-0.1,)}, {"dropouts": (float("nan"),)}, {"seeds": (-1,)}]
)
def test_values_outside_their_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        planned(request(**changes), Rates(Path("nowhere")))
    assert "\n" not in refused.value.one_line()


def test_the_grid_is_the_same_for_every_method_around_its_default() -> None:
    setups = planned_tuning(
        request("fedkrso,fedavg[learning_rate=1e-4],fedit"), Rates(Path("nowhere")), (0.1, 1.0, 3.0)
    )
    assert [one.label for one in setups] == ["fedkrso"] * 3 + ["fedit"] * 3
    assert [one.method.learning_rate for one in setups[:3]] == [1e-4, 1e-3, 3e-3]
    assert all(one.tune and one.rounds == PRESETS["small"].tune_rounds and one.dropout == 0 for one in setups)
    # Not the seeds that are reported.
    assert {one.seed for one in setups} & {0, 1, 2, 3} == set()
    assert len({one.place for one in setups}) == 6 and all(one.place.startswith("tuning/") for one in setups)


def test_the_best_rate_is_kept_and_used_also_by_the_methods_variants(tmp_path: Path) -> None:
    setups = planned_tuning(request("fedkrso,fedit,fedavg"), Rates(tmp_path), (0.1, 1.0, 3.0))
    metrics = {"fedkrso": (0.7, 0.8, 0.8), "fedit": (0.6, None, 0.9), "fedavg": (None, None, None)}
    runs = []
    for index, setup in enumerate(setups):
        held = metrics[setup.label][index % 3]
        rows = [
            row(setup, number, held if held is not None else 0.5)
            for number in range(1, setup.rounds + (held is not None))
        ]
        runs.append((setup, rows))
    rates = Rates(tmp_path)
    rates.add(chosen(runs))
    again = Rates(tmp_path)
    assert {rate.label: (rate.learning_rate, rate.at_edge) for rate in again.all} == {
        "fedkrso": (1e-3, False),
        "fedit": (3e-3, True),
    }
    assert [one.metric for one in again.all[1].tried] == [0.6, None, 0.9]
    found = planned(request("fedkrso,fedkrso[rank=4],fedit,fedavg,fedit[learning_rate=5e-4]", seeds=(0,)), again)
    assert [one.method.learning_rate for one in found] == [1e-3, 1e-3, 3e-3, 1e-3, 5e-4]
    # Another task was not tuned, and takes its rates from this one only if that is said.
    for rates_of, expected in ((None, 1e-3), ("sst2", 3e-3)):
        (other,) = planned(request("fedit", seeds=(0,), task="rte", rates_of=rates_of), again)
        assert other.method.learning_rate == expected
    # Another split was not tuned, and what is there is not tuned again.
    (other,) = planned(request("fedit", seeds=(0,), split=parse_split("iid")), again)
    assert other.method.learning_rate == 1e-3
    assert [one.label for one in planned_tuning(request("fedkrso,fedavg,fedit"), again, (1.0,))] == ["fedavg"]


def test_of_perplexities_the_lowest_is_best() -> None:
    setups = planned_tuning(request("fedkrso", task="shakespeare"), Rates(Path("nowhere")), (0.1, 1.0))
    runs = [
        (setup, [row(setup, number, held) for number in range(1, setup.rounds + 1)])
        for setup, held in zip(setups, (30.0, 20.0), strict=True)
    ]
    assert [rate.learning_rate for rate in chosen(runs)] == [1e-3]


def test_a_damaged_file_of_rates_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rates.json").write_text("[{}]")
    with pytest.raises(ConfigError, match="rates.json"):
        Rates(tmp_path)


def test_a_run_is_never_mixed_with_another_of_its_name(tmp_path: Path) -> None:
    first = planned(request("fedkrso", seeds=(0,)), Rates(tmp_path))
    prepare(first, tmp_path, tmp_path, tmp_path)
    prepare(first, tmp_path, tmp_path, tmp_path)
    for changed, said in (
        (request("fedkrso", seeds=(0,), changes={"rounds": 11}), "rounds 10, asked for is 11"),
        (request("fedkrso", preset="paper", seeds=(0,)), "interval_steps|steps 20, asked for is 100"),
    ):
        with pytest.raises(ConfigError, match=said):
            prepare(planned(changed, Rates(tmp_path)), tmp_path, tmp_path, tmp_path)
    (tmp_path / first[0].place / "setup.json").write_text("{")
    with pytest.raises(ConfigError, match="not a setup"):
        prepare(first, tmp_path, tmp_path, tmp_path)
