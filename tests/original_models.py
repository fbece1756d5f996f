"""The models of DDPM and latent diffusion as functions, written from the papers, of tensors with the original's names.

A weight in the wrong place, a wrong number of heads, a wrong padding or a wrong epsilon makes another output.
"""

import math

import torch
from torch.nn import functional as F


class Weights:
    """The original's tensors by name, in float64, and which of them were used."""

    def __init__(self, state, prefix=""):
        self.state = {n.removeprefix(prefix): w.double() for n, w in state.items() if n.startswith(prefix)}
        self.used = set()

    def __contains__(self, module):
        return f"{module}.weight" in self.state

    def get(self, name):
        self.used.add(name)
        return self.state.get(name)

    def linear(self, module, x):
        return F.linear(x, self.get(f"{module}.weight"), self.get(f"{module}.bias"))

    def conv(self, module, x, **options):
        return F.conv2d(x, self.get(f"{module}.weight"), self.get(f"{module}.bias"), **options)

    def norm(self, module, x, eps=1e-6):
        return F.group_norm(x, 32, self.get(f"{module}.weight"), self.get(f"{module}.bias"), eps)

    def layer_norm(self, module, x):
        return F.layer_norm(x, x.shape[-1:], self.get(f"{module}.weight"), self.get(f"{module}.bias"))


def swish(x):
    return x * torch.sigmoid(x)


def frequencies(half, divisor):
    return torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64) / divisor)


def ho_resnet(w, p, x, emb=None):
    h = w.conv(f"{p}.conv1", swish(w.norm(f"{p}.norm1", x)), padding=1)
    if emb is not None:
        h = h + w.linear(f"{p}.temb_proj", swish(emb))[:, :, None, None]
    h = w.conv(f"{p}.conv2", swish(w.norm(f"{p}.norm2", h)), padding=1)
    return h + (w.conv(f"{p}.nin_shortcut", x) if f"{p}.nin_shortcut" in w else x)


def ho_attention(w, p, x):
    h = w.norm(f"{p}.norm", x)
    q, k, v = (w.conv(f"{p}.{name}", h).flatten(2) for name in "qkv")  # (B, C, HW)
    weights = torch.softmax(q.transpose(1, 2) @ k / q.shape[1] ** 0.5, dim=-1)
    return x + w.conv(f"{p}.proj_out", (v @ weights.transpose(1, 2)).unflatten(2, x.shape[2:]))


def ho_layer(w, p, i, j, x, emb=None):
    h = ho_resnet(w, f"{p}.{i}.block.{j}", x, emb)
    return ho_attention(w, f"{p}.{i}.attn.{j}", h) if f"{p}.{i}.attn.{j}.q" in w else h


def ho_down(w, p, i, x):
    return w.conv(f"{p}.{i}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)


def ho_up(w, p, i, x):
    return w.conv(f"{p}.{i}.upsample.conv", F.interpolate(x, scale_factor=2), padding=1)


def ho_middle(w, p, x, emb=None):
    return ho_resnet(
        w, f"{p}mid.block_2", ho_attention(w, f"{p}mid.attn_1", ho_resnet(w, f"{p}mid.block_1", x, emb)), emb
    )


def ddpm_unet(w, x, t, levels):
    """Ho et al. 2020."""
    half = w.state["temb.dense.0.weight"].shape[1] // 2
    angle = t.double()[:, None] * frequencies(half, half - 1)
    emb = w.linear("temb.dense.1", swish(w.linear("temb.dense.0", torch.cat([angle.sin(), angle.cos()], dim=1))))
    skips = [w.conv("conv_in", x, padding=1)]
    for i in range(levels):
        for j in range(2):
            skips.append(ho_layer(w, "down", i, j, skips[-1], emb))
        if i < levels - 1:
            skips.append(ho_down(w, "down", i, skips[-1]))
    h = ho_middle(w, "", skips[-1], emb)
    for i in reversed(range(levels)):
        for j in range(3):
            h = ho_layer(w, "up", i, j, torch.cat([h, skips.pop()], dim=1), emb)
        if i:
            h = ho_up(w, "up", i, h)
    return w.conv("conv_out", swish(w.norm("norm_out", h)), padding=1)


def vq_encode(w, x, levels):
    h = w.conv("encoder.conv_in", x, padding=1)
    for i in range(levels):
        for j in range(2):
            h = ho_layer(w, "encoder.down", i, j, h)
        if i < levels - 1:
            h = ho_down(w, "encoder.down", i, h)
    h = ho_middle(w, "encoder.", h)
    return w.conv("quant_conv", w.conv("encoder.conv_out", swish(w.norm("encoder.norm_out", h)), padding=1))


def vq_decode(w, z, levels):
    """The nearest code, then the decoder (Esser et al. 2021)."""
    codes = w.get("quantize.embedding.weight")
    distance = (z.movedim(1, -1)[..., None, :] - codes).square().sum(-1)  # (B, H, W, codes)
    h = w.conv("decoder.conv_in", w.conv("post_quant_conv", codes[distance.argmin(-1)].movedim(-1, 1)), padding=1)
    h = ho_middle(w, "decoder.", h)
    for i in reversed(range(levels)):
        for j in range(3):
            h = ho_layer(w, "decoder.up", i, j, h)
        if i:
            h = ho_up(w, "decoder.up", i, h)
    return w.conv("decoder.conv_out", swish(w.norm("decoder.norm_out", h)), padding=1)


def ldm_resnet(w, p, x, emb):
    h = w.conv(f"{p}.in_layers.2", swish(w.norm(f"{p}.in_layers.0", x, 1e-5)), padding=1)
    h = h + w.linear(f"{p}.emb_layers.1", swish(emb))[:, :, None, None]
    h = w.conv(f"{p}.out_layers.3", swish(w.norm(f"{p}.out_layers.0", h, 1e-5)), padding=1)
    return h + (w.conv(f"{p}.skip_connection", x) if f"{p}.skip_connection" in w else x)


def ldm_attention(w, p, x, context):
    """One head."""
    q, k, v = w.linear(f"{p}.to_q", x), w.linear(f"{p}.to_k", context), w.linear(f"{p}.to_v", context)
    return w.linear(f"{p}.to_out.0", torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1) @ v)


def ldm_transformer(w, p, x, context):
    b = f"{p}.transformer_blocks.0"
    h = w.conv(f"{p}.proj_in", w.norm(f"{p}.norm", x)).flatten(2).transpose(1, 2)  # (B, HW, C)
    h = h + ldm_attention(w, f"{b}.attn1", n := w.layer_norm(f"{b}.norm1", h), n)
    h = h + ldm_attention(w, f"{b}.attn2", w.layer_norm(f"{b}.norm2", h), context)
    value, gate = w.linear(f"{b}.ff.net.0.proj", w.layer_norm(f"{b}.norm3", h)).chunk(2, dim=-1)
    h = h + w.linear(f"{b}.ff.net.2", value * F.gelu(gate))
    return x + w.conv(f"{p}.proj_out", h.transpose(1, 2).unflatten(2, x.shape[2:]))


def ldm_unet(w, x, t, context):
    """Rombach et al. 2022, by the table of `input_blocks` and `output_blocks` of cin256-v2."""
    half = w.state["time_embed.0.weight"].shape[1] // 2
    angle = t.double()[:, None] * frequencies(half, half)
    emb = w.linear("time_embed.2", swish(w.linear("time_embed.0", torch.cat([angle.cos(), angle.sin()], dim=1))))
    skips = [w.conv("input_blocks.0.0", x, padding=1)]
    for i in range(1, 12):
        if i in (3, 6, 9):
            h = w.conv(f"input_blocks.{i}.0.op", skips[-1], stride=2, padding=1)
        else:
            h = ldm_resnet(w, f"input_blocks.{i}.0", skips[-1], emb)
        skips.append(ldm_transformer(w, f"input_blocks.{i}.1", h, context) if i in (4, 5, 7, 8, 10, 11) else h)
    h = ldm_transformer(w, "middle_block.1", ldm_resnet(w, "middle_block.0", skips[-1], emb), context)
    h = ldm_resnet(w, "middle_block.2", h, emb)
    for i in range(12):
        h = ldm_resnet(w, f"output_blocks.{i}.0", torch.cat([h, skips.pop()], dim=1), emb)
        if i < 9:
            h = ldm_transformer(w, f"output_blocks.{i}.1", h, context)
        if i in (2, 5, 8):
            h = w.conv(f"output_blocks.{i}.2.conv", F.interpolate(h, scale_factor=2), padding=1)
    return w.conv("out.2", swish(w.norm("out.0", h, 1e-5)), padding=1)
