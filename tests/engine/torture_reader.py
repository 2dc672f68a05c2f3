"""Judges a tortured store by what it holds and by what its steps told; knows nothing of how the engine does it."""

import re
from collections import Counter, defaultdict

from engine_bench import wait_for
from torture_step import INTERVAL, chain, weights

from cdpo.files import file_sha256, read_json_lines

#: how a step may fail that did nothing wrong: it was killed
KILLED = re.compile(r"SIGKILL|a rank was killed|ended without publishing")


def lives(diary):
    """Lines of a diary in the order in which they were written."""
    return list(read_json_lines(diary)) if diary.exists() else []


def shared(lines):
    """Whoever told something of a step's rank, or of a GPU, after another had begun with it: two held it at once."""
    wrong = []
    for what in (lambda line: f"{line['step']} rank {line['rank']}", lambda line: line["gpu"]):
        holder, gone = {}, defaultdict(set)
        for line in lines:
            thing, life = what(line), line["life"]
            if life in gone[thing]:
                wrong.append(f"{thing}: {life} went on ({line['what']}) after {holder[thing]} had begun")
            elif holder.get(thing) != life:
                gone[thing].add(holder.get(thing))
                holder[thing] = life
    return wrong


def lost(lines):
    """For each life, how many units it computed again that an earlier life of its rank had computed."""
    reached, found = Counter(), []
    for line in lines:
        if line["what"] == "unit":
            rank = line["step"], line["rank"]
            found.append(reached[rank] - line["unit"])
            reached[rank] = max(reached[rank], line["unit"] + 1)
    return found


def expected(plan):
    """What every step's value.txt must hold, computed here."""
    values = {}
    for key, step in plan.steps.items():
        parents = [values[parent] for parent in (step.inputs[role]["step"] for role in sorted(step.inputs))]
        ranks = 2 if step.pipeline == "PAIR" else 1
        ends = [list(chain(step.name, rank, parents, step.params["units"]))[-1] for rank in range(ranks)]
        values[key] = "\n".join([*ends, ""])
    return values


def judge(torture):
    """(what is wrong, what was done twice), over all rounds; each a list of sentences, empty where all is well."""
    store, wrong, twice = torture.store, [], []
    if not wait_for(lambda: not torture.living(), 10):
        wrong.append(f"left running: {torture.living()}")
    if "Traceback" in torture.said:
        wrong.append(torture.said)
    wrong += [f"an execution ended with exit code {code}" for code in torture.codes if code not in (0, 1)]
    events = list(read_json_lines(store.events))
    for event in events:
        # the reason may be lost, since leftovers are damaged before they are read; the log then says it
        if event["event"] == "step_failed" and not KILLED.search(" ".join([event["reason"], *event["tail"]])):
            wrong.append(f"{event['name']} failed: {event['reason']} {event['tail']}")
        if event["event"] == "note" and "differ" in event["text"]:
            wrong.append(event["text"])
    published = Counter(event["key"] for event in events if event["event"] == "step_done")
    twice += [f"{key} was published {times} times" for key, times in published.items() if times > 1]
    finished = store.finished()
    everything = {key for plan in torture.plans for key in plan.steps}
    if len(finished) != len(everything) or len(list(store.steps.glob("*/*"))) != len(everything):
        wrong.append(f"{len(finished)} steps in the store, and {len(everything)} were to be made")
    for number, plan in enumerate(torture.plans):
        lines, values = lives(torture.diary(number)), expected(plan)
        twice += shared(lines)
        again = max(lost(lines), default=0)
        if again > INTERVAL:
            wrong.append(f"{again} units were computed again, more than the {INTERVAL} of one checkpoint interval")
        for key, step in plan.steps.items():
            path = finished.get(key[:12])
            if path is None:
                wrong.append(f"{step.name}: not made")
                continue
            wrong += damage(store, path)
            text = (path / "out" / "value.txt").read_text()
            if text != values[key] or (path / "out" / "model.safetensors").read_bytes() != weights(text):
                wrong.append(f"{path}: another value than an undisturbed run's")
            ended = store.manifest(path)["finished"]
            twice += [
                f"{step.name}: begun {line['time'] - ended:.3f} s after it was finished"
                for line in lines
                if line["step"] == step.name and line["what"] == "begin" and line["time"] > ended
            ]
    wrong += leftovers(store)
    return wrong, twice


def damage(store, path):
    """What a finished step's folder says that is not so."""
    if store.intact(path) is not None:
        return [store.intact(path)]
    outputs = store.manifest(path)["outputs"]
    found = {each.relative_to(path / "out").as_posix() for each in (path / "out").rglob("*") if each.is_file()}
    wrong = [f"{path}: holds {found}, its manifest names {set(outputs)}"] if found != set(outputs) else []
    changed = [name for name, wanted in outputs.items() if file_sha256(path / "out" / name) != wanted["sha256"]]
    return wrong + [f"{path}/out/{name}: another content than its manifest says" for name in changed]


def leftovers(store):
    """What the store should not hold once nothing runs."""
    found = [f"work/{name}" for name in store.working()]
    # that of publishing is the same for all steps, and whoever takes it next removes it
    found += [f"locks/{path.name}" for path in store.locks.iterdir() if path.name != "publish.lock"]
    found += [str(path.relative_to(store.root)) for path in store.root.glob("aside/*/*")]
    return [f"left over: {each}" for each in found]


def outputs(store):
    """Checksums of every step's files, by the step's key."""
    steps = [store.manifest(path) for path in store.finished().values()]
    return {each["key"]: {name: file["sha256"] for name, file in each["outputs"].items()} for each in steps}


def summary(torture, wrong, twice, seconds):
    """The line that a closing note quotes."""
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(torture.kills.items()))
    made = sum(len(plan.steps) for plan in torture.plans)
    mischief = ", ".join(f"{kind} {count} times" for kind, count in sorted(torture.mischief.items()))
    return (
        f"torture: {torture.killed} kills ({kinds}); {mischief}; {made} steps made in {len(torture.plans)} plans, "
        f"wrong {len(wrong)}, twice {len(twice)}, {seconds:.0f} s"
    )
