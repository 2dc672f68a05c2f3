"""prep, plan, execute: from the tasks file to finished steps."""

import contextlib
import json
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cdpo.commands.preflight import preflight_lines, preflight_pages
from cdpo.config.problems import suggest
from cdpo.config.trackers import listed, refuse_untracked
from cdpo.errors import CdpoError, UsageError
from cdpo.files import write_json
from cdpo.pipeline import pipelines
from cdpo.plan.graph import Plan, PlannedStep
from cdpo.plan.names import count
from cdpo.plan.states import StepState, states, summary
from cdpo.project import Project

if TYPE_CHECKING:
    from cdpo.config.devices import Devices
    from cdpo.measured import Measurement
    from cdpo.plan.fit import Fit


def say(text: str) -> None:
    # that nobody reads it changes nothing of what was done
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


@contextlib.contextmanager
def resumable(name: str, project: Project) -> Iterator[None]:
    """Where the user interrupts, say how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted; go on with: {command(name, project)}")
        sys.exit(130)


def prep(project: Project, display: Any) -> None:
    """Plan, make the datasets, check that the rows fit, freeze."""
    from cdpo.engine.services.describe import refuse_unserved
    from cdpo.engine.show.display import make_display
    from cdpo.prepare import prepare

    devices = project.devices()
    refuse_untracked(listed(devices.report_to))
    plan = project.fetched(project.plan, say)
    project.refuse_takeover(plan)
    refuse_unserved(devices, plan.steps.values())
    found = prepare(project, plan, devices, make_display(display), say)
    project.freeze(plan, found)
    for line in plan.notes:
        say(line)
    pages, place = preflight_pages(plan, found["lengths"]), project.store.root / "preflight" / f"{plan.name}.json"
    write_json(place, pages)
    if display != "json":
        for line in preflight_lines(pages, place):
            click.echo(line)
        click.echo(plan_table(plan, _states(project, plan)))
        obstacles = _obstacles(plan, set(plan.steps))
        if obstacles:
            click.echo(f"prepared {count(len(plan.runs), 'run')}; not all can be run: {'; '.join(obstacles)}")
        else:
            click.echo(f"prepared {count(len(plan.runs), 'run')}; next: {command('execute', project)}")


def show_plan(project: Project, as_json: bool) -> None:
    """Say what would run and why. Raises UsageError, after that, where it is known not to fit into memory."""
    from cdpo.engine.services.describe import refuse_unserved
    from cdpo.plan.estimates import estimate_lines

    devices = project.devices()
    plan = project.plan()
    found = _states(project, plan)
    todo = [step for step in plan.steps.values() if found[step.key].state == "run"]
    fit = _fit(project, plan)
    if as_json:
        json.dump(plan_json(plan, found, fit.largest(todo)), sys.stdout)
        print()
    else:
        estimates = estimate_lines(project.store, todo)
        if any(step.asks for step in todo):
            from cdpo.plan.judging import judge_lines

            estimates += judge_lines(project.store, plan, todo, devices.judges)
        more = [*plan.notes, *_shard_lines(devices, todo), *estimates, *fit.lines(todo)]
        click.echo(plan_table(plan, found, more))
    refuse_untracked(listed(devices.report_to))
    refuse_unserved(devices, todo)
    _refuse(fit.obstacles(todo))


def execute(
    project: Project, display: Any, only: str | None, runs: tuple[str, ...], fail_fast: bool, smoke: bool
) -> int:
    """Run what is not finished; returns the exit code."""
    from cdpo.engine.engines import make_engine
    from cdpo.engine.services.describe import refuse_unserved
    from cdpo.engine.show.display import make_display
    from cdpo.prepare import prepare

    if smoke:
        return _smoke(project, display)
    devices = project.devices()
    refuse_untracked(listed(devices.report_to))
    plan = project.fetched(project.plan, say)
    keys = chosen_keys(plan, only, runs)
    refuse_unrunnable(plan, keys)
    if any(step.served or step.asks for step in plan.steps.values()):
        refuse_unserved(devices, _todo(plan, keys, _states(project, plan)))
    project.keep_current(plan, say, lambda plan: prepare(project, plan, devices, make_display(display), say))
    refuse_unfit(project, plan, keys)
    if any(pipelines()[step.pipeline].online for step in plan.steps.values()):
        project.hub(say)
    outcome = make_engine(project.store, devices, make_display(display)).run(plan, keys=keys, fail_fast=fail_fast)
    if outcome.done and not outcome.interrupted:
        _work_out(project)
    if outcome.interrupted:
        asked = [f"--only {shlex.quote(only)}"] if only else []
        asked += [f"--runs {shlex.quote(each)}" for each in runs]
        say(f"interrupted; go on with: {' '.join([command('execute', project), *asked])}")
    elif outcome.exit_code == 0 and display != "json":
        rest = 0 if keys is None else len(plan.steps) - len(outcome.done) - len(outcome.cached)
        chosen = (
            f"the chosen steps are finished ({count(rest, 'other')} left out)" if rest else "all steps are finished"
        )
        say(f"{chosen}; `cdpo results` shows them")
    return outcome.exit_code


def _work_out(project: Project) -> None:
    """Read what is new of the results once, so that `cdpo results` and the viewer show them at once."""
    from cdpo.report.collect import collect

    try:
        collect(project.store.root)
    except (CdpoError, OSError) as error:  # all that was to be made is made; who looks at the results is told again
        say(f"results cannot be read: {error}")


def _smoke(project: Project, display: Any) -> int:
    """The whole matrix in little, in a store that is thrown away: the five minutes that save a night."""
    from cdpo.engine.local.engine import LocalEngine
    from cdpo.engine.services.describe import refuse_unserved
    from cdpo.engine.show.display import make_display
    from cdpo.engine.stop import SERVICES_GRACE, end_services
    from cdpo.plan.build import plan_file
    from cdpo.prepare import prepare
    from cdpo.store import Store

    with tempfile.TemporaryDirectory(prefix="cdpo-smoke-") as folder:
        scratch = Project(project.configs, Store(Path(folder)), project.tasks)
        plan = scratch.fetched(lambda: plan_file(project.tasks, project.configs, smoke=True), say)
        refuse_unrunnable(plan, None)
        devices = project.devices()
        refuse_untracked(listed(devices.report_to))
        # what is thrown away is told nobody
        devices = devices.model_copy(update={"report_to": []})
        refuse_unserved(devices, plan.steps.values())
        prepare(scratch, plan, devices, make_display(display))
        try:
            outcome = LocalEngine(scratch.store, devices, make_display(display)).run(plan)
        finally:
            # before its folder goes
            end_services(scratch.store, SERVICES_GRACE)
        for key in outcome.failed:
            work = scratch.store.work(key)
            for log in sorted(work.glob("attempt-*.log"))[-1:]:
                say(f"--- {plan.steps[key].label}\n{log.read_text(errors='replace')}")
    say("smoke test " + ("passed" if outcome.exit_code == 0 else "failed"))
    return outcome.exit_code


def chosen_keys(plan: Plan, only: str | None, runs: tuple[str, ...]) -> set[str] | None:
    """The keys that `--only` and `--runs` choose; None for the whole plan. Raises UsageError where nothing fits."""
    if only is not None and not only.strip():
        raise UsageError("--only names no pipeline; leave it out for the whole plan")
    if only is None and not runs:
        return None
    chosen = [run for run in plan.runs if not runs or any(fnmatch(run.name, each) for each in runs)]
    if not chosen:
        raise UsageError(f"no run is called like {' or '.join(runs)}; there is: {_some(run.name for run in plan.runs)}")
    wanted = [name.strip() for name in only.split(",")] if only else None
    there = {step.pipeline for step in plan.steps.values()}
    unknown = [name for name in wanted or [] if name not in there]
    if unknown:
        raise UsageError(f"--only: the plan has no {', '.join(unknown)}{suggest(unknown[0], sorted(there))}")
    keys = {key for run in chosen for key in run.steps}
    return {key for key in keys if wanted is None or plan.steps[key].pipeline in wanted}


def refuse_unrunnable(plan: Plan, keys: set[str] | None) -> None:
    """Raise UsageError where a wanted step cannot be run by this release, or without resolving a reference."""
    obstacles = _obstacles(plan, set(plan.steps) if keys is None else keys)
    if obstacles:
        raise UsageError("this plan cannot be run:\n  " + "\n  ".join(obstacles))


def _obstacles(plan: Plan, keys: set[str]) -> list[str]:
    """Why some of `keys` cannot be run: the reasons of the first steps on the way to them that cannot."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = list(keys)
    while waiting:
        step = plan.steps[waiting.pop()]
        reason = step.unavailable or step.unresolved
        if reason is None or step.key in seen:
            continue
        seen.add(step.key)
        above = [key for key in step.parents if plan.steps[key].unavailable or plan.steps[key].unresolved]
        waiting.extend(above)
        if not above:
            found.add(reason)
    return sorted(found)


def plan_json(plan: Plan, found: dict[str, StepState], memory: dict[str, "Measurement"]) -> dict[str, Any]:
    """The contract of `cdpo plan --json`. Memory in bytes, where it was measured."""
    return {
        "runs": [{"name": run.name, "tag": run.tag, "seed": run.seed, "steps": run.steps} for run in plan.runs],
        "steps": [
            {
                "key": step.key,
                "pipeline": step.pipeline,
                "name": step.name,
                "state": found[step.key].state,
                "why": found[step.key].why,
                "inputs": step.parents,
            }
            for step in plan.steps.values()
        ],
        "memory": {
            pipeline: {name: getattr(measured, name) for name in ("card", "memory", "peak", "micro_batch", "length")}
            for pipeline, measured in memory.items()
        },
    }


def plan_table(plan: Plan, found: dict[str, StepState], more: Iterable[str] = ()) -> str:
    rows = summary(plan, found)
    width = max([len("stage"), *(len(row.stage) for row in rows)])
    lines = [f"{'stage':<{width}} {'total':>7} {'cached':>7} {'run':>7}   why"]
    lines += [f"{row.stage:<{width}} {row.total:>7} {row.cached:>7} {row.run:>7}   {row.why}".rstrip() for row in rows]
    total = f"{count(len(plan.runs), 'run')}, {count(len(plan.steps), 'step')}"
    return "\n".join([*lines, total, *more])


def _states(project: Project, plan: Plan) -> dict[str, StepState]:
    from cdpo.store.provenance import source_digest

    store = project.store
    return states(plan, store.finished(), source_digest, lambda folder: store.intact(folder) is None)


def _fit(project: Project, plan: Plan) -> "Fit":
    """What is known of the memory that steps need, on the cards that they would run on."""
    from cdpo.engine.gpus.slots import cards
    from cdpo.measured import known
    from cdpo.plan.fit import Card, Fit

    devices = project.devices()
    here: list[Card | None] = []
    if devices.engine == "local" and known(project.store):
        here = [Card(name, memory) for name, memory in cards(devices)] or [None]
    frozen = project.last_plan()
    return Fit(project.store, devices, plan, here, frozen[1].get("lengths", {}) if frozen else {})


def refuse_unfit(project: Project, plan: Plan, keys: set[str] | None) -> None:
    """Raise UsageError where a step that would run is known not to fit into the memory that there is."""
    from cdpo.measured import known

    if not known(project.store):
        return
    _refuse(_fit(project, plan).obstacles(_todo(plan, keys, _states(project, plan))))


def _todo(plan: Plan, keys: set[str] | None, found: dict[str, StepState]) -> list[PlannedStep]:
    """The steps that would run for `keys` (None: the whole plan), with what they need."""
    waiting = list(plan.steps if keys is None else keys)
    todo: dict[str, PlannedStep] = {}
    while waiting:
        step = plan.steps[waiting.pop()]
        if step.key not in todo and found[step.key].state == "run":
            todo[step.key] = step
            waiting.extend(step.parents)
    return list(todo.values())


def _refuse(obstacles: list[str]) -> None:
    if obstacles:
        raise UsageError("this plan does not fit into memory:\n  " + "\n  ".join(obstacles))


def _shard_lines(devices: "Devices", todo: list[PlannedStep]) -> list[str]:
    """Which steps execute cuts; the parts are no steps of the plan, whose keys know nothing of the hardware."""
    lines = []
    for pipeline in dict.fromkeys(step.pipeline for step in todo):
        shards = devices.of(pipeline).shards
        if shards != 1:
            parts = "as many shards as can run at once" if shards == "auto" else f"{shards} shards"
            lines.append(f"each {pipeline} step is cut into {parts}, which are joined again")
    return lines


def command(name: str, project: Project) -> str:
    """The command line that goes on with this project, as a user would type it."""
    words = ["cdpo", name]
    if project.tasks != project.configs / "tasks.yaml":
        words.append(str(project.tasks))
    if str(project.configs) != "configs":
        words += ["--configs", str(project.configs)]
    if project.store.root != Path.cwd() / ".cdpo":
        words += ["--store", str(project.store.root)]
    return shlex.join(words)


def _some(names: Iterable[str], limit: int = 8) -> str:
    listed = list(names)
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit} more" if len(listed) > limit else "")
