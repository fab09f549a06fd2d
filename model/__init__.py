"""The model: Llama by hand, its configuration, tokenizer, chat template and weights."""
