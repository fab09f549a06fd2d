"""Log-probabilities of target tokens under a linear head in Triton; `kernels.logprob` is the eager reference.

With hidden state h_t, head W and target y_t of token t:

    z_tv = h_t . W_v     L_t = log sum_v exp z_tv     value_t = z_t,y_t - L_t

and for an incoming gradient g, with S the slope, that is the gradient of the logits z:

    S_tv = g_t ([v = y_t] - exp(z_tv - L_t))     dh_t = sum_v S_tv W_v     dW_v = sum_t S_tv h_t

Forward stores L and the targets' logits. Backward recomputes the logits of one tile of the vocabulary at a time and
stores the tile's S, in the inputs' dtype; the two products with S are torch's.

Tiling. A program of `_forward` has BLOCK_T tokens and a slice of the vocabulary, over which it walks in steps of
BLOCK_V rows; torch merges the slices. A program of `_slope` has BLOCK_T tokens and BLOCK_V rows. A program of `_target`
multiplies BLOCK_T tokens with the rows of their targets, each with each, and keeps the diagonal: so the target's logit
is summed in the same order as the logits in L, and cancels exactly where it dominates.

Shapes: t tokens, d and k hidden_size, v vocabulary, r rows of a tile, s slices.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import launch
from kernels.launch import Launch

TILE_ROWS = 4096

# Tiles, BLOCK_T by BLOCK_V. Those of 80 also fit cards with 99 KiB of shared memory, and an A100 twice.
TARGET = {80: Launch(64, 64, 4, 4), 90: Launch(64, 64, 4, 4), 100: Launch(64, 64, 4, 4)}
WIDE = {80: Launch(128, 128, 4, 4), 90: Launch(128, 256, 8, 4), 100: Launch(128, 256, 8, 4)}
DEPTH = {80: 64, 90: 128, 100: 128}  # BLOCK_K in bytes
PROGRAMS = 2048  # of `_forward`, if the vocabulary has enough steps: an uneven finish then costs little
# Blocks of tokens whose programs run at the same time: few enough for the L2 cache, and enough to share its rows of W.
GROUP: tl.constexpr = tl.constexpr(16)


@triton.jit
def _place(tokens, pieces, BLOCK_T: tl.constexpr):
    """This program's block of tokens and piece of the vocabulary, in an order that keeps GROUP blocks in the cache."""
    program = tl.program_id(0)
    first = program // (GROUP * pieces) * GROUP
    width = tl.minimum(tl.cdiv(tokens, BLOCK_T) - first, GROUP)
    inside = program - first * pieces
    return first + inside % width, inside // width


@triton.jit
def _logits(
    hidden, weight, token, row, hidden_stride, weight_stride,
    SIZE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """z of the tokens `token` and the rows `row` of the weight, fp32 [BLOCK_T, BLOCK_V]."""
    k = tl.arange(0, BLOCK_K)
    # 64 bits: t d and v d pass 2^31.
    hidden_tk = hidden + token.to(tl.int64)[:, None] * hidden_stride + k[None, :]
    weight_kv = weight + row.to(tl.int64)[None, :] * weight_stride + k[:, None]
    logits = tl.zeros((BLOCK_T, BLOCK_V), tl.float32)
    for start in range(0, SIZE, BLOCK_K):
        if SIZE % BLOCK_K == 0:
            left, right = tl.load(hidden_tk), tl.load(weight_kv)
        else:
            left = tl.load(hidden_tk, mask=start + k[None, :] < SIZE, other=0.0)
            right = tl.load(weight_kv, mask=start + k[:, None] < SIZE, other=0.0)
        logits = tl.dot(left, right, logits, input_precision="ieee")
        hidden_tk += BLOCK_K
        weight_kv += BLOCK_K
    return logits


@triton.jit(do_not_specialize=["tokens"])
def _target(
    hidden, weight,  # [t, d], [v, d]; bf16, fp16 or fp32, with any row stride
    targets, target_logit,  # [t] int64, and written: z of the target, [t] fp32
    tokens, vocabulary, hidden_stride, weight_stride,
    SIZE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, BLOCK_T)
    t = tl.program_id(0) * BLOCK_T + i
    token = tl.minimum(t, tokens - 1)
    target = tl.load(targets + token)
    # A target outside the vocabulary reads no memory and has the logit 0, as in the eager version.
    inside = (target >= 0) & (target < vocabulary)
    row = tl.where(inside, target, 0)
    logits = _logits(hidden, weight, token, row, hidden_stride, weight_stride, SIZE, BLOCK_T, BLOCK_V, BLOCK_K)
    logit = tl.sum(tl.where(i[:, None] == i[None, :], logits, 0.0), 1)
    tl.store(target_logit + t, tl.where(inside, logit, 0.0), mask=t < tokens)


@triton.jit(do_not_specialize=["tokens"])
def _forward(
    hidden, weight,  # as above
    logsumexp,  # written: L of each slice, [s, t] fp32
    tokens, vocabulary, slices, slice_rows, hidden_stride, weight_stride,
    SIZE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    block, piece = _place(tokens, slices, BLOCK_T)
    t = block * BLOCK_T + tl.arange(0, BLOCK_T)
    # The last token and row stand in for those behind them, so the inner loop needs no mask.
    token = tl.minimum(t, tokens - 1)
    peak = tl.full((BLOCK_T,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_T,), tl.float32)
    first = piece * slice_rows
    for start in range(first, tl.minimum(first + slice_rows, vocabulary), BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        row = tl.minimum(v, vocabulary - 1)
        logits = _logits(hidden, weight, token, row, hidden_stride, weight_stride, SIZE, BLOCK_T, BLOCK_V, BLOCK_K)
        logits = tl.where(v[None, :] < vocabulary, logits, -float("inf"))
        # Every step has a row of the vocabulary, so the maximum is finite from the first step on.
        new_peak = tl.maximum(peak, tl.max(logits, 1))
        total = total * tl.exp(peak - new_peak) + tl.sum(tl.exp(logits - new_peak[:, None]), 1)
        peak = new_peak
    tl.store(logsumexp + piece * tokens + t, peak + tl.log(total), mask=t < tokens)


@triton.jit(do_not_specialize=["tokens", "start"])
def _slope(
    hidden, weight,  # as above, but weight [r, d]: the vocabulary's rows from `start` on
    targets, logsumexp, grad,  # [t] int64; L and g, [t] fp32
    out,  # written: S, [t, r], like hidden
    tokens, rows, start, hidden_stride, weight_stride, out_stride,
    SIZE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    block, piece = _place(tokens, tl.cdiv(rows, BLOCK_V), BLOCK_T)
    t = block * BLOCK_T + tl.arange(0, BLOCK_T)
    r = piece * BLOCK_V + tl.arange(0, BLOCK_V)
    token, row = tl.minimum(t, tokens - 1), tl.minimum(r, rows - 1)
    logits = _logits(hidden, weight, token, row, hidden_stride, weight_stride, SIZE, BLOCK_T, BLOCK_V, BLOCK_K)
    target = (tl.load(targets + token) - start).to(tl.int32)
    softmax = tl.exp(logits - tl.load(logsumexp + token)[:, None])
    # Both alternatives depend on the logits: the compiler would make a matrix of 0 and 1 ahead, and lack registers.
    softmax = tl.where(r[None, :] == target[:, None], softmax - 1.0, softmax)
    slope = softmax * -tl.load(grad + token)[:, None]
    pointers = out + t.to(tl.int64)[:, None] * out_stride + r[None, :]
    tl.store(pointers, slope.to(out.dtype.element_ty), mask=(t[:, None] < tokens) & (r[None, :] < rows))


def linear_logprob(hidden_td: Tensor, weight_vd: Tensor, targets_t: Tensor, tile_rows: int = TILE_ROWS) -> Tensor:
    """`kernels.logprob.linear_logprob`, also in fp16. Hidden sizes that are no multiple of 16 are slow.
    `ValueError` for inputs that do not go together."""
    given = (hidden_td.dtype, targets_t.dtype, len(targets_t), hidden_td.shape[1])
    if given != (weight_vd.dtype, torch.int64, len(hidden_td), weight_vd.shape[1]):
        raise ValueError("hidden states, weight and targets do not go together")
    hidden_td, weight_vd = (x if x.stride(1) == 1 else x.contiguous() for x in (hidden_td, weight_vd))
    return _LinearLogprob.apply(hidden_td, weight_vd, targets_t.contiguous(), tile_rows)


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_td, weight_vd, targets_t, tile_rows):
        value_t, logsumexp_t = forward(hidden_td, weight_vd, targets_t)
        ctx.save_for_backward(hidden_td, weight_vd, targets_t, logsumexp_t)
        ctx.tile_rows = tile_rows
        return value_t

    @staticmethod
    def backward(ctx, grad_t):
        hidden_td, weight_vd, targets_t, logsumexp_t = ctx.saved_tensors
        vocabulary, tile_rows = len(weight_vd), ctx.tile_rows
        grad_hidden_td = hidden_td.new_zeros(hidden_td.shape, dtype=torch.float32)
        grad_weight_vd = weight_vd.new_empty(weight_vd.shape) if ctx.needs_input_grad[1] else None
        # The kernel needs a row stride that is a multiple of 16. oneDNN multiplies the memory behind a row's end by 0,
        # which must not be NaN.
        buffer_tr = hidden_td.new_zeros(len(hidden_td), triton.cdiv(min(tile_rows, vocabulary), 16) * 16)
        for start in range(0, vocabulary, tile_rows):
            weight_rd = weight_vd[start : start + tile_rows]
            slope_tr = buffer_tr[:, : len(weight_rd)]
            slope(hidden_td, weight_rd, targets_t, logsumexp_t, grad_t.contiguous(), start, slope_tr)
            grad_hidden_td += _product(slope_tr, weight_rd)
            if grad_weight_vd is not None:
                grad_weight_vd[start : start + tile_rows] = _product(slope_tr.t(), hidden_td)
        return grad_hidden_td.to(hidden_td.dtype), grad_weight_vd, None, None


def forward(hidden_td: Tensor, weight_vd: Tensor, targets_t: Tensor) -> tuple[Tensor, Tensor]:
    """The value and L, fp32 [t] each. Rows and `targets_t` must be contiguous."""
    tokens, vocabulary, strides = len(hidden_td), len(weight_vd), (hidden_td.stride(0), weight_vd.stride(0))
    tile, constants = _launch(WIDE, hidden_td)
    blocks, steps = triton.cdiv(tokens, tile.m), triton.cdiv(vocabulary, tile.n)
    slice_steps = max(steps * blocks // PROGRAMS, 1)
    slices = triton.cdiv(steps, slice_steps)
    logsumexp_st = hidden_td.new_empty(slices, tokens, dtype=torch.float32)
    target_logit_t = hidden_td.new_empty(tokens, dtype=torch.float32)
    if tokens:
        sizes = (tokens, vocabulary, slices, slice_steps * tile.n)
        _forward[(blocks * slices,)](hidden_td, weight_vd, logsumexp_st, *sizes, *strides, **constants)
        tile, constants = _launch(TARGET, hidden_td)
        inputs = (hidden_td, weight_vd, targets_t, target_logit_t)
        _target[(triton.cdiv(tokens, tile.m),)](*inputs, tokens, vocabulary, *strides, **constants)
    logsumexp_t = logsumexp_st.logsumexp(0)
    return target_logit_t - logsumexp_t, logsumexp_t


def slope(
    hidden_td: Tensor, weight_rd: Tensor, targets_t: Tensor, lse_t: Tensor, grad_t: Tensor, start: int, out_tr: Tensor
) -> None:
    """Write S of the vocabulary's rows from `start` on to `out_tr`. Rows and tensors [t] must be contiguous."""
    (tokens, rows), (tile, constants) = out_tr.shape, _launch(WIDE, hidden_td)
    sizes = (tokens, rows, start, hidden_td.stride(0), weight_rd.stride(0), out_tr.stride(0))
    if tokens:
        grid = (triton.cdiv(tokens, tile.m) * triton.cdiv(rows, tile.n),)
        _slope[grid](hidden_td, weight_rd, targets_t, lse_t, grad_t, out_tr, *sizes, **constants)


def _launch(table: dict[int, Launch], hidden_td: Tensor) -> tuple[Launch, dict[str, int]]:
    """A kernel's tile on this device, and the constants of its launch."""
    target = launch.target(hidden_td.device)
    tile, depth = table[target], DEPTH[target] // hidden_td.element_size()
    return tile, {"SIZE": hidden_td.shape[1], "BLOCK_T": tile.m, "BLOCK_V": tile.n, "BLOCK_K": depth} | tile.options


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b; fp32 on a GPU, so that partial sums are never rounded to 16 bits."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda and a.dtype != torch.float32 else torch.mm(a, b)
