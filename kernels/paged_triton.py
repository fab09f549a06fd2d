"""Attention over a paged KV cache in Triton: prefill in chunks, decoding, and runs of blocks that sequences share.

A token's result is merged from its partial results over runs of its sequence (`kernels.metadata` cuts them):

    o_j = sum_n exp(S_n - l_j) v_n     l_j = log sum_n exp S_n     over the keys n of run j that the token sees
    o = sum_j exp(l_j - l) o_j         l = log sum_j exp l_j       with S_n = q . k_n / sqrt(d)

Tiling. A program of `_read` has one key-value head and one tile: BLOCK_M rows, each a token and one of the head's g
query heads, which all read the same keys, in steps of BLOCK_N, through the block table. A token with a single entry
gets its result there; for the others `_merge` has a program for each token and key-value head. Programs of a tile
padded to a CUDA graph's size exit at once.

Shapes: t tokens, h query heads, k key-value heads, g = h / k, d head_dim, n blocks of s tokens in the cache, m blocks
of all runs, w tiles, e entries.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from kernels import launch
from kernels.attention_triton import LOG2_E
from kernels.launch import Attention, Launch, to_device
from kernels.metadata import NARROW_ROWS, TILE_WIDTH, WIDE_ROWS, AttentionMetadata, TileSizes, build_tiles
from kernels.rope import Rope
from kernels.rope_triton import rotate_and_store

# Tiles by target and largest head size. Those of 80 also fit cards with 99 KiB of shared memory; the largest spills.
NARROW = {
    80: {64: Launch(NARROW_ROWS, 64, 4, 5), 128: Launch(NARROW_ROWS, 64, 4, 3), 256: Launch(NARROW_ROWS, 32, 4, 2)},
    90: {128: Launch(NARROW_ROWS, 64, 4, 5), 256: Launch(NARROW_ROWS, 32, 4, 2)},
    100: {128: Launch(NARROW_ROWS, 64, 4, 4), 256: Launch(NARROW_ROWS, 32, 4, 2)},
}
WIDE = {
    80: {64: Launch(WIDE_ROWS, 64, 4, 3), 128: Launch(WIDE_ROWS, 64, 8, 3), 256: Launch(WIDE_ROWS, 32, 8, 3)},
    90: {128: Launch(WIDE_ROWS, 32, 4, 3), 256: Launch(WIDE_ROWS, 16, 8, 2)},
    100: {128: Launch(WIDE_ROWS, 64, 8, 3), 256: Launch(WIDE_ROWS, 16, 8, 1)},
}


@triton.jit
def _cached(cache, table, n, length, block_stride, SIZE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Keys or values n of a sequence for one head, [BLOCK_N, BLOCK_D]; zeros from `length` on and beyond d."""
    columns = tl.arange(0, BLOCK_D)
    seen = n < length
    blocks = tl.load(table + n // SIZE, mask=seen, other=0).to(tl.int64)
    rows = cache + blocks * block_stride + (n % SIZE) * D
    return tl.load(rows[:, None] + columns[None, :], mask=seen[:, None] & (columns[None, :] < D), other=0.0)


# Parts of one tensor have any alignment, which needs no other compilation.
UNALIGNED = ["positions", "table", "tiles", "readers", "starts"]


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def _read(
    q, keys, values,  # [t, h, d], contiguous in d; [n, k, s, d] twice, contiguous; bf16, fp16 or fp32
    out, parts, lses,  # written: [t, h, d] like q; o_j and l_j, [e, h, d] and [e, h] fp32
    positions, table, tiles,  # [t], [m], [w, 8]; int32
    readers, starts,  # int32: the token of each entry [e], and where each token's entries begin [t + 1]
    heads, scale_log2, q_token, q_head, block_stride,
    GROUP: tl.constexpr, SIZE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    kv_head, tile = tl.program_id(0), tiles + tl.program_id(1) * WIDTH
    start, stop = tl.load(tile + 4), tl.load(tile + 5)
    if start >= stop:
        return
    first_block, tokens = tl.load(tile + 1), tl.load(tile + 2)
    table += tl.load(tile)
    keys += kv_head * SIZE * D
    values += kv_head * SIZE * D

    rows, columns = start + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    real = rows < stop
    entry = tl.load(tile + 3) + rows // GROUP
    head = kv_head * GROUP + rows % GROUP
    token = tl.load(readers + entry, mask=real, other=0)
    alone = tl.load(starts + token + 1, mask=real, other=0) - tl.load(starts + token, mask=real, other=0) == 1
    position = tl.load(positions + token, mask=real, other=-1)
    seen = tl.minimum(position - first_block * SIZE + 1, tokens)  # of the run's keys
    in_tile = real[:, None] & (columns[None, :] < D)
    query_rows = q + token.to(tl.int64) * q_token + head * q_head
    queries = tl.load(query_rows[:, None] + columns[None, :], mask=in_tile, other=0.0)

    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    peak = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    longest = tl.max(seen, 0)
    seen_by_all = tl.maximum(tl.min(tl.where(real, seen, longest), 0), 0) // BLOCK_N * BLOCK_N
    for masked in tl.static_range(2):
        first, last = (seen_by_all, longest) if masked else (0, seen_by_all)
        # Two pipelines would need more registers than there are, and few steps are masked.
        for n0 in tl.range(first, last, BLOCK_N, num_stages=1 if masked else None):
            n = n0 + tl.arange(0, BLOCK_N)
            k = _cached(keys, table, n, longest, block_stride, SIZE, D, BLOCK_D)
            v = _cached(values, table, n, longest, block_stride, SIZE, D, BLOCK_D)
            scores = tl.dot(queries, k.T, input_precision="ieee")
            if masked:
                scores = tl.where(n[None, :] < seen[:, None], scores, -float("inf"))
            new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2)
            finite = tl.where(new_peak == -float("inf"), 0.0, new_peak)  # a row that has seen no key
            weights = tl.exp2(scores * scale_log2 - finite[:, None])
            rescale = tl.exp2(peak - finite)
            acc = tl.dot(weights.to(v.dtype), v, acc * rescale[:, None], input_precision="ieee")
            total = total * rescale + tl.sum(weights, 1)
            peak = new_peak

    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    out_rows = out + (token.to(tl.int64) * heads + head) * D
    tl.store(out_rows[:, None] + columns[None, :], result.to(out.dtype.element_ty), mask=in_tile & alone[:, None])
    part = entry.to(tl.int64) * heads + head
    tl.store((parts + part * D)[:, None] + columns[None, :], result, mask=in_tile & ~alone[:, None])
    tl.store(lses + part, (peak + tl.log2(total)) / LOG2_E, mask=real & ~alone)


@triton.jit(do_not_specialize_on_alignment=["starts", "entries"])
def _merge(
    out, parts, lses,  # as above
    starts, entries,  # int32: where each token's entries begin [t + 1], and the entries by token [e]
    heads,
    GROUP: tl.constexpr, BLOCK_G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    token, kv_head = tl.program_id(0), tl.program_id(1)
    start, stop = tl.load(starts + token), tl.load(starts + token + 1)
    if stop - start == 1:
        return
    member, columns = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    real = member < GROUP
    in_tile = real[:, None] & (columns[None, :] < D)
    head = kv_head * GROUP + member
    acc = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    peak = tl.full((BLOCK_G,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_G,), tl.float32)
    for i in range(start, stop):
        part = tl.load(entries + i).to(tl.int64) * heads + head
        lse = tl.load(lses + part, mask=real, other=-float("inf"))
        values = tl.load((parts + part * D)[:, None] + columns[None, :], mask=in_tile, other=0.0)
        new_peak = tl.maximum(peak, lse)
        finite = tl.where(new_peak == -float("inf"), 0.0, new_peak)
        weight, rescale = tl.exp(lse - finite), tl.exp(peak - finite)
        acc = acc * rescale[:, None] + values * weight[:, None]
        total = total * rescale + weight
        peak = new_peak
    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    out_rows = out + (token.to(tl.int64) * heads + head) * D
    tl.store(out_rows[:, None] + columns[None, :], result.to(out.dtype.element_ty), mask=in_tile)


class DeviceTiles:
    """The parts of `kernels.metadata.Tiles.integers` on the device, and whether any token has several entries."""

    def __init__(self, integers: Tensor, sizes: TileSizes, merges: bool):
        self.positions_t, self.tables_t, self.blocks_m, narrow, wide, *entries = integers.split(sizes.parts)
        self.readers_e, self.starts_t, self.entries_e = entries
        self.narrow_w8, self.wide_w8, self.merges = narrow.view(-1, TILE_WIDTH), wide.view(-1, TILE_WIDTH), merges


class TritonPagedAttention:
    """One step's attention, callable as `attend` of `model.llama.Llama.forward`: the twin of `paged.PagedAttention`."""

    attention: Attention = "triton"

    def __init__(self, cache: Tensor, tiles: DeviceTiles):
        """`cache`: [layers, 2, n, k, s, d]."""
        self.cache, self.tiles = cache, tiles
        (kv_heads, size), positions_t = cache.shape[3:5], tiles.positions_t.long()
        # A padding token's table begins with the list's last block, the spare one, where it stays in all passes.
        places_t = (tiles.tables_t + positions_t // size).clamp(max=len(tiles.blocks_m) - 1)
        blocks_t = tiles.blocks_m[places_t].long()
        heads_k = torch.arange(kv_heads, device=cache.device)
        self.slots_tk = (blocks_t[:, None] * kv_heads + heads_k) * size + (positions_t % size)[:, None]

    @classmethod
    def build(cls, cache: Tensor, metadata: AttentionMetadata, heads: int) -> "TritonPagedAttention":
        tiles = build_tiles(metadata, heads, cache.shape[3])
        sizes = tiles.sizes
        integers = to_device(tiles.integers(sizes, spare_block=0), torch.int32, cache.device)
        return cls(cache, DeviceTiles(integers, sizes, merges=sizes.entries > sizes.tokens))

    def __call__(self, layer: int, qk_thd: Tensor, v_tkd: Tensor, rope: Rope, norm: nn.Module | None = None) -> Tensor:
        cache = self.cache[layer]
        qk_thd = rotate_and_store(qk_thd, v_tkd, rope, cache, self.slots_tk, norm)
        return paged_attention(qk_thd[:, : qk_thd.shape[1] - v_tkd.shape[1]], cache, self.tiles)


def paged_attention(q_thd: Tensor, cache: Tensor, tiles: DeviceTiles) -> Tensor:
    """Attention of the step's tokens over a layer's cache [2, n, k, s, d]; [t, h, d]. Both of one dtype, bf16 or fp16
    (fp32 in the interpreter), q contiguous in d and rotated. Raises `UserError` for a head size above 256."""
    (tokens, heads, d), (kv_heads, size) = q_thd.shape, cache.shape[2:4]
    group, block_d = heads // kv_heads, max(16, triton.next_power_of_2(d))
    entries = len(tiles.readers_e) if tiles.merges else 0
    out = q_thd.new_empty(q_thd.shape)
    parts, lses = (q_thd.new_empty(shape, dtype=torch.float32) for shape in ((entries, heads, d), (entries, heads)))
    for tiles_w8, settings in ((tiles.narrow_w8, NARROW), (tiles.wide_w8, WIDE)):
        tile = launch.choose(settings, q_thd.device, d)
        if len(tiles_w8):
            _read[(kv_heads, len(tiles_w8))](
                q_thd, cache[0], cache[1], out, parts, lses,
                tiles.positions_t, tiles.blocks_m, tiles_w8, tiles.readers_e, tiles.starts_t,
                heads, d**-0.5 * LOG2_E.value, *q_thd.stride()[:2], cache.stride(1),
                GROUP=group, SIZE=size, D=d, BLOCK_D=block_d, WIDTH=TILE_WIDTH,
                BLOCK_M=tile.m, BLOCK_N=tile.n, **tile.options,
            )  # fmt: skip
    if tiles.merges:
        _merge[(tokens, kv_heads)](
            out, parts, lses, tiles.starts_t, tiles.entries_e, heads,
            GROUP=group, BLOCK_G=triton.next_power_of_2(group), D=d, BLOCK_D=block_d, num_warps=1 if d <= 64 else 2,
        )  # fmt: skip
    return out
