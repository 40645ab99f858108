"""Models of the zoo from elsewhere: torch itself, torchtitan, x-transformers, timm, and two that are short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.inputs import BATCH, LENGTH, VOCABULARY, Inputs
from models.stubs import stand_ins

Built = tuple[nn.Module, Inputs]

WIDTH = 32


class Classified(nn.Module):
    """A network with the loss of its logits, [..., classes], beside them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(x)
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten()), logits


class Translation(nn.Module):
    """torch.nn.Transformer between embeddings and a head."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.network = nn.Transformer(WIDTH, 4, 2, 2, 64, dropout, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=self.head.weight.dtype)
        hidden = self.network(self.tokens(source), self.tokens(target), tgt_mask=mask, tgt_is_causal=True)
        return F.cross_entropy(self.head(hidden).flatten(0, 1), labels.flatten())


class Encoder(nn.Module):
    """torch.nn.TransformerEncoder between embeddings and a head."""

    def __init__(self, dropout: float, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 64, dropout, activation="gelu", batch_first=True, norm_first=norm_first
        )
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.network = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.network(self.tokens(x))).flatten(0, 1), labels.flatten())


class MixerBlock(nn.Module):
    """Tolstikhin et al. 2021, MLP-Mixer: an MLP over the patches, one over the channels."""

    def __init__(self, patches: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.patches = _mlp(patches, 2 * patches, dropout)
        self.channels = _mlp(width, 2 * width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.patches(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = x + self.channels(self.norms[1](x))
        return mixed


class Mixer(nn.Module):
    """An MLP-Mixer that classifies pictures of 16 x 16."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 4, 4)
        self.blocks = nn.Sequential(*(MixerBlock(16, WIDTH, dropout) for _ in range(2)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 8)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        hidden = self.blocks(self.stem(x).flatten(2).transpose(1, 2))
        return F.cross_entropy(self.head(self.norm(hidden).mean(1)), labels)


class ResidualBlock(nn.Module):
    """He et al. 2016: two convolutions with batch norms, and a way around them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.around = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.around(x))


class ResNet(nn.Module):
    """A small residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.blocks = nn.Sequential(ResidualBlock(16, 16, 1), ResidualBlock(16, 32, 2))
        self.head = nn.Linear(32, 8)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(
            self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1)), labels
        )


def _mlp(size: int, inner: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, size))


def _text() -> Inputs:
    x = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
    return {"x": x, "labels": x.clone()}


def _pictures() -> Inputs:
    return {"x": torch.randn(BATCH, 3, 16, 16), "labels": torch.randint(0, 8, (BATCH,))}


def transformer(dropout: float) -> Built:
    """torch.nn.Transformer."""
    source, target = (torch.randint(0, VOCABULARY, (BATCH, LENGTH)) for _ in range(2))
    return Translation(dropout), {"source": source, "target": target, "labels": target.clone()}


def encoder(dropout: float) -> Built:
    """torch.nn.TransformerEncoder."""
    return Encoder(dropout, norm_first=False), _text()


def encoder_norm_first(dropout: float) -> Built:
    """torch.nn.TransformerEncoder with the norms before the blocks."""
    return Encoder(dropout, norm_first=True), _text()


def mixer(dropout: float) -> Built:
    """An MLP-Mixer."""
    return Mixer(dropout), _pictures()


def resnet(_dropout: float) -> Built:
    """A small ResNet."""
    return ResNet(), _pictures()


def x_transformers(dropout: float) -> Built:
    """x-transformers' decoder with rotary positions, grouped queries and a gated feed-forward."""
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(
        dim=WIDTH,
        depth=2,
        heads=8,
        attn_dim_head=8,
        attn_kv_heads=4,
        rotary_pos_emb=True,
        ff_glu=True,
        attn_flash=True,
        layer_dropout=0.0,
        attn_dropout=dropout,
        ff_dropout=dropout,
    )
    network = TransformerWrapper(num_tokens=VOCABULARY, max_seq_len=24, attn_layers=layers)
    return Classified(network), _text()


def x_transformers_encoder(dropout: float) -> Built:
    """x-transformers' encoder with ALiBi, attention written out, and squared ReLU."""
    from x_transformers import Encoder as Layers
    from x_transformers import TransformerWrapper

    layers = Layers(
        dim=WIDTH,
        depth=2,
        heads=8,
        attn_dim_head=8,
        alibi_pos_bias=True,
        ff_relu_squared=True,
        use_rmsnorm=True,
        attn_dropout=dropout,
        ff_dropout=dropout,
    )
    network = TransformerWrapper(num_tokens=VOCABULARY, max_seq_len=24, attn_layers=layers)
    return Classified(network), _text()


def timm_vit(dropout: float) -> Built:
    """timm's VisionTransformer."""
    with stand_ins("torchvision"):
        from timm.models.vision_transformer import VisionTransformer

    network = VisionTransformer(
        img_size=16,
        patch_size=4,
        embed_dim=WIDTH,
        depth=2,
        num_heads=4,
        mlp_ratio=2,
        num_classes=8,
        proj_drop_rate=dropout,
        attn_drop_rate=dropout,
    )
    return Classified(network), _pictures()


def titan_llama3(_dropout: float) -> Built:
    """torchtitan's llama3."""
    return _titan("llama3", "llama3_configs", "debugmodel", attn_backend="flex")


def titan_deepseek_v3(_dropout: float) -> Built:
    """torchtitan's deepseek_v3."""
    return _titan(
        "deepseek_v3", "deepseekv3_configs", "debugmodel", attn_backend="flex", moe_comm_backend="standard"
    )


def _titan(package: str, table: str, flavor: str, **options: Any) -> Built:
    """A small configuration of torchtitan with torch's own attention instead of the compiled one."""
    with stand_ins("torchdata", "datasets", "tensorboard", "wandb", "torch_checkpointing"):
        import importlib

        models = importlib.import_module(f"torchtitan.models.{package}")
        from torchtitan.models.common.attention import ScaledDotProductAttention
    config = getattr(models, table)[flavor](**options)
    config.layers = config.layers[:2]
    for layer in config.layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    network = config.build()
    network.init_states() if hasattr(network, "init_states") else None
    x = torch.randint(0, 2048, (BATCH, LENGTH))
    return Classified(network), {"x": x, "labels": x.clone()}


BUILDERS: dict[str, Callable[[float], Built]] = {
    "torch.nn.Transformer": transformer,
    "torch.nn.TransformerEncoder": encoder,
    "torch.nn.TransformerEncoder (norm first)": encoder_norm_first,
    "x-transformers decoder": x_transformers,
    "x-transformers encoder": x_transformers_encoder,
    "timm vit": timm_vit,
    "torchtitan llama3": titan_llama3,
    "torchtitan deepseek_v3": titan_deepseek_v3,
    "MLP-Mixer": mixer,
    "ResNet": resnet,
}
