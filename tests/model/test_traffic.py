"""What a layer launches, by hand."""

from traffic import TOKENS, decode, elementwise, of_a_layer, train


def test_a_decoding_layer_is_eleven_kernels():
    """For Qwen3 as many: its norm of queries and keys is in the rotation."""
    for model_type in ("llama", "qwen3"):
        kernels, _ = of_a_layer(decode, model_type)
        attention = {"rope.rotate": 1, "paged.read": 2, "paged.merge": 1}
        assert kernels == {"mm": 4, "norm.forward": 2, "swiglu.activate": 1} | attention


def test_elementwise_bytes_of_training_are_at_most_half_of_what_plain_pytorch_moves():
    kernels, sizes = of_a_layer(train)
    assert sizes["swiglu.activate"] == TOKENS * (3 + 6) * 14_336 * 2
    assert (kernels["norm.forward"], kernels["norm.backward"]) == (2, 2)
    assert sizes["norm.forward"] == 2 * (TOKENS * (4 * 4096 * 2 + 4) + 4096 * 2)
    assert elementwise(sizes) < 17.0e9 / 2
