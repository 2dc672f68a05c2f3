"""How responses are sampled: the parameters that every step shares which asks a backend."""

from typing import Literal

from pydantic import Field, model_validator

from cdpo.config.params import ModelLoading, SamplingParams


class GenerationParams(SamplingParams, ModelLoading):
    """What draws responses from a policy, and how. Hashed as a whole: backends round, and seed, differently."""

    backend: Literal["transformers", "vllm", "openai"] = "transformers"
    """`transformers`: in the step itself. `vllm`: in a process of its own, of this environment or of the interpreter
    that devices.yaml names. `openai`: by a server that speaks OpenAI's API, which devices.yaml names or has started."""
    batching: Literal["static", "continuous"] = "static"
    """Of `backend: transformers`: batches of similar length, or its continuous batching over a paged cache."""
    endpoint: Literal["completions", "chat"] = "completions"
    """Of `backend: openai`: `completions` sends the prompt as training saw it, token by token; `chat` sends messages,
    and the server's own template is applied."""
    stop_tokens: list[str] = Field(default=[])
    """Tokens of the tokenizer that end a response beside its end token, in a list of their own: `[["<|user|>"]]`."""

    @model_validator(mode="after")
    def _options_belong_to_the_backend(self) -> "GenerationParams":
        if self.batching != "static" and self.backend != "transformers":
            raise ValueError(f"batching is how transformers batches, and the backend is {self.backend}: leave it out")
        if self.endpoint != "completions" and self.backend != "openai":
            raise ValueError(f"endpoint is a server's, and the backend is {self.backend}: leave it out")
        if self.backend == "vllm" and self.attn_implementation != "sdpa":
            raise ValueError("attn_implementation is transformers', and vLLM chooses its own: leave it out")
        return self
