"""The process in which vLLM runs: a script of the standard library and vLLM alone, for whichever interpreter has it.

    PYTHON vllm_process.py DESCRIPTOR

It reads JSON lines from standard input and writes JSON lines to the open file DESCRIPTOR (what vLLM prints goes to
standard output and standard error, and nobody parses it):

    <- {"engine": {arguments of EngineArgs}, "adapter": PATH or null}        the first line
    -> {"ready": version of vLLM, "device": "cpu" or "cuda"}
    <- {"at": 0, "prompt_ids": [...], "sampling": {arguments of SamplingParams}}      one for each prompt, then
    <- {"run": true}
    -> {"at": 0, "token_ids": [...], "logprobs": [...], "finish_reason": "stop"}      as they are finished, then
    -> {"done": true}                                                        and prompts may come again

It ends with its standard input, so that it never outlives who started it.
"""

import importlib.util
import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

# In place before vLLM is imported: the engine in this process, not in one more; nothing sent to anybody.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["VLLM_DO_NOT_TRACK"] = "1"


def main() -> None:
    # The folder of this script comes first there, and its modules would hide others of their names.
    del sys.path[0]
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    output = os.fdopen(descriptor, "w", encoding="utf-8")

    def tell(**said: Any) -> None:
        output.write(json.dumps(said) + "\n")
        output.flush()

    if importlib.util.find_spec("vllm") is None:
        tell(missing=sys.executable)
        return
    lines: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=read, args=(lines,), daemon=True).start()
    serve(lines, tell)


def read(lines: "queue.Queue[dict[str, Any]]") -> None:
    """Pass on standard input; end the process where it ends, whatever else this process is doing."""
    for line in sys.stdin:
        lines.put(json.loads(line))
    os._exit(0)


def serve(lines: "queue.Queue[dict[str, Any]]", tell: Callable[..., None]) -> None:
    import vllm
    from vllm import SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.lora.request import LoRARequest
    from vllm.platforms import current_platform
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.llm_engine import LLMEngine

    asked = lines.get()
    engine = LLMEngine.from_engine_args(EngineArgs(**asked["engine"]))
    adapter = LoRARequest("adapter", 1, asked["adapter"]) if asked["adapter"] else None
    tell(ready=vllm.__version__, device=current_platform.device_type)

    while True:
        line = lines.get()
        if "run" not in line:
            sampling = SamplingParams(
                **line["sampling"], logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
            )
            prompt = {"prompt_token_ids": line["prompt_ids"]}
            engine.add_request(str(line["at"]), prompt, sampling, lora_request=adapter)
            continue
        while engine.has_unfinished_requests():
            for request in engine.step():
                if not request.finished:
                    continue
                response = request.outputs[0]
                ids = list(response.token_ids)
                chances = zip(ids, response.logprobs, strict=True)
                tell(
                    at=int(request.request_id),
                    token_ids=ids,
                    logprobs=[of[token].logprob for token, of in chances],
                    finish_reason=response.finish_reason,
                )
        tell(done=True)


if __name__ == "__main__":
    main()
