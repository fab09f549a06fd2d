"""Correct two faults of Triton's interpreter (3.7.1) in bfloat16, which it keeps as 16-bit integers.

`tl.dot` multiplies those integers (triton#11584), and casts from fp32 truncate the mantissa. Importing this module
replaces both by the hardware's behaviour: exact products summed in fp32, and rounding to the nearest even.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_convert_float, _create_dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot


def _widen(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _convert(values, source, destination, rounding_mode):
    if (source, destination) != (tl.float32, tl.bfloat16):
        return _convert_float(values, source, destination, rounding_mode)
    rounded = torch.from_numpy(np.ascontiguousarray(values).view(np.float32)).to(torch.bfloat16)
    return rounded.view(torch.int16).numpy().view(np.uint16).reshape(values.shape)


def _dot(self, a, b, d, input_precision, max_num_imprecise_acc):
    if a.dtype != tl.bfloat16:
        return _create_dot(self, a, b, d, input_precision, max_num_imprecise_acc)
    product = np.matmul(_widen(a.data), _widen(b.data))
    return interpreter.TensorHandle(product + d.data, d.dtype.scalar)


interpreter._convert_float = _convert
interpreter.InterpreterBuilder.create_dot = _dot
