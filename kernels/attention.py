"""Causal attention over packed sequences: the training path.

Shapes: t tokens of all segments, s segments, h query heads, k key-value heads, d head_dim.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kernels import launch
from kernels.launch import Attention
from kernels.rope import Rope, apply_rope
from kernels.segments import Segments

ROWS = 256  # queries per block: bounds the memory, and skips most of the keys behind each query


class VarlenAttention:
    """Attention for packed training sequences, callable as `attend` of `model.llama.Llama.forward`."""

    def __init__(self, segments: Segments, attention: Attention = "triton"):
        self.segments, self.attention = segments, attention

    def __call__(self, layer: int, qk_thd: Tensor, v_tkd: Tensor, rope: Rope, norm: nn.Module | None = None) -> Tensor:
        kv_heads, triton = v_tkd.shape[1], launch.use_triton(self.attention, v_tkd)
        q_thd, k_tkd = apply_rope(qk_thd, rope, norm, triton).split((qk_thd.shape[1] - kv_heads, kv_heads), dim=1)
        v_tkd = v_tkd.contiguous()  # a view would keep the unrotated queries and keys alive until backward
        return varlen_attention(q_thd, k_tkd, v_tkd, self.segments, triton)


def varlen_attention(q_thd: Tensor, k_tkd: Tensor, v_tkd: Tensor, segments: Segments, triton: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over the keys that each query sees; [t, h, d] in q's dtype, differentiable in q, k, v.
    Scores, weights and their gradients are fp32."""
    if not triton:
        return _VarlenAttention.apply(q_thd, k_tkd, v_tkd, segments, forward, backward)
    from kernels import attention_triton

    return _VarlenAttention.apply(q_thd, k_tkd, v_tkd, segments, attention_triton.forward, attention_triton.backward)


class _VarlenAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_thd, k_tkd, v_tkd, segments, forward, backward):
        out_thd, lse = forward(q_thd, k_tkd, v_tkd, segments)
        ctx.save_for_backward(q_thd, k_tkd, v_tkd, out_thd, lse)
        ctx.segments, ctx.function = segments, backward
        return out_thd

    @staticmethod
    def backward(ctx, grad_thd):
        q_thd, k_tkd, v_tkd, out_thd, lse = ctx.saved_tensors
        return *ctx.function(grad_thd, q_thd, k_tkd, v_tkd, ctx.segments, out_thd, lse), None, None, None


def forward(q_thd: Tensor, k_tkd: Tensor, v_tkd: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """The attention's result [t, h, d] and its log-sum-exps [t, h], fp32."""
    out_thd = torch.empty_like(q_thd, memory_format=torch.contiguous_format)
    lse_th = q_thd.new_empty(q_thd.shape[:2], dtype=torch.promote_types(q_thd.dtype, torch.float32))
    attend, rows = (_fused, len(q_thd)) if q_thd.device.type == "cpu" else (_plain, ROWS)
    for queries, keys, diagonal in _blocks(segments, rows):
        part_rhd, part_rh = attend(q_thd[queries], k_tkd[keys], v_tkd[keys], diagonal)
        if not diagonal:  # the diagonal block has come first
            so_far_rh, out_rhd = lse_th[queries], out_thd[queries]
            share_rh1 = torch.sigmoid(part_rh - so_far_rh)[..., None]
            part_rhd = torch.lerp(out_rhd.to(share_rh1.dtype), part_rhd.to(share_rh1.dtype), share_rh1)
            part_rh = torch.logaddexp(part_rh, so_far_rh)
        out_thd[queries], lse_th[queries] = part_rhd, part_rh
    return out_thd, lse_th


def backward(
    grad_thd: Tensor, q_thd: Tensor, k_tkd: Tensor, v_tkd: Tensor, segments: Segments, out_thd: Tensor, lse_th: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, with weights P recomputed for `ROWS` queries at a time. With o the result and
    c = 1 / sqrt(d): dv = P^T do, dS = P (do v^T - sum_d do o), dq = c dS k, dk = c dS^T q."""
    heads, scale = q_thd.shape[1], q_thd.shape[2] ** -0.5
    q, k, v, grad = (_by_head(x, heads, lse_th.dtype) for x in (q_thd, k_tkd, v_tkd, grad_thd))
    q = q * scale
    lse_ht1 = lse_th.t()[..., None]
    mean_ht1 = torch.linalg.vecdot(grad, _by_head(out_thd, heads, grad.dtype))[..., None]
    grad_q, grad_k, grad_v = (torch.zeros_like(q) for _ in range(3))
    for rows, keys, diagonal in _blocks(segments, ROWS):
        weights = torch.bmm(q[:, rows], k[:, keys].transpose(1, 2)).sub_(lse_ht1[:, rows]).exp_()
        if diagonal:
            weights.tril_()
        slope = torch.bmm(grad[:, rows], v[:, keys].transpose(1, 2)).sub_(mean_ht1[:, rows]).mul_(weights)
        grad_q[:, rows] += torch.bmm(slope, k[:, keys])
        grad_k[:, keys] += torch.bmm(slope.transpose(1, 2), q[:, rows])
        grad_v[:, keys] += torch.bmm(weights.transpose(1, 2), grad[:, rows])
    grad_k, grad_v = (x.unflatten(0, (k_tkd.shape[1], -1)).sum(1) for x in (grad_k, grad_v))
    grad_q, grad_k, grad_v = (x.transpose(0, 1).to(q_thd.dtype) for x in (grad_q.mul_(scale), grad_k, grad_v))
    return grad_q, grad_k, grad_v


def _blocks(segments: Segments, most: int) -> Iterator[tuple[slice, slice, bool]]:
    """Blocks of at most `most` queries, and keys: first those of the same tokens, of which a query sees those up to
    itself (True), then keys before them, which all queries see (False)."""
    for start, end, prefix in segments.ranges():
        for first in range(start, end, most):
            queries = slice(first, min(first + most, end))
            yield queries, queries, True
            for keys in (prefix, range(start, first)):
                if keys:
                    yield queries, slice(keys.start, keys.stop), False


def _by_head(x_tkd: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """[h, t, d], contiguous; key-value heads are repeated."""
    return x_tkd.to(dtype).transpose(0, 1).repeat_interleave(heads // x_tkd.shape[1], 0)


def bounded(q: Tensor, k: Tensor) -> bool:
    """Whether no product of a query and a key can overflow, or be nan: such rows PyTorch's kernel for CPUs takes to see
    no key, and makes them 0."""
    largest = [max(-float(low), float(high)) for low, high in (x.aminmax() for x in (q, k))]
    return math.prod(largest) * q.shape[-1] < torch.finfo(torch.float32).max


def _fused(q_rhd: Tensor, k_nkd: Tensor, v_nkd: Tensor, diagonal: bool) -> tuple[Tensor, Tensor]:
    """Attention [r, h, d] of a block, and the logarithm of its sum of exponentials [r, h], by PyTorch's kernel."""
    if not bounded(q_rhd, k_nkd):
        return _plain(q_rhd, k_nkd, v_nkd, diagonal)
    parts = (x.transpose(0, 1)[None] for x in (q_rhd, k_nkd, v_nkd))
    out_1hrd, lse_1hr = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*parts, is_causal=diagonal)
    return out_1hrd[0].transpose(0, 1), lse_1hr[0].t()


def _plain(q_rhd: Tensor, k_nkd: Tensor, v_nkd: Tensor, diagonal: bool) -> tuple[Tensor, Tensor]:
    """`_fused` on other devices, in plain PyTorch."""
    dtype = torch.promote_types(q_rhd.dtype, torch.float32)
    q, k, v = (_by_head(x, q_rhd.shape[1], dtype) for x in (q_rhd, k_nkd, v_nkd))
    scores = torch.bmm(q * q.shape[2] ** -0.5, k.transpose(1, 2))
    if diagonal:
        scores.masked_fill_(torch.ones_like(scores[0], dtype=torch.bool).triu_(1), -torch.inf)
    lse_hr = scores.logsumexp(-1)
    return torch.bmm(scores.sub_(lse_hr[..., None]).exp_(), v).transpose(0, 1), lse_hr.t()
