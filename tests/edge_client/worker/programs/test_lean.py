# SPDX-License-Identifier: Apache-2.0
"""What a worker does not load, and that nothing is missing where somebody wants it after all."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

START = "from edge_client.worker.programs.lean import hide_optional_packages; hide_optional_packages()\n"
LOADED = "print('loaded', sorted({'torch._dynamo.symbolic_convert', 'torch.distributed.tensor._ops'} & sys.modules.keys()))\n"


def said_by(program: str) -> str:
    whole = "import sys\n" + START + textwrap.dedent(program) + LOADED
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_step_with_checkpointing_and_an_optimiser_loads_no_compiler(make_llama: Callable[..., Path]) -> None:
    program = f"""
    import torch
    from transformers import AutoModelForCausalLM
    from edge_client.worker.programs import serve
    model = AutoModelForCausalLM.from_pretrained({str(make_llama())!r})
    model.gradient_checkpointing_enable()
    model.train()
    optimiser = torch.optim.Adam(model.parameters())
    for _ in range(2):
        optimiser.zero_grad()
        ids = torch.tensor([[1, 2, 3, 4]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    """
    assert said_by(program) == "loaded []\n"


def test_fake_tensors_load_no_compiler() -> None:
    program = """
    import torch
    from edge_client.worker.trace.shapes import Shapes
    with Shapes().mode:
        x = torch.empty(2, 3)
        print(tuple((x @ x.t()).shape))
    """
    assert said_by(program) == "(2, 2)\nloaded []\n"


def test_tensors_that_are_watched_load_none_across_processes_and_find_them_where_they_are_wanted() -> None:
    """PyTorch asks of each whether it is one of those."""
    program = """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Watched():
        print(float((torch.ones(2, 3) @ torch.ones(3)).sum()))
    """
    assert said_by(program) == "6.0\nloaded []\n"
    wanted = """
    from torch.distributed.tensor import Shard, distribute_tensor
    print(Shard(1).dim, distribute_tensor.__module__)
    """
    assert said_by(wanted).startswith("1 torch.distributed.tensor\n")


def test_classes_and_modules_of_transformers_are_found_by_any_of_their_names() -> None:
    """Its folder of architectures is looked through once, when something of it is asked for that is no module."""
    program = """
    import transformers
    from transformers import AutoConfig, LlamaForCausalLM
    from transformers.models.bert.modeling_bert import BertModel
    from transformers.models import gpt2
    assert transformers.BertModel is BertModel and gpt2.GPT2Config is transformers.GPT2Config
    from transformers.models import LlamaConfig
    assert LlamaConfig is transformers.LlamaConfig is transformers.models.llama.LlamaConfig
    """
    assert said_by(program) == "loaded []\n"


@pytest.mark.slow
def test_a_part_that_cannot_be_loaded_by_itself_loads_the_whole() -> None:
    """As accelerate does, where transformers saves a model."""
    program = """
    import torch
    print(torch._dynamo.eval_frame.OptimizedModule.__name__)
    print(torch.compile(lambda x: 2 * x + 1, backend="eager")(torch.ones(2)).tolist())
    """
    assert said_by(program).startswith("OptimizedModule\n[3.0, 3.0]\nloaded ['torch._dynamo.symbolic_convert'")


@pytest.mark.slow
def test_who_compiles_all_the_same_gets_the_compiler_whole() -> None:
    """A task or a method of one's own may."""
    program = """
    import torch
    seen = []
    def backend(graph, inputs):
        seen.append(len(graph.graph.nodes))
        return graph.forward
    twice = torch.compile(lambda x: 2 * x + 1, backend=backend)
    print(twice(torch.ones(2)).tolist(), len(seen), torch._dynamo.config is sys.modules["torch._dynamo.config"])
    """
    assert said_by(program).startswith("[3.0, 3.0] 1 True\nloaded ['torch._dynamo.symbolic_convert'")
