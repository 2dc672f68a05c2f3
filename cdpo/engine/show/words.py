"""Events as words, shared by the fronts that people read."""

from collections.abc import Mapping
from typing import Any

from cdpo.store.names import short


def duration(seconds: float) -> str:
    """`42 s`, `3m 05s`, `2h 07m`, `1d 04h`.

    >>> [duration(each) for each in (0.4, 42, 185, 7620, 100800)]
    ['0.4 s', '42 s', '3m 05s', '2h 07m', '1d 04h']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def eta(value: Mapping[str, Any] | None) -> str:
    """`about 3m 05s left`; `at least` where some pipeline has not been timed yet; empty where nothing is known."""
    if value is None:
        return ""
    return f"{'about' if value['complete'] else 'at least'} {duration(value['seconds'])} left"


def label(event: Mapping[str, Any]) -> str:
    return f"{event['pipeline']}/{event['name']}-{short(event['key'])}"


def progress(event: Mapping[str, Any]) -> str:
    shown = " ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in event["values"].items()
    )
    return f"{event['done']}/{event['total']} {event['unit']}{'  ' if shown else ''}{shown}"


def line(event: Mapping[str, Any]) -> str | None:
    """One event as one line (a failure: as several); None where there is nothing to say."""
    kind = event["event"]
    left = eta(event.get("eta"))
    if kind == "plan":
        steps = f"{event['total']} step{'' if event['total'] == 1 else 's'}"
        at_once = f", {event['slots']} at once" if event["slots"] else ""
        return f"{steps}: {event['cached']} there already, {event['run']} to run{at_once}"
    if kind == "step_queued":
        return f"queued   {label(event)}  (job {event['job']}{', submitted before' if event['found'] else ''})"
    if kind == "step_started":
        return f"start    {label(event)}  [{event['place']}]"
    if kind == "step_adopted":
        return f"adopt    {label(event)}  (its worker, process {event['pid']}, runs already)"
    if kind == "step_progress":
        return f"         {label(event)}  {progress(event)}{'  ' if left else ''}{left}"
    if kind == "step_done":
        tail = f"{event['finished']}/{event['run']}{', ' if left else ''}{left}"
        return f"done     {label(event)}  in {duration(event['seconds'])}  ({tail})"
    if kind == "step_failed":
        reason = event["reason"]
        last = [f"    | {each}" for each in event["tail"] if each not in reason.splitlines()]
        return "\n".join([f"FAILED   {label(event)}: {reason}", *last, f"    log: {event['log']}"])
    if kind == "step_blocked":
        return f"blocked  {label(event)}  by {event['by']}"
    if kind == "note":
        return f"note     {label(event) + ': ' if event.get('name') else ''}{event['text']}"
    if kind == "finished":
        parts = [f"{event['done']} done", f"{event['cached']} there already"]
        parts += [f"{event[name]} {name}" for name in ("failed", "blocked") if event[name]]
        said = "interrupted" if event["interrupted"] else "finished"
        return f"{said} in {duration(event['seconds'])}: {', '.join(parts)}"
    return None
