"""`python answering.py --port PORT --model FOLDER [OPTIONS]`: a server in the place of vLLM, as good as it is told.

It answers `GET /health`, `GET /v1/models` and `POST /v1/completions` ({"prompt"} -> {"text", "pid"}). Options that name
a file take effect once, when that file is there, and remove it: so a server that is started again is a good one.
"""

import argparse
import http.server
import json
import os
import subprocess
import sys
import threading
import time

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--model", required=True)
parser.add_argument("--name", action="append", default=[], help="what it lists; default: the folder")
parser.add_argument("--slow", type=float, default=0.0, help="seconds before it listens")
parser.add_argument("--refuse", help="what it says before it ends without listening")
parser.add_argument("--child", action="store_true", help="start a process in a session of its own")
parser.add_argument("--megabytes", type=int, default=0, help="printed before it listens")
parser.add_argument("--hang", help="a file: answers nothing any more")
parser.add_argument("--die", help="a file: ends in the middle of an answer")
parser.add_argument("--sick", action="store_true", help="/health is 503 for ever")
parser.add_argument("--no-health", action="store_true", help="/health is 404")
parser.add_argument("--key", help="the variable of a key that every request must bring")
parser.add_argument("--diary", help="a line for each start: pid, CUDA_VISIBLE_DEVICES")
options = parser.parse_args()
hanging = threading.Event()


def once(path):
    """Whether the file of an option is there, this once."""
    try:
        os.unlink(path or "")
    except FileNotFoundError:
        return False
    return True


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/health":
            self.answer(503 if options.sick else 404 if options.no_health else 200, {})
        elif self.path == "/v1/models":
            self.answer(200, {"data": [{"id": name} for name in options.name or [options.model]]})
        else:
            self.answer(404, {})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if once(options.die):
            os._exit(9)
        self.answer(200, {"text": asked["prompt"].upper(), "model": asked["model"], "pid": os.getpid()})

    def answer(self, status, value):
        if hanging.is_set() or once(options.hang):
            hanging.set()
            time.sleep(600)
        if options.key and self.headers.get("Authorization") != f"Bearer {os.environ[options.key]}":
            status, value = 401, {}
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, form, *values):
        pass


if options.diary:
    with open(options.diary, "a") as diary:
        diary.write(f"server {os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
for _ in range(options.megabytes):
    print("x" * 2**20)
if options.child:
    command = [sys.executable, "-c", "import time; time.sleep(300)", options.model]
    print("child", subprocess.Popen(command, start_new_session=True).pid, flush=True)
time.sleep(options.slow)
if options.refuse:
    sys.exit(options.refuse)
http.server.ThreadingHTTPServer.daemon_threads = True
http.server.ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()
