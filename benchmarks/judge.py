"""How fast pairs are judged: 1,000 pairs in both orders, by a server that answers in 200 ms, 64 requests at once.

    python benchmarks/judge.py          (the server is a process of its own; the ideal is 2,000 / 64 x 0.2 s)

The server does nothing but wait, on one event loop, so that it is not it that is measured: it tells how long its
answers took, from the last byte of a question to the first of the answer.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _machine import print_machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PAIRS, SECONDS, AT_ONCE = 1000, 0.2, 64
CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "The first. [[A]]"}}
USED = {"prompt_tokens": 200, "completion_tokens": 8, "total_tokens": 208}
ANSWER = json.dumps({"id": "x", "object": "chat.completion", "model": "scripted", "choices": [CHOICE], "usage": USED})
HEAD = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(ANSWER)}\r\n\r\n"


async def serve() -> None:
    """Answer every request after SECONDS, until the standard input ends."""
    took: list[float] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
                began = time.monotonic()
                await asyncio.sleep(SECONDS)
                took.append(time.monotonic() - began)
                writer.write((HEAD + ANSWER).encode())
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(f"{sum(took) / len(took):.3f} s", flush=True)


def main() -> None:
    from cdpo.pipelines import evalgpt
    from tests.judge.asked import judge_step, responses, service

    command = [sys.executable, __file__, "serve"]
    texts = [f"response {at} " + "word " * (at % 50) for at in range(PAIRS)]
    chosen = [f"chosen {at} " + "word " * (at % 40) for at in range(PAIRS)]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        assert process.stdin is not None
        url = process.stdout.readline().strip()
        answered = responses(Path(folder) / "responses", texts, chosen)
        given = service(url, concurrency=AT_ONCE)
        step = judge_step(Path(folder) / "store", "k", {"responses": str(answered)}, given)
        began, cpu = time.monotonic(), time.process_time()
        evalgpt.run(step)
        took, used = time.monotonic() - began, time.process_time() - cpu
        again = judge_step(Path(folder) / "store", "k2", {"responses": str(answered)}, given)
        began = time.monotonic()
        evalgpt.run(again)
        kept = time.monotonic() - began
        process.stdin.close()
        answered_in = process.stdout.read().strip()
    ideal = 2 * PAIRS / AT_ONCE * SECONDS
    print_machine()
    print(f"{PAIRS} pairs x 2 orders: {took:.2f} s, ideal {ideal:.2f} s, ratio {took / ideal:.2f}; {used:.1f} s of CPU")
    print(f"the server answered in {answered_in}; one step asks it, and keeps every answer as it comes")
    print(f"once more, from kept answers: {kept:.2f} s")


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
    else:
        main()
