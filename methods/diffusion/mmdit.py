"""MMDiT: the transformer of Stable Diffusion 3 (Esser et al., ICML 2024, arXiv 2403.03206, figure 2), as the demo model
has it.

Parameters carry the names that ComfyUI's own class loads: it reads width, patch, context width, pooled width and the
RMS norm of queries and keys from the file; depth is width / 64, also the number of heads; the MLP is 4 times as wide;
without `pos_embed` in the file, positions are sines over 0..15 (any picture size). Written from the paper; nothing is
copied.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 16  # of Stable Diffusion 3's latents
WIDTH, PATCH, CONTEXT, POOLED = 256, 2, 64, 64


def waves(t: Tensor, width: int) -> Tensor:
    """N numbers as N×width cosines and sines, periods 2π to 20000π (arXiv 1706.03762, cosines first)."""
    rates = torch.exp(-math.log(10000) * torch.arange(width // 2, device=t.device) / (width // 2))
    phases = t.float()[:, None] * rates
    return torch.cat([phases.cos(), phases.sin()], 1)


def positions(rows: int, columns: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """1×(rows·columns)×width position code: sin and cos of x, then of y, which run over 0..15 on the shorter side."""
    small = min(rows, columns)
    axes = [7.5 * (1 + n / small * torch.linspace(-1, 1, n, device=device)) for n in (rows, columns)]
    y, x = (v.flatten() for v in torch.meshgrid(*axes, indexing="ij"))
    codes = [waves(v, width // 2).chunk(2, 1) for v in (x, y)]
    return torch.cat([part for cos, sin in codes for part in (sin, cos)], 1)[None]


class Attention(nn.Module):
    """Queries, keys and values of one stream: heads of 64, RMS norm on queries and keys."""

    def __init__(self, width: int, last: bool):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.ln_q, self.ln_k = nn.RMSNorm(64, eps=1e-6), nn.RMSNorm(64, eps=1e-6)
        if not last:
            self.proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """N×L×width to three of N×heads×L×64."""
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, 64)).permute(2, 0, 3, 1, 4)
        return self.ln_q(q).to(v.dtype), self.ln_k(k).to(v.dtype), v


class Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights, then the conditioning's own: N×L×D with N×D."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class Stream(nn.Module):
    """One of the two streams of a block; the context's last one ends with its keys and values."""

    def __init__(self, width: int, last: bool = False):
        super().__init__()
        self.attn = Attention(width, last)
        if not last:
            self.mlp = Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, (2 if last else 6) * width))

    def finish(self, x: Tensor, mixed: Tensor, m: tuple[Tensor, ...]) -> Tensor:
        x = x + m[2][:, None] * self.attn.proj(mixed)
        return x + m[5][:, None] * self.mlp(modulated(x, m[3], m[4]))


class JointBlock(nn.Module):
    """Context and picture with weights of their own and one attention over both."""

    def __init__(self, width: int, last: bool):
        super().__init__()
        self.context_block, self.x_block = Stream(width, last), Stream(width)
        self.last = last

    def forward(self, context: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        streams = [(self.context_block, context), (self.x_block, x)]
        m = [s.adaLN_modulation(c).chunk(2 if s is self.context_block and self.last else 6, 1) for s, _ in streams]
        parts = [s.attn.split(modulated(v, p[0], p[1])) for (s, v), p in zip(streams, m, strict=True)]
        q, k, v = (torch.cat(pair, 2) for pair in zip(*parts, strict=True))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        n = context.shape[1]
        x = self.x_block.finish(x, mixed[:, n:], m[1])
        return (context if self.last else self.context_block.finish(context, mixed[:, :n], m[0])), x


class _Embedder(nn.Module):
    def __init__(self, source: int, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(source, width), nn.SiLU(), nn.Linear(width, width))


class _Patches(nn.Module):
    def __init__(self, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(CHANNELS, width, patch, patch)


class _Final(nn.Module):
    def __init__(self, width: int, patch: int):
        super().__init__()
        self.linear = nn.Linear(width, patch * patch * CHANNELS)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))


def _linear(layer: nn.Module) -> nn.Linear:
    assert isinstance(layer, nn.Linear)
    return layer


class MMDiT(nn.Module):
    """Velocity (noise minus latent) of noised latents N×16×H×W, H and W even.

    t: N, noise level in 0..1 (core passes 1000 times as much: so do we inside); context N×L×64; pooled N×64.
    """

    def __init__(self, width: int = WIDTH, patch: int = PATCH, context: int = CONTEXT, pooled: int = POOLED):
        super().__init__()
        self.width, self.patch, depth = width, patch, width // 64
        self.x_embedder = _Patches(width, patch)
        self.t_embedder, self.y_embedder = _Embedder(256, width), _Embedder(pooled, width)
        self.context_embedder = nn.Linear(context, width)
        self.joint_blocks = nn.ModuleList(JointBlock(width, i == depth - 1) for i in range(depth))
        self.final_layer = _Final(width, patch)
        for module in self.modules():  # arXiv 2212.09748: blocks start as identities
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Stream | _Final):
                nn.init.zeros_(_linear(module.adaLN_modulation[1]).weight)
        for embedder in (self.t_embedder, self.y_embedder):
            for i in (0, 2):
                nn.init.normal_(_linear(embedder.mlp[i]).weight, std=0.02)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.data.flatten(1))
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        rows, columns, p = x.shape[2] // self.patch, x.shape[3] // self.patch, self.patch
        x = self.x_embedder.proj(x).flatten(2).transpose(1, 2)
        x = x + positions(rows, columns, self.width, x.device).to(x.dtype)
        c = self.t_embedder.mlp(waves(1000 * t, 256)) + self.y_embedder.mlp(pooled)
        context = self.context_embedder(context)
        for block in self.joint_blocks:
            context, x = block(context, x, c)
        x = self.final_layer.linear(modulated(x, *self.final_layer.adaLN_modulation(c).chunk(2, 1)))
        x = x.unflatten(1, (rows, columns)).unflatten(-1, (p, p, CHANNELS)).permute(0, 5, 1, 3, 2, 4)
        return x.flatten(4).flatten(2, 3)
