"""What `make plan` and the forecast assume of texts, yields and machines: the config's section [plan]."""

from dataclasses import dataclass

from stages.config import Amount, Count, Positive, PositiveShare, Share


@dataclass(frozen=True)
class Assumptions:
    """What `make plan` assumes of texts, yields and machines. No stage's output depends on it."""

    prompt_tokens: Positive = 40.0
    """Mean of a prompt without its chat format."""
    response_tokens: Positive = 430.0
    judgment_tokens: Positive = 180.0
    comparison_tokens: Positive = 220.0
    spread: Positive = 0.5
    """Standard deviation of the tokens in a text, divided by their mean."""
    ranked_replies: Count = 10500
    """In all files of `eft.sources`, three to a prompt."""
    prompts_kept: PositiveShare = 0.5
    """Share of attempts that give a new prompt."""
    distinct_judgments: PositiveShare = 0.95
    """Share of judgments that hold a score and differ from all others of their response."""
    eft_yield: Share = 0.2
    """Share of judged replies that become examples."""
    actor_yield: Share = 0.6
    """Share of prompts that give an actor pair."""
    judge_yield: Share = 0.5
    """Share of prompts that give a judge pair, in an iteration with judge pairs."""
    product_utilisation: PositiveShare = 0.5
    """Share of a GPU's peak that matrix products reach in generation."""
    bandwidth_utilisation: PositiveShare = 0.6
    """Share of a GPU's memory bandwidth that reading weights and keys reaches."""
    training_utilisation: PositiveShare = 0.4
    """Share of a GPU's peak that training reaches."""
    step_milliseconds: Amount = 8.0
    """Time of a generation step besides the model: scheduling and kernel launches."""
    network_gigabytes_per_second: Positive = 50.0
    """Between nodes, for each GPU."""
    disk_gigabytes_per_second: Positive = 1.0
    start_seconds: Amount = 30.0
    """From the start of a stage's processes until they load weights."""
