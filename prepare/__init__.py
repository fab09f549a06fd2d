"""What comes before iteration 1: the seed model, labelled judgments, new prompts."""
