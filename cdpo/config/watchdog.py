"""`watchdog:` of devices.yaml: what ends a step whose result would be worth nothing, before it has cost a night."""

from cdpo.config.params import Count, Fraction, Params, Positive


class Watchdog(Params):
    """Thresholds of the watchdog. Each `null` switches one check off, `watchdog: false` all of them.

    The defaults let everything pass that may be meant: a base model that never ends its answers, a matrix in little
    (`--smoke`), a learning rate that is too high and still learns.
    """

    finite_loss: bool = True
    """End a training step whose loss is NaN or infinite."""
    idle_steps: Count | None = 50
    """Nothing is learned: so many optimiser steps in a row have no gradient, or a learning rate of nothing, while the
    loss is at ln 2 (what a loss of pairs is where nothing tells the two responses apart) or has been so from the first
    step on."""
    one_sided_rows: Count | None = 1000
    """The reward accuracy is exactly 0, or exactly 1, over so many rows, all of them seen for the first time and from
    the first steps on (the first quarter of so many rows may differ). Data that can be learned is not that clear."""
    logps_drop: Positive | None = 3.0
    """The log-probability of the chosen responses is so many nats per token below where it began. 3: a token that was
    drawn every second time now comes up every fortieth."""
    responses: Count = 100
    """So many responses are looked at, at least, before the two shares below are held against them."""
    empty: Fraction | None = 0.5
    """More than this share of the responses are empty."""
    endless: Fraction | None = 0.98
    """More than this share of the responses are cut off by max_new_tokens, from a policy trained in this store on
    responses that mostly end before that. A policy that was only named (a base model) may go on for ever."""
    stall_minutes: Positive | None = 60.0
    """A step writes nothing (log, events, metrics, checkpoints, responses) for so long: its threads' stacks go to its
    log, and it is killed."""
