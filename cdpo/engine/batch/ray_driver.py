"""`python -m cdpo.engine.batch.ray_driver ADDRESS ACTOR STORE`: a submitter's way to a Ray cluster.

It is a process of its own because Ray is no guest: it waits without limit for a cluster that is not there, ends the
process that uses it one minute after the head node is gone, takes over SIGTERM and writes to the terminal.

Requests are lines `[method, argument, ...]` on stdin, answers lines on stdout: {"is": value}, {"refused": why} for what
the user must mend, {"unreachable": why} for what may pass. The first answer comes unasked: the cluster's address. The
end of stdin ends the process.
"""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

#: seconds within which the actor answers, also one that is just being started again
ANSWER = 30.0
NAMESPACE = "cdpo"
TOKEN = (
    "it wants another token; take that of its head node (`ray get-auth-token` there) as RAY_AUTH_TOKEN, or as "
    "~/.ray/auth_token"
)


def main(address: str, actor: str, store: str) -> int:
    # stdout is for answers; whatever else is printed goes to stderr
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # seconds for a node of this machine to be found
    os.environ.setdefault("RAY_gcs_server_request_timeout_seconds", "20")
    if has_token():
        # Ray looks for the token by itself only where the address is `auto`
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    connected = connect(address)
    answer(answers, connected)
    if "is" not in connected:
        return 1
    serve(Cluster(actor, store), sys.stdin, answers)
    return 0


def has_token() -> bool:
    named = [name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)]
    return bool(named) or (Path.home() / ".ray" / "auth_token").exists()


def connect(address: str) -> dict[str, str]:
    """Join the cluster as a driver; the answer that tells its address, or why not."""
    import logging

    import ray
    from ray.exceptions import AuthenticationError

    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, AuthenticationError) as error:
        # Ray hides some causes behind "Failed to connect"
        said = str(error.__cause__ or error)
        if isinstance(error, AuthenticationError) or "InvalidAuthToken" in said:
            return {"refused": TOKEN}
        if "Could not find any running Ray instance" in said:
            return {"refused": "no Ray cluster runs on this machine; start one with `ray start --head`"}
        if "No node info found" in said:
            # Ray tells the nodes of this machine by their processes
            where = f"`ray start --address={address}` makes it one"
            return {"refused": f"this machine is no node of the cluster: run cdpo on one that is, or {where}"}
        if isinstance(error, ConnectionError):
            return {"unreachable": _line(said)}
        # another version of Python or Ray
        return {"refused": _line(said)}
    return {"is": ray.get_runtime_context().gcs_address}


def serve(cluster: "Cluster", requests: Iterable[str], answers: IO[str]) -> None:
    from ray.exceptions import GetTimeoutError, RayActorError, RayError

    from cdpo.engine.batch.ray_jobs import Refused

    for line in requests:
        method, *arguments = json.loads(line)
        try:
            answer(answers, {"is": getattr(cluster, method)(*arguments)})
        except Refused as error:
            answer(answers, {"refused": str(getattr(error, "cause", error))})
        except GetTimeoutError:
            answer(answers, {"unreachable": f"its actor gave no answer in {ANSWER:.0f} seconds"})
        except RayActorError as error:
            if "ModuleNotFoundError" in str(error):
                answer(answers, {"refused": "cdpo is not installed in the environment of its nodes"})
            else:
                answer(answers, {"unreachable": _line(str(error))})
        except RayError as error:
            answer(answers, {"unreachable": _line(str(error))})


class Cluster:
    """What a submitter asks for. An actor is started by the first submission, and found by its name ever after."""

    def __init__(self, actor: str, store: str) -> None:
        self._actor, self._store = actor, store

    def submit(self, job: dict[str, Any]) -> None:
        import ray

        from cdpo.engine.batch.ray_jobs import Job, Jobs, Refused

        wanted = Job(**job)
        lack = shortage(ray.nodes(), wanted.cpus, wanted.gpus)
        if lack is not None:
            raise Refused(f"{wanted.label}: {lack}")
        jobs = (
            ray.remote(Jobs)
            .options(
                name=self._actor,
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,
            )
            .remote(self._store)
        )
        ray.get(jobs.submit.remote(wanted), timeout=ANSWER)

    def living(self) -> Any:
        return self._ask("living")

    def look(self) -> Any:
        return self._ask("look")

    def cancel(self, ids: list[str]) -> None:
        self._ask("cancel", ids)

    def _ask(self, method: str, *arguments: Any) -> Any:
        """What the actor answers; nothing where there is none."""
        import ray
        from ray.exceptions import ActorDiedError

        try:
            jobs = ray.get_actor(self._actor, namespace=NAMESPACE)
            return ray.get(getattr(jobs, method).remote(*arguments), timeout=ANSWER)
        except (ValueError, ActorDiedError):
            # there is none, or it left for good while it was asked
            return {}


def shortage(nodes: Iterable[dict[str, Any]], cpus: int, gpus: int) -> str | None:
    """Why no living node could ever run a job of so many CPUs and GPUs; None where one can."""
    offers = [node["Resources"] for node in nodes if node["Alive"]]
    if any(offer.get("CPU", 0) >= cpus and offer.get("GPU", 0) >= gpus for offer in offers):
        return None
    most = {name: int(max((offer.get(name, 0) for offer in offers), default=0)) for name in ("CPU", "GPU")}
    return (
        f"it needs {cpus} CPUs and {gpus} GPUs on one node, and the cluster's nodes have at most {most['CPU']} and "
        f"{most['GPU']}; start a larger node, or correct devices.yaml (`gpus: []`, `ray: {{cpus: ...}}`, `processes`)"
    )


def answer(answers: IO[str], value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def _line(said: str) -> str:
    """A message of Ray on one line, without the traceback that some carry."""
    text, traced, trace = said.partition("Traceback (most recent call last):")
    return " ".join((text + trace.splitlines()[-1] if traced else text).split())


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    # Ray's own way out waits for a cluster that may be gone
    os._exit(code)
