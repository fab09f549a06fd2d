"""The model: Llama by hand, its configuration, tokenizer, chat formats and weights."""
