"""What `make plan` and the forecast assume of texts, yields and machines: the config's section [plan]."""

from dataclasses import dataclass

from stages.config import Amount, Count, Positive, PositiveShare, Share


@dataclass(frozen=True)
class Plan:
    """What `make plan` assumes of texts, yields and machines. No stage's output depends on it."""

    prompt_tokens: Positive = 40.0
    """Mean of a prompt of the pool, where the pool is not there yet; the chat format comes on top."""
    response_tokens: Positive = 430.0
    judgment_tokens: Positive = 180.0
    comparison_tokens: Positive = 220.0
    seed_judgment_tokens: Positive = 180.0
    """Of a judgment by the seed, which may not have learnt when to stop."""
    seed_comparison_tokens: Positive = 220.0
    reply_tokens: Positive = 200.0
    """Of a human reply in `eft.sources`, where they are not there."""
    spread: Positive = 0.5
    """Standard deviation of a text's tokens over their mean."""
    groups: Count = 3500
    """Groups of ranked replies in `eft.sources`, where they are not there."""
    replies: Count = 3
    """Replies in such a group."""
    prompts_kept: PositiveShare = 0.5
    """Attempts at a new prompt that give one."""
    distinct_responses: PositiveShare = 1.0
    """Responses that are not equal to another of their prompt."""
    distinct_judgments: PositiveShare = 0.95
    """Judgments that hold a score and are not equal to another of their response."""
    eft_yield: Share = 0.2
    """Judged replies that become examples."""
    actor_yield: Share = 0.6
    """Prompts that give an actor pair."""
    judge_yield: Share = 0.5
    """Prompts that give a judge pair, in an iteration that wants them."""
    product_utilisation: PositiveShare = 0.5
    """Share of a GPU's peak that generation's products reach."""
    bandwidth_utilisation: PositiveShare = 0.6
    """Share of a GPU's memory bandwidth that reading weights and keys reaches."""
    training_utilisation: PositiveShare = 0.4
    """Share of a GPU's peak that training reaches."""
    step_milliseconds: Amount = 8.0
    """What a step of generation takes besides the model: scheduling on the host, launches."""
    gpus_per_node: Count = 8
    network_gigabytes_per_second: Positive = 50.0
    """Between nodes, for each GPU."""
    disk_gigabytes_per_second: Positive = 1.0
    start_seconds: Amount = 30.0
    """A stage's processes, until they load weights."""
