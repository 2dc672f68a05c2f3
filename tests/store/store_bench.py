"""Finished steps without an engine."""

from cdpo.files import write_json

KEY = "ab" * 32


def manifest(**more):
    return {"version": 1, "params": {"beta": 0.1}, "inputs": {}, "seed": 0, "seconds": 1.5, **more}


def work_of(store, key=KEY, text="hello", weights=b"w" * 100):
    """A work folder whose step is ready to be published."""
    work = store.work(key)
    (work / "out" / "deep").mkdir(parents=True)
    (work / "out" / "value.txt").write_text(text)
    (work / "out" / "deep" / "model.safetensors").write_bytes(weights)
    (work / "ckpt").mkdir()
    (work / "attempt-1.log").write_text("said\n")
    write_json(work / "step.json", {"key": key, "planned": {}})
    return work


def finish(store, key=KEY, pipeline="SFT", name="tiny", **more):
    return store.publish(key, pipeline, name, work_of(store, key, **more), manifest())
