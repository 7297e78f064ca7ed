"""The numbers of a training, and which of them can work."""

import math

from ..errors import InputError


def check_training_numbers(
    *,
    batch_size: int,
    microbatch: int,
    log_interval: int,
    save_interval: int,
    lr: float,
    weight_decay: float = 0.0,
    lr_anneal_steps: int = 0,
    max_steps: int = 0,
    keep_checkpoints: int = 0,
    max_skipped: int = 1,
    sample_interval: int = 0,
) -> None:
    """:raises InputError: naming all numbers that no training can run with."""
    problems = []

    def require(condition: bool, rule: str, value: float) -> None:
        if not condition:
            problems.append(f"{rule}, got {value}")

    require(batch_size >= 1, "batch_size must be at least 1", batch_size)
    require(
        microbatch >= 1 or microbatch == -1,
        "microbatch must be at least 1, or -1 for the batch",
        microbatch,
    )
    require(log_interval >= 1, "log_interval must be at least 1", log_interval)
    require(save_interval >= 1, "save_interval must be at least 1", save_interval)
    require(0 <= lr < math.inf, "lr must be a number from 0 up", lr)
    require(0 <= weight_decay < math.inf, "weight_decay must be a number from 0 up", weight_decay)
    require(lr_anneal_steps >= 0, "lr_anneal_steps must be 0 or more", lr_anneal_steps)
    require(max_steps >= 0, "max_steps must be 0 (no end) or more", max_steps)
    require(keep_checkpoints >= 0, "keep_checkpoints must be 0 (all) or more", keep_checkpoints)
    require(sample_interval >= 0, "sample_interval must be 0 (never) or more", sample_interval)
    require(max_skipped >= 1, "max_skipped must be at least 1", max_skipped)
    if problems:
        raise InputError("; ".join(problems))


def parse_ema_rates(ema_rate: float | str) -> list[float]:
    """The rates of ``"0.99,0.9999"``, or of one number.

    :raises InputError: if one is no number in [0, 1).
    """
    try:
        rates = [float(part) for part in str(ema_rate).split(",")]
    except ValueError:
        raise InputError(
            f"ema_rate must be numbers such as 0.999,0.9999, got {ema_rate!r}"
        ) from None
    wrong = [rate for rate in rates if not 0 <= rate < 1]
    if wrong:
        raise InputError(f"ema_rate must lie in [0, 1), got {wrong[0]}")
    return rates
