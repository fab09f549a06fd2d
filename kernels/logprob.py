"""Log-probabilities of target tokens under a linear head, without the matrix of logits.

The vocabulary is processed in tiles: only [tokens, rows of a tile] logits exist at a time, and the backward pass
recomputes them. Tiling the vocabulary rather than the tokens makes each tile's weight gradient one product over all
tokens, which sums in fp32 without an fp32 copy of the whole weight.

Shapes: t tokens, d hidden_size, v vocabulary, r rows of a tile.
"""

import torch
from torch import Tensor

TILE_ROWS = 4096


def linear_logprob(hidden_td: Tensor, weight_vd: Tensor, targets_t: Tensor, tile_rows: int = TILE_ROWS) -> Tensor:
    """log softmax(hidden weight^T)[target] of each token, fp32 [t]; differentiable in `hidden_td` and `weight_vd`.

    `hidden_td` and `weight_vd` have one dtype, bf16 or fp32, in which the products run; `targets_t` is int64 [t].
    Softmax statistics, the sum over the vocabulary and the hidden states' gradient are accumulated in fp32. Gradients
    come in the inputs' dtype. `tile_rows` bounds the memory (two matrices of [t, tile_rows]), not the result.
    """
    return _LinearLogprob.apply(hidden_td, weight_vd, targets_t, tile_rows)


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_td, weight_vd, targets_t, tile_rows):
        tokens = len(hidden_td)
        logsumexp_t = hidden_td.new_full((tokens,), -torch.inf, dtype=torch.float32)
        target_logit_t = torch.zeros_like(logsumexp_t)
        buffers = _buffers(hidden_td, tile_rows)
        for start in range(0, len(weight_vd), tile_rows):
            logits_tr = _logits(hidden_td, weight_vd[start : start + tile_rows], buffers)
            column_t, inside_t = _columns(targets_t, start, logits_tr.shape[1])
            logit_t = logits_tr.gather(1, column_t[:, None])[:, 0]
            target_logit_t = torch.where(inside_t, logit_t, target_logit_t)
            highest_t = logits_tr.amax(1)
            tile_t = logits_tr.sub_(highest_t[:, None]).exp_().sum(1).log_() + highest_t
            logsumexp_t = torch.logaddexp(logsumexp_t, tile_t)
        ctx.save_for_backward(hidden_td, weight_vd, targets_t, logsumexp_t)
        ctx.tile_rows = tile_rows
        return target_logit_t - logsumexp_t

    @staticmethod
    def backward(ctx, grad_t):
        """The logits' gradient is -g (softmax - onehot(target)), with g the incoming gradient.

        A token's g scales a whole row, so it is applied after the products, or to the hidden states before them.
        """
        hidden_td, weight_vd, targets_t, logsumexp_t = ctx.saved_tensors
        tile_rows = ctx.tile_rows
        scaled_td = (hidden_td * -grad_t[:, None]).to(hidden_td.dtype)
        grad_hidden_td = torch.zeros_like(hidden_td, dtype=torch.float32)
        grad_weight_vd = torch.empty_like(weight_vd)
        buffers = _buffers(hidden_td, tile_rows)
        for start in range(0, len(weight_vd), tile_rows):
            weight_rd = weight_vd[start : start + tile_rows]
            logits_tr = _logits(hidden_td, weight_rd, buffers)
            column_t, inside_t = _columns(targets_t, start, len(weight_rd))
            slope_tr = logits_tr.sub_(logsumexp_t[:, None]).exp_()
            slope_tr.scatter_add_(1, column_t[:, None], -inside_t[:, None].to(slope_tr.dtype))
            slope_tr = _like(slope_tr, hidden_td, buffers)
            if hidden_td.dtype == torch.float32:
                grad_hidden_td.addmm_(slope_tr, weight_rd)
            else:
                grad_hidden_td += slope_tr @ weight_rd
            torch.mm(slope_tr.t(), scaled_td, out=grad_weight_vd[start : start + tile_rows])
        return grad_hidden_td.mul_(-grad_t[:, None]).to(hidden_td.dtype), grad_weight_vd, None, None


def _buffers(hidden_td: Tensor, tile_rows: int) -> tuple[Tensor, Tensor]:
    """Memory of one tile, fp32 and in the inputs' dtype. All tiles reuse it, since fresh memory costs page faults."""
    size = len(hidden_td) * tile_rows
    single = hidden_td.new_empty(size, dtype=torch.float32)
    return single, single if hidden_td.dtype == torch.float32 else hidden_td.new_empty(size)


def _logits(hidden_td: Tensor, weight_rd: Tensor, buffers: tuple[Tensor, Tensor]) -> Tensor:
    """hidden weight^T, fp32 [t, r], in the first buffer. On a GPU the product itself returns fp32."""
    shape = (len(hidden_td), len(weight_rd))
    single, low = (buffer[: shape[0] * shape[1]].view(shape) for buffer in buffers)
    if hidden_td.dtype == torch.float32:
        return torch.mm(hidden_td, weight_rd.t(), out=single)
    if hidden_td.is_cuda:
        return torch.mm(hidden_td, weight_rd.t(), out_dtype=torch.float32, out=single)
    return single.copy_(torch.mm(hidden_td, weight_rd.t(), out=low))


def _like(slope_tr: Tensor, hidden_td: Tensor, buffers: tuple[Tensor, Tensor]) -> Tensor:
    """`slope_tr` in the inputs' dtype, in the second buffer."""
    if hidden_td.dtype == torch.float32:
        return slope_tr
    return buffers[1][: slope_tr.numel()].view(slope_tr.shape).copy_(slope_tr)


def _columns(targets_t: Tensor, start: int, rows: int) -> tuple[Tensor, Tensor]:
    """Each target's column in the tile at `start`, or 0, and whether the target lies in the tile."""
    column_t = targets_t - start
    inside_t = (column_t >= 0) & (column_t < rows)
    return torch.where(inside_t, column_t, 0), inside_t
