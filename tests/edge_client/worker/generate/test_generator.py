# SPDX-License-Identifier: Apache-2.0
"""Greedy answers are those of transformers' own generate, of the same weights, token for token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from plans import subspaces
from transformers import AutoModelForCausalLM, AutoTokenizer

from edge_client.worker.compiled.engine import CHUNK_TOKENS
from edge_client.worker.compiled.footprint import fitting_tokens
from edge_client.worker.generate.batch import Batches
from edge_client.worker.generate.cache import cache_bytes, planned_cache
from edge_client.worker.generate.generator import Generator
from edge_client.worker.methods import client_half
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.loading import build, describe
from fedcore.config.generation import GenerationOptions
from fedcore.config.sections import TaskSection
from fedcore.errors import ModelError
from fedcore.model.base import Base
from fedcore.model.state import ExactState
from fedcore.numbers.accumulator import RunningSum, quantise_rows
from fedcore.weights.checkpoint import Checkpoint
from tests.causal_models import SHAPES, byte_tokenizer, random_model

CPU = torch.device("cpu")
CAUSAL = TaskSection(kind="causal-lm")
LEAN = ("llama", "llama tied", "qwen2", "qwen3")
PROMPTS = [[(7 * row + 3 * column + row * column) % 256 for column in range(1 + 2 * row)] for row in range(12)]
GREEDY = GenerationOptions(max_new_tokens=20)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products of a few numbers each: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reference(model: Any, prompt: Sequence[int], new_tokens: int = 20) -> list[int]:
    """What transformers answers, without the token that ends it."""
    ids = torch.tensor([list(prompt)])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens)
    answer = out[0, len(prompt) :].tolist()
    return answer[: answer.index(299)] if 299 in answer else answer


def streamed(generator: Generator, prompt: Sequence[int], options: GenerationOptions = GREEDY) -> list[int]:
    return [token.id for token in generator.stream(prompt, options) if token.finish != "stop"]


@pytest.mark.parametrize("shape", SHAPES)
def test_answers_are_transformers_own(shape: str) -> None:
    model = random_model(shape)
    generator = Generator(BuiltModel(model), byte_tokenizer())
    expected = [reference(model, prompt) for prompt in PROMPTS]
    assert [streamed(generator, prompt) for prompt in PROMPTS] == expected
    assert generator.batch(PROMPTS, GREEDY, Batches(rows=5)) == expected
    # In passes of a few tokens: the short prompts of a batch have nothing but padding in the first.
    assert generator.batch(PROMPTS, GREEDY, Batches(rows=12, pass_tokens=36)) == expected
    assert ("own pass" in generator.how) == (shape in LEAN)
    assert len({tuple(answer) for answer in expected}) > 6


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("learned", [True, False])
def test_an_int8_base_with_what_was_learned_answers_like_its_float_twin(
    make_llama: Any, tmp_path: Path, learned: bool, compiled: bool
) -> None:
    folder = make_llama(vocabulary=20_000, width=64, tied=True)
    schema = describe(Checkpoint(folder), CAUSAL)
    base = Base(Checkpoint(folder), schema, "int8", tmp_path / "base")
    model = build(base, CAUSAL, 0, CPU, torch.float32)
    assert model.output_weight is not None and model.output_weight.weight.dtype == torch.bfloat16
    training = subspaces((5, 6), 4)
    state = ExactState.zero(training, schema)
    if learned:
        total, numbers = RunningSum(training.shapes(schema)), np.random.default_rng(0)
        total.add_examples(1)
        for name, shape in training.shapes(schema).items():
            total.add(name, quantise_rows((numbers.normal(size=shape) * 0.05).astype(np.float32), 8), 1)
        state = state.after(total)
    client_half(model, training).install(state.publish())
    twin = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    parameters = dict(twin.named_parameters())
    with torch.no_grad():
        for name, layer in model.layers.items():
            # The layer of the identity is its weight.
            parameters[f"{name}.weight"].copy_(layer(torch.eye(layer.in_features)).T)
    generator = Generator(model, byte_tokenizer(), compiled=compiled)
    expected = [reference(twin, prompt) for prompt in PROMPTS]
    assert [streamed(generator, prompt) for prompt in PROMPTS] == expected
    assert generator.batch(PROMPTS, GREEDY) == expected
    assert "own pass" in generator.how
    # And it goes on learning as before.
    assert model.module.training and all("forward" not in vars(layer) for layer in model.layers.values())


@pytest.mark.parametrize("compiled", [True, False])
def test_what_is_common_with_the_answer_before_is_not_computed_again(
    monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    model = random_model("llama")
    generator, fresh = (Generator(BuiltModel(model), byte_tokenizer(), compiled=compiled) for _ in range(2))
    passed: list[int] = []
    engine: Any = generator.compiled or generator._engine
    own = engine._pass
    monkeypatch.setattr(engine, "_pass", lambda ids: (passed.append(len(ids)), own(ids))[1])
    first = PROMPTS[8]
    answer = streamed(generator, first)
    second = [*first, *answer, 5, 6, 7]
    assert streamed(generator, second) == streamed(fresh, second)
    other = [*first[:4], 9, 9]
    assert streamed(generator, other) == streamed(fresh, other)
    # The last token of an answer has not been through the model.
    assert [count for count in passed if count > 1] == [len(first), 4, 2]


def test_refresh_forgets_what_was_seen() -> None:
    model = random_model("llama")
    generator = Generator(BuiltModel(model), byte_tokenizer())
    before = streamed(generator, PROMPTS[5])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    generator.refresh()
    assert streamed(generator, PROMPTS[5]) == reference(model, PROMPTS[5]) != before


def test_a_prompt_longer_than_a_pass_goes_through_in_parts() -> None:
    config = SHAPES["llama"]()
    config.max_position_embeddings = 2 * CHUNK_TOKENS + 100
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    prompt = [(31 * place) % 256 for place in range(2 * CHUNK_TOKENS + 20)]
    assert streamed(Generator(BuiltModel(model), byte_tokenizer()), prompt) == reference(model, prompt)


def test_the_context_bounds_prompt_and_answer() -> None:
    generator = Generator(BuiltModel(random_model("gpt2")), byte_tokenizer(), context_tokens=30)
    tokens = list(generator.stream(list(range(22)), GenerationOptions(max_new_tokens=100)))
    assert len(tokens) == 8 and [token.finish for token in tokens] == [""] * 7 + ["length"]
    for prompt, words in (([], "empty"), (list(range(30)), "30 tokens; the context holds 30")):
        with pytest.raises(ModelError, match=words):
            generator.stream(prompt, GREEDY)
        with pytest.raises(ModelError, match=words):
            generator.batch([[1], prompt], GREEDY)
    # No more than the model has positions for, whatever there is memory for.
    assert Generator(BuiltModel(random_model("gpt2")), byte_tokenizer(), 10**6).context_tokens == 128


def test_an_answer_ends_at_the_end_token_and_at_a_stop_text() -> None:
    model, tokenizer = random_model("llama"), byte_tokenizer()
    generator = Generator(BuiltModel(model), tokenizer)
    assert generator.end_tokens == {299}
    whole = list(generator.stream(PROMPTS[4], GREEDY))
    text = "".join(token.text for token in whole)
    assert whole[-1].finish == "length" and len(text) > 3

    class Ends:
        """Lets anything come, and after three tokens only the end."""

        taken = 0

        def allowed(self) -> NDArray[np.bool_]:
            mask = np.ones(300, bool)
            if self.taken == 3:
                mask[:299] = False
            return mask

        def accept(self, token: int) -> None:
            self.taken += 1

    tokens = list(generator.stream(PROMPTS[4], GREEDY, Ends()))
    assert [token.id for token in tokens] == [*(token.id for token in whole[:3]), 299]
    assert (
        tokens[-1].finish == "stop"
        and tokens[-1].text == "".join(token.text for token in tokens)[len("".join(t.text for t in tokens[:-1])) :]
    )
    stop = text[2:4]
    cut = list(generator.stream(PROMPTS[4], GenerationOptions(max_new_tokens=20, stop=(stop,))))
    assert "".join(token.text for token in cut) == text[: text.index(stop)] and cut[-1].finish == "stop"
    (answer,) = generator.batch([PROMPTS[4]], GenerationOptions(max_new_tokens=20, stop=(stop,)))
    assert answer == [token.id for token in cut[:-1]]


def test_closing_an_answer_half_way_leaves_the_generator_usable() -> None:
    model = random_model("qwen3")
    generator = Generator(BuiltModel(model), byte_tokenizer())
    answer = generator.stream(PROMPTS[6], GREEDY)
    next(answer)
    next(answer)
    answer.close()  # type: ignore[attr-defined]
    assert streamed(generator, PROMPTS[6]) == reference(model, PROMPTS[6])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_cache_takes_what_was_foreseen(shape: str) -> None:
    model = random_model(shape)
    cache = planned_cache(model.config, 64)
    with torch.inference_mode():
        for start in range(0, 64, 16):
            model(input_ids=torch.arange(start, start + 16)[None], past_key_values=cache, use_cache=True)
    # A window keeps one token less than it sees.
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    foreseen = cache_bytes(model.config, 64)
    assert held <= foreseen <= held * (9 / 8 if shape == "mistral window" else 1)


@pytest.mark.parametrize("shape", ["llama", "mistral window"])
def test_a_room_holds_as_many_tokens_as_their_cache_takes(shape: str) -> None:
    config = SHAPES[shape]()
    for tokens in (1, 5, 100):
        room = cache_bytes(config, tokens)
        fits = fitting_tokens(partial(cache_bytes, config), room, 128)
        assert cache_bytes(config, fits) <= room and (fits == 128 or cache_bytes(config, fits + 1) > room)
    assert fitting_tokens(partial(cache_bytes, config), cache_bytes(config, 1) - 1, 128) == 0


@pytest.mark.slow
def test_a_real_model_s_greedy_answers(smollm_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm_folder)
    schema = describe(Checkpoint(smollm_folder), CAUSAL)
    model = build(Base(Checkpoint(smollm_folder), schema, "int8", tmp_path), CAUSAL, 0, CPU, torch.float32)
    twin = AutoModelForCausalLM.from_pretrained(smollm_folder, dtype=torch.float32).eval()
    parameters = dict(twin.named_parameters())
    with torch.no_grad():
        for name, layer in model.layers.items():
            base: Any = layer.base
            parameters[f"{name}.weight"].copy_(base.copy_rows(slice(None), torch.empty(base.shape)))
    questions = [f"Name {count} things that are {colour}." for count in (2, 3) for colour in COLOURS]
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)["input_ids"]
        for question in questions
    ]
    generator, options = Generator(model, tokenizer), GenerationOptions(max_new_tokens=12)
    assert "own pass" in generator.how and len(prompts) == 20
    answers = [[token.id for token in generator.stream(prompt, options)] for prompt in prompts]
    with torch.inference_mode():
        for prompt, answer in zip(prompts, answers, strict=True):
            # One pass says what would have come after each token; that is what came, so it is the greedy answer.
            logits = twin(torch.tensor([[*prompt, *answer]])).logits[0]
            assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == answer
    ids = torch.tensor(prompts[:1])
    out = twin.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
    assert out[0, len(prompts[0]) :].tolist() == answers[0]


COLOURS = ("red", "blue", "green", "white", "black", "yellow", "brown", "grey", "golden", "pink")
