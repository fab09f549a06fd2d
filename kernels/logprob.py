"""Log-probabilities of target tokens under a linear head, without the matrix of logits.

Only the logits of one tile of the vocabulary exist at a time, and backward recomputes them. A tile's weight gradient is
one product over all tokens, which sums in fp32.

Shapes: t tokens, d hidden_size, v vocabulary, r rows of a tile.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

TILE_ROWS = 4096


def linear_logprob(hidden_td: Tensor, weight_vd: Tensor, targets_t: Tensor, tile_rows: int = TILE_ROWS) -> Tensor:
    """log softmax(hidden weight^T)[target] of each token, fp32 [t]; differentiable in `hidden_td` and `weight_vd`.

    These have one dtype, bf16 or fp32; sums are in fp32. `targets_t` is int64. `tile_rows` bounds the memory.
    """
    return _LinearLogprob.apply(hidden_td, weight_vd, targets_t, tile_rows)


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_td, weight_vd, targets_t, tile_rows):
        logsumexp_t = hidden_td.new_full((len(hidden_td),), -torch.inf, dtype=torch.float32)
        target_logit_t = torch.zeros_like(logsumexp_t)
        for _, column_t, inside_t, logits_tr, _ in _tiles(hidden_td, weight_vd, targets_t, tile_rows):
            target_logit_t = torch.where(inside_t, logits_tr.gather(1, column_t[:, None])[:, 0], target_logit_t)
            highest_t = logits_tr.amax(1)
            tile_t = logits_tr.sub_(highest_t[:, None]).exp_().sum(1).log_() + highest_t
            logsumexp_t = torch.logaddexp(logsumexp_t, tile_t)
        ctx.save_for_backward(hidden_td, weight_vd, targets_t, logsumexp_t)
        ctx.tile_rows = tile_rows
        return target_logit_t - logsumexp_t

    @staticmethod
    def backward(ctx, grad_t):
        """The logits' gradient is -g (softmax - onehot(target)); g scales a row, so it is applied outside the loop."""
        hidden_td, weight_vd, targets_t, logsumexp_t = ctx.saved_tensors
        scaled_td = (hidden_td * -grad_t[:, None]).to(hidden_td.dtype)
        grad_hidden_td = torch.zeros_like(hidden_td, dtype=torch.float32)
        grad_weight_vd = torch.empty_like(weight_vd) if ctx.needs_input_grad[1] else None
        for rows, column_t, inside_t, logits_tr, low_tr in _tiles(hidden_td, weight_vd, targets_t, ctx.tile_rows):
            slope_tr = logits_tr.sub_(logsumexp_t[:, None]).exp_()
            slope_tr.scatter_add_(1, column_t[:, None], -inside_t[:, None].to(slope_tr.dtype))
            if hidden_td.dtype == torch.float32:
                grad_hidden_td.addmm_(slope_tr, weight_vd[rows])
            else:
                slope_tr = low_tr.copy_(slope_tr)
                grad_hidden_td += slope_tr @ weight_vd[rows]
            if grad_weight_vd is not None:
                torch.mm(slope_tr.t(), scaled_td, out=grad_weight_vd[rows])
        return grad_hidden_td.mul_(-grad_t[:, None]).to(hidden_td.dtype), grad_weight_vd, None, None


def _tiles(
    hidden_td: Tensor, weight_vd: Tensor, targets_t: Tensor, tile_rows: int
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
    """The vocabulary's tiles: rows, each target's column there or 0, whether it lies there, the logits in fp32 [t, r],
    and memory of their shape in the inputs' dtype. Tiles reuse the memory, since fresh memory costs page faults."""
    tokens, dtype = len(hidden_td), hidden_td.dtype
    single = hidden_td.new_empty(tokens * tile_rows, dtype=torch.float32)
    low = single if dtype == torch.float32 else torch.empty_like(single, dtype=dtype)
    for start in range(0, len(weight_vd), tile_rows):
        weight_rd = weight_vd[start : start + tile_rows]
        size = len(weight_rd)
        logits_tr, low_tr = (memory[: tokens * size].view(tokens, size) for memory in (single, low))
        if dtype == torch.float32:
            torch.mm(hidden_td, weight_rd.t(), out=logits_tr)
        elif hidden_td.is_cuda:  # there the product itself returns fp32
            torch.mm(hidden_td, weight_rd.t(), out_dtype=torch.float32, out=logits_tr)
        else:
            logits_tr.copy_(torch.mm(hidden_td, weight_rd.t(), out=low_tr))
        column_t = targets_t - start
        inside_t = (column_t >= 0) & (column_t < size)
        yield slice(start, start + size), torch.where(inside_t, column_t, 0), inside_t, logits_tr, low_tr
