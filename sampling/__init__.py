"""Generation: requests in, completions out, through a paged KV cache with shared prefixes."""
