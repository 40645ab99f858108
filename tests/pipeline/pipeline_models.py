"""Tiny models for tests of the pipeline, the whole model's numbers, and stages run one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from fxpar.capture import Program, capture
from fxpar.pipeline.check import check
from fxpar.pipeline.cut import choose
from fxpar.pipeline.module import StageModule
from fxpar.pipeline.stages import Stage, build
from fxpar.runtime.gradients import ParameterGradient, reduce_gradients
from fxpar.runtime.groups import Groups
from fxpar.runtime.module import unite
from fxpar.runtime.pipeline import Pipeline
from fxpar.schedule import places

VOCAB, BATCH, LENGTH, WIDTH, HEADS = 48, 2, 6, 16, 2
SIZES = {"vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 24, "num_attention_heads": HEADS}


class Block(nn.Module):
    """Attention and feed-forward of a GPT."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 3 * WIDTH),
            nn.Linear(WIDTH, WIDTH),
        )
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        return x + self.mlp(x)


class GPT(nn.Module):
    """A GPT with a tied embedding, a buffer that counts calls, and an output from its first half."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls.add_(1)
        places = torch.arange(input_ids.shape[1])
        mask = places[None, :] <= places[:, None]
        x = self.tokens(input_ids) + self.positions(places)
        early = None
        for layer in self.layers:
            x = layer(x, mask)
            early = x.mean(1) if early is None else early
        logits = F.linear(x, self.tokens.weight)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "early": early, "logits": logits}


def _frozen() -> nn.Module:
    """A GPT whose embeddings do not learn."""
    model = GPT(2)
    model.tokens.requires_grad_(False)
    model.positions.requires_grad_(False)
    return model


def _llama() -> nn.Module:
    sizes = {"num_hidden_layers": 4, "num_key_value_heads": 1, "max_position_embeddings": 8}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **sizes, **tokens))


def _gpt2() -> nn.Module:
    sizes = {"n_embd": WIDTH, "n_layer": 4, "n_head": HEADS, "vocab_size": VOCAB, "n_positions": 8}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "loss_type": "ForCausalLMLoss"}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **off, **tokens))


def _bert() -> nn.Module:
    sizes = {"num_hidden_layers": 4, "max_position_embeddings": 8}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, **sizes, **off))


def _t5() -> nn.Module:
    sizes = {
        "d_model": WIDTH,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": HEADS,
        "vocab_size": VOCAB,
    }
    off = {"dropout_rate": 0.0, "use_cache": False, "decoder_start_token_id": 0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **off))


MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "gpt": lambda: GPT(4),
    "frozen": _frozen,
    "llama": _llama,
    "gpt2": _gpt2,
    "bert": _bert,
    "t5": _t5,
}


@dataclass
class Case:
    """A model in float64 and its graph."""

    name: str
    model: nn.Module
    program: Program

    def stages(self, count: int, at: Sequence[str] = (), ranks: Sequence[int] = ()) -> list[Stage]:
        """The graph cut into stages, and checked."""
        stages = build(choose(self.program.graph, count, at), self.program.output_names, "loss", ranks)
        check(self.program.graph, stages)
        return stages

    def modules(self, stages: Sequence[Stage]) -> list[StageModule]:
        """A module for each stage, each with tensors of its own."""
        held = self.program.tensors
        return [
            StageModule(stage, {name: t.detach().clone() for name, t in held.items()}) for stage in stages
        ]

    def whole(self, batches: Sequence[dict[str, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
        """The summed loss and the gradients of the unpartitioned model."""
        self.model.zero_grad()
        losses = [self.model(**batch)["loss"] for batch in batches]
        torch.stack(losses).sum().backward()
        named = self.model.named_parameters()
        return torch.stack(losses).sum().detach(), {n: p.grad.clone() for n, p in named if p.grad is not None}

    def flat(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch by the names of placeholders."""
        return self.program.flat_inputs(batch)


@dataclass
class Piped:
    """The stages of one rank, and the pipeline that runs them."""

    stages: list[Stage]
    modules: list[StageModule]
    root: nn.Module
    pipeline: Pipeline
    groups: Groups

    @property
    def parameters(self) -> set[str]:
        """The names of what this rank holds."""
        return {name for stage in self.stages for name in stage.parameters()}

    def gradients(self) -> dict[str, Tensor]:
        """Gradients by name, of shared parameters summed over the ranks that hold them."""
        kinds = {n: kind for s in self.stages for kind, names in s.spec().groups().items() for n in names}
        learning = [(n, p) for n, p in self.root.named_parameters() if p.requires_grad]
        reduce_gradients([ParameterGradient(n, p, tie=kinds.get(n)) for n, p in learning], self.groups)
        return {name: p.grad.clone() for name, p in learning if p.grad is not None}


def piped(subject: Case, groups: Groups, schedule: str, virtual: int = 1, at: Sequence[str] = ()) -> Piped:
    """The pipeline of a rank, with tensors of its own."""
    group = groups.group("pp")
    ranks = places(schedule, group.size, virtual)
    own = [stage for stage in subject.stages(len(ranks), at, ranks) if stage.rank == group.index]
    tensors = {
        name: nn.Parameter(t.detach().clone(), t.requires_grad) if isinstance(t, nn.Parameter) else t.clone()
        for name, t in subject.program.tensors.items()
    }
    modules = [StageModule(stage, tensors) for stage in own]
    root = unite(modules)
    return Piped(
        own, modules, root, Pipeline(modules, [s.spec() for s in own], groups, schedule=schedule), groups
    )


@cache
def case(name: str) -> Case:
    """A model of this file and its graph, made once."""
    torch.manual_seed(0)
    model = MODELS[name]().double()
    return Case(name, model, capture(model, kwargs=batch(0)))


def batch(seed: int) -> dict[str, Tensor]:
    """Token ids and labels."""
    generator = torch.Generator().manual_seed(seed)
    ids, labels = (torch.randint(1, VOCAB, (BATCH, LENGTH), generator=generator) for _ in range(2))
    labels[0, :2] = -100
    return {"input_ids": ids, "labels": labels}


def compose(
    stages: Sequence[Stage], modules: Sequence[nn.Module], inputs: dict[str, Tensor]
) -> tuple[Any, ...]:
    """Run stages forward and backward as a pipeline does: cut off at each boundary. Returns the model's outputs."""
    received: list[list[Tensor]] = []
    sent: list[tuple[Any, ...]] = [()]
    for stage, module in zip(stages, modules):
        received.append(
            [t.detach().requires_grad_(v.requires_grad) for t, v in zip(sent[-1], stage.received)]
        )
        sent.append(module(*received[-1], **{name: inputs[name] for name in stage.inputs}))
    loss = stages[-1].loss
    assert loss is not None
    sent[-1][stages[-1].outputs.index(loss.name)].backward()
    for outputs, arrived in zip(reversed(sent[1:-1]), reversed(received[1:])):
        ends = [(output, value.grad) for output, value in zip(outputs, arrived) if value.grad is not None]
        torch.autograd.backward([end for end, _ in ends], [gradient for _, gradient in ends])
    return sent[-1]


def gradients(stages: Sequence[Stage], modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The gradients of all stages by parameter, those of shared ones summed."""
    total: dict[str, Tensor] = {}
    for stage, module in zip(stages, modules):
        for name in stage.parameters():
            gradient = module.get_parameter(name).grad
            if gradient is not None:
                total[name] = total[name] + gradient if name in total else gradient
    return total


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Hold tensors by name against others, to 1e-12."""
    assert found.keys() == wanted.keys(), sorted(found.keys() ^ wanted.keys())
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12, msg=name)
