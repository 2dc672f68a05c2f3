"""The command line: every command a few lines that call into the rooms. Only click is imported before one is chosen."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cdpo import __version__, disk
from cdpo.errors import CdpoError

if TYPE_CHECKING:
    from cdpo.project import Project

Command = TypeVar("Command", bound=Callable[..., Any])
DISPLAYS = click.Choice(["auto", "rich", "plain", "json"])


def places(command: Command) -> Command:
    """`--configs` and `--store` are understood before and after a command's name."""
    command = click.option("--configs", metavar="DIR", help="Default: $CDPO_CONFIGS or ./configs.")(command)
    return click.option("--store", metavar="DIR", help="Default: $CDPO_STORE or ./.cdpo.")(command)


def tasks_argument(command: Command) -> Command:
    return click.argument("tasks", required=False, metavar="[TASKS]")(places(command))


def forms(*names: str) -> Callable[[Command], Command]:
    """One of the flags `--json`, `--csv`, `--markdown`, `--latex`; its name, or None, is the argument `form`."""
    helps = {
        "json": "Everything, for programs.",
        "csv": "One line per run and metric.",
        "markdown": "Tables of the configurations, as GitHub shows them.",
        "latex": "Tables of the configurations for a paper; they need array and booktabs.",
    }

    def only_one(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> str | None:
        if len(chosen := list(dict.fromkeys(given))) > 1:
            raise click.UsageError(f"{' and '.join(f'--{name}' for name in chosen)}: one form at a time", context)
        return chosen[0] if chosen else None

    def add(command: Command) -> Command:
        for name in reversed(names):
            flag = click.option(
                f"--{name}", "form", flag_value=name, multiple=True, callback=only_one, help=helps[name]
            )
            command = flag(command)
        return command

    return add


def project_of(configs: str | None, store: str | None, tasks: str | None = None) -> "Project":
    from cdpo.project import Project

    above = click.get_current_context().find_root().params
    return Project.at(configs or above.get("configs"), store or above.get("store"), tasks)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@places
@click.version_option(__version__, prog_name="cdpo")
def cli(debug: bool, configs: str | None, store: str | None) -> None:
    """Alignment experiments from a YAML file: describe a matrix, prepare it, run it, compare.

    TASKS is the file that describes the matrix; without it, tasks.yaml of the configs folder.
    """
    if debug:
        os.environ["CDPO_DEBUG"] = "1"


# -- the matrix ---------------------------------------------------------------------------------------------------


@cli.command()
@tasks_argument
@click.option("--display", type=DISPLAYS, default="auto")
def prep(tasks: str | None, configs: str | None, store: str | None, display: str) -> None:
    """Validate, prepare the data, freeze the plan."""
    from cdpo.commands.matrix import prep as run
    from cdpo.commands.matrix import resumable

    project = project_of(configs, store, tasks)
    with resumable("prep", project):
        run(project, display)


@cli.command()
@tasks_argument
@click.option("--json", "as_json", is_flag=True, help="The same for programs.")
def plan(tasks: str | None, configs: str | None, store: str | None, as_json: bool) -> None:
    """Show what would run and why, without side effects."""
    from cdpo.commands.matrix import show_plan

    show_plan(project_of(configs, store, tasks), as_json)


@cli.command()
@tasks_argument
@click.option("--only", metavar="A,B", help="Only these pipelines (and what they need).")
@click.option("--runs", multiple=True, metavar="GLOB", help="Only runs whose name fits; may be repeated.")
@click.option("--fail-fast", is_flag=True, help="Start nothing more after a failure.")
@click.option("--smoke", is_flag=True, help="The whole matrix with 2 optimiser steps and 8 rows, in a throwaway store.")
@click.option("--display", type=DISPLAYS, default="auto")
def execute(
    tasks: str | None,
    configs: str | None,
    store: str | None,
    only: str | None,
    runs: tuple[str, ...],
    fail_fast: bool,
    smoke: bool,
    display: str,
) -> None:
    """Run the plan: every step once, whatever was killed before."""
    from cdpo.commands.matrix import execute as run
    from cdpo.commands.matrix import resumable

    project = project_of(configs, store, tasks)
    with resumable("execute", project):
        sys.exit(run(project, display, only, runs, fail_fast, smoke))


@cli.command()
@tasks_argument
@click.option("--json", "as_json", is_flag=True, help="The same for programs.")
def status(tasks: str | None, configs: str | None, store: str | None, as_json: bool) -> None:
    """Show how far every step of the frozen plan is."""
    from cdpo.commands.inspect import status as run

    run(project_of(configs, store, tasks), as_json)


@cli.command()
@click.argument("step")
@click.option("-f", "--follow", is_flag=True, help="Go on until the step ends.")
@places
def logs(step: str, follow: bool, configs: str | None, store: str | None) -> None:
    """Print the log of STEP (its key, name, or a part of them)."""
    from cdpo.commands.inspect import logs as run

    run(project_of(configs, store), step, follow)


@cli.command()
@click.argument("step")
@tasks_argument
def why(step: str, tasks: str | None, configs: str | None, store: str | None) -> None:
    """Print what STEP's key was hashed from, and how it differs from the nearest finished step."""
    from cdpo.commands.inspect import why as run

    run(project_of(configs, store, tasks), step)


@cli.command()
@click.argument("step")
@places
def redo(step: str, configs: str | None, store: str | None) -> None:
    """Set a finished STEP aside, so that the next execute makes it again."""
    from cdpo.commands.upkeep import redo as run

    run(project_of(configs, store), step)


@cli.command()
@places
def stop(configs: str | None, store: str | None) -> None:
    """End the steps that run in this store; the next execute goes on from what is finished."""
    from cdpo.commands.upkeep import stop as run

    run(project_of(configs, store))


# -- results ------------------------------------------------------------------------------------------------------


@cli.command()
@click.option("-t", "--tag", help="Only runs of this tag.")
@forms("json", "csv", "markdown", "latex")
@click.option("--all", "everything", is_flag=True, help="Every swept value, also where the tasks file has `select`.")
@places
def results(tag: str | None, form: str | None, everything: bool, configs: str | None, store: str | None) -> None:
    """Show every metric with n and a 95 % interval: a row per run, then one per configuration over seeds."""
    from cdpo.commands.inspect import results as run

    run(project_of(configs, store), tag, form, everything)


@cli.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-t", "--tag", help="Look for them in this tag.")
@click.option("--metric", help="Compare all with all in this one: several names, or all configurations.")
@click.option("--judge", help="Compare all with all by what this judge said of them side by side.")
@click.option(
    "--arena",
    nargs=2,
    metavar="REWARD COST",
    help="Count better and safe answers of two, by two of the rewards that score both at once.",
)
@forms("json", "markdown", "latex")
@places
def compare(
    names: tuple[str, ...],
    tag: str | None,
    metric: str | None,
    judge: str | None,
    arena: tuple[str, str] | None,
    form: str | None,
    configs: str | None,
    store: str | None,
) -> None:
    """Compare two runs, or two configurations over their seeds, paired by prompt, in every metric that both have.

    With --metric: all configurations (or those named) with each other in that metric, with verdicts for the whole
    matrix. With --judge: the same by what that judge said of their responses side by side (WINRATE). With --arena: how
    often B answers better or worse than A by the reward, and safely or unsafely by the cost (arXiv:2310.12773).
    """
    from cdpo.commands.inspect import compare as run

    run(project_of(configs, store), names, tag, metric=metric, judge=judge, arena=arena, form=form)


@cli.command()
@click.option("--export", "folder", metavar="DIR", help="Write results, curves and a comparison as HTML files instead.")
@click.option("-t", "--tag", help="Of --export: only runs of this tag.")
@click.option("--compare", "compared", nargs=2, metavar="A B", help="Of --export: the two whose responses are shown.")
@click.option("--hub", metavar="NAMESPACE", help="Show what that user or organization published on the Hub instead.")
@click.option("--port", type=click.IntRange(1, 65535), help="Default: 8501, or the next that is free.")
@click.option("--address", help="Default: 127.0.0.1, which only this machine reaches.")
@places
def view(
    folder: str | None,
    tag: str | None,
    compared: tuple[str, ...] | None,
    hub: str | None,
    port: int | None,
    address: str | None,
    configs: str | None,
    store: str | None,
) -> None:
    """Look at runs, curves, responses and datasets in a browser."""
    from cdpo.commands.view import export
    from cdpo.commands.view import view as run

    if folder is not None and (hub or port or address):
        raise click.UsageError("--export writes what is in the store to files; it has no --hub, --port or --address")
    if folder is None and (tag or compared):
        raise click.UsageError("--tag and --compare are of --export; the viewer itself has its own choices")
    project = project_of(configs, store)
    if folder is not None:
        export(project, Path(folder), tag, compared or ())
    else:
        run(project, hub, port, address)


@cli.command("judge-check")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--judge", metavar="NAME", help="What an API calls the judge (`judges:` of devices.yaml), or ./my.py:FUNCTION."
)
@click.option("--model", metavar="NAME", help="A model that cdpo runs itself.")
@click.option("--judge-template", "template", default="choice", show_default=True, metavar="NAME")
@click.option("--limit", type=click.IntRange(min=1), help="So many of the pairs, drawn by their content.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Tokens of an answer at most.")
@click.option("--max-missing", type=click.FloatRange(0, 1), help="The share of verdicts that may be missing.")
@click.option("--json", "as_json", is_flag=True)
@click.option("--display", type=DISPLAYS, default="auto")
@places
def judge_check(
    files: tuple[str, ...],
    judge: str | None,
    model: str | None,
    template: str,
    limit: int | None,
    max_tokens: int | None,
    max_missing: float | None,
    as_json: bool,
    display: str,
    configs: str | None,
    store: str | None,
) -> None:
    """Check a judge on pairs with a known better response: its accuracy, and how much it hangs on their order.

    FILE has rows in LLMBar's form (input, output_1, output_2, label) or those of a preference dataset.
    """
    from cdpo.commands.judge_check import judge_check as run

    options = {"limit": limit, "max_tokens": max_tokens, "max_missing": max_missing}
    sys.exit(run(project_of(configs, store), files, judge, model, template, options, as_json, display))


# -- the hub ------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("-t", "--tag", help="Only runs under this tag.")
@click.option("--display", type=DISPLAYS, default="auto")
@places
def push(runs: tuple[str, ...], tag: str | None, display: str, configs: str | None, store: str | None) -> None:
    """Publish finished runs (names or globs; all without one): models, responses, cards."""
    from cdpo.commands.hub import push as run

    sys.exit(run(project_of(configs, store), tag, runs, display))


@cli.command()
@click.argument("name")
@click.option("--dataset", is_flag=True, help="NAME is a dataset, and not a model.")
@click.option("--config", metavar="NAME", help="Of a dataset that has several.")
@click.option("--to", metavar="DIR", help="Copy its files there.")
@places
def pull(name: str, dataset: bool, config: str | None, to: str | None, configs: str | None, store: str | None) -> None:
    """Fetch NAME (`namespace/name` or `namespace/name@revision`) from the hub, and say where it lies."""
    from cdpo.commands.hub import pull as run

    run(project_of(configs, store), name, "dataset" if dataset else "model", config, to)


@cli.command()
@click.argument("name")
@click.option("--to", metavar="DIR", required=True, help="Where the project is written.")
@places
def reproduce(name: str, to: str, configs: str | None, store: str | None) -> None:
    """Write the project that makes a published NAME (`owner/run@tag`, or a folder) again, and compare what it made."""
    from cdpo.commands.reproduce import reproduce as run

    sys.exit(run(project_of(configs, store), name, to))


# -- review -------------------------------------------------------------------------------------------------------


@cli.group()
def review() -> None:
    """What people voted on the viewer's page Datasets: write it to a file, or publish it."""


@review.command("export")
@click.argument("name", metavar="DATA")
@click.option("--to", required=True, metavar="FILE", help="It ends in .jsonl or .parquet.")
@click.option("--split", metavar="NAME", help="Of this split alone.")
@click.option("--keep-flagged", is_flag=True, help="Rows that somebody flagged too.")
@places
def review_export(
    name: str, to: str, split: str | None, keep_flagged: bool, configs: str | None, store: str | None
) -> None:
    """Write the rows of DATA (a dataset, a run, a step's key) that reviewers decided, as TRL's preference data."""
    from cdpo.commands.review import write

    write(project_of(configs, store), name, to, split, keep_flagged)


@review.command("push")
@click.argument("name", metavar="DATA")
@click.option("--keep-flagged", is_flag=True, help="Rows that somebody flagged too.")
@places
def review_push(name: str, keep_flagged: bool, configs: str | None, store: str | None) -> None:
    """Publish them as a dataset on the hub, with every vote and a card."""
    from cdpo.commands.review import push

    push(project_of(configs, store), name, keep_flagged)


# -- upkeep -------------------------------------------------------------------------------------------------------


@cli.command()
@click.option("-t", "--tag", required=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--keep-hub", is_flag=True, help="Leave what was published.")
@places
def clear(tag: str, yes: bool, keep_hub: bool, configs: str | None, store: str | None) -> None:
    """Delete a tag's runs, the steps that only they have, and what was published; shows all of it and asks first."""
    from cdpo.commands.upkeep import clear as run

    run(project_of(configs, store), tag, yes, keep_hub)


@cli.command()
@click.option("--weights", is_flag=True, help="Evict the weights of finished steps too; they are remade when needed.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@places
def gc(weights: bool, yes: bool, configs: str | None, store: str | None) -> None:
    """Free disk: steps of no run, leavings of failed attempts; shows them and asks first."""
    from cdpo.commands.upkeep import gc as run

    run(project_of(configs, store), weights, yes)


@cli.command()
@places
def doctor(configs: str | None, store: str | None) -> None:
    """Say what this machine can run, what is missing, and how to get it."""
    from cdpo.commands.doctor import doctor as run

    run(project_of(configs, store))


@cli.command()
@click.option("--devices", is_flag=True, help="Of devices.yaml instead.")
def schema(devices: bool) -> None:
    """Print the JSON schema of tasks.yaml, for editors."""
    from cdpo.commands.schema import print_schema

    print_schema(devices)


@cli.command()
@click.argument("folder", default=".", metavar="[DIR]")
def init(folder: str) -> None:
    """Write a starter project: configs/ with the playground's matrix."""
    from cdpo.commands.upkeep import init as run

    run(folder)


@cli.command("import")
@click.argument("other", metavar="OTHER_STORE")
@places
def import_store(other: str, configs: str | None, store: str | None) -> None:
    """Add the finished steps and runs of another store."""
    from cdpo.commands.upkeep import import_store as run

    run(project_of(configs, store), other)


# -- one run ------------------------------------------------------------------------------------------------------


def one_run(name: str, stages: list[str], method: str, help_text: str) -> None:
    """Add a command that runs a matrix of one; `--PARAMETER VALUE` sets any parameter of its last pipeline."""

    @cli.command(name, help=help_text, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
    @click.option("-m", "--model", required=True)
    @click.option("-d", "--dataset", required=True)
    @click.option("-t", "--tag", required=True)
    @click.option("-s", "--seed", default=0, show_default=True)
    @click.option("-p", "--pipeline", "method", default=method, show_default=True, help="The method of the run.")
    @click.option("--display", type=DISPLAYS, default="auto")
    @places
    @click.pass_context
    def command(context: click.Context, /, configs: str | None, store: str | None, display: str, **chosen: Any) -> None:
        from cdpo.commands.single import run_one

        sys.exit(run_one(project_of(configs, store), name, stages, chosen, context.args, display))


_OWN = (
    "\n\nAny parameter of it, or of the method, can follow as --NAME VALUE;"
    " those of other stages as --STAGE.NAME VALUE."
)
one_run("sft", ["SFT"], "SFT", "Fine-tune one model on the chosen responses of one dataset." + _OWN)
one_run("dpo", ["SFT", "DPO"], "DPO", "Train one policy by a preference method." + _OWN)
one_run("gen", ["SFT", "DPO", "GEN"], "SFT", "Answer the prompts of a split with one policy." + _OWN)
one_run("evalreward", ["SFT", "DPO", "GEN", "EVALREWARD"], "SFT", "Score one policy's responses with a reward." + _OWN)
one_run("evalgpt", ["SFT", "DPO", "GEN", "EVALGPT"], "SFT", "Have one policy's responses judged." + _OWN)


@cli.command("label-bt")
@click.option(
    "-d", "--run_name", required=True, metavar="NAME", help="A dataset, by name or path, or a run of this store."
)
@click.option("-t", "--tag", help="The run's tag, where several runs are called so.")
@click.option("--split", metavar="NAME", help="train, tune or eval; `default`: what a run answered, else train.")
@click.option("--process_all_splits", is_flag=True, help="Label every split.")
@click.option("-m", "--score_model_id", required=True, metavar="REWARD", help="A reward, named as in tasks.yaml.")
@click.option("--bt_temperature", default="1.0", show_default=True, metavar="NUMBER|fit", help="Divides the scores.")
@click.option("--reverse", is_flag=True, help="A cost model: its low scores are good.")
@click.option("--per_device_evalreward_batch_size", type=click.IntRange(1), metavar="N", help="Texts scored at once.")
@click.option("-o", "--output", metavar="DIR", help="A new folder.  [default: labelled/NAME_REWARD]")
@click.option("--display", type=DISPLAYS, default="auto")
@places
def label_bt(configs: str | None, store: str | None, display: str, **chosen: Any) -> None:
    """Label a preference dataset with Bradley-Terry probabilities.

    Adds chosen_score, rejected_score and bt_prob = sigmoid((chosen_score - rejected_score) / bt_temperature) to a
    dataset with the columns prompt, chosen and rejected, and writes it to a folder that can be named as a dataset.
    `fit` is the temperature at which the labels of train are likeliest.

    A dataset is prepared first, as by every other command: split into train, tune and eval.
    """
    from cdpo.commands.label_bt import Labelling, label

    sys.exit(label(project_of(configs, store), Labelling(**chosen), display))


def main() -> None:
    """The console script: exit codes 0, 1, 2 and 130; a traceback only with --debug or CDPO_DEBUG=1."""
    _open_streams()
    # DeepSpeed, where it is installed, is imported along and writes to stdout what it computes on when it has to look;
    # commands compute on the CPU, and workers are told theirs
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    told: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        told.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # the reader (`| head`) has gone; nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except CdpoError as error:
        if os.environ.get("CDPO_DEBUG"):
            raise
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
    except Exception as error:
        if told:
            # a library whose import was interrupted calls it an error of its own
            click.echo("interrupted", err=True)
            sys.exit(130)
        if not isinstance(error, OSError) or os.environ.get("CDPO_DEBUG"):
            raise
        said = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        click.echo(disk.meaning(error) or said, err=True)
        sys.exit(1)


def _open_streams() -> None:
    """Give a program that was started without stdin, stdout or stderr (`>&-`) the null device in their place.

    Otherwise the next file that is opened, a lock for one, gets their number, and what is printed goes into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    main()
