"""What the bodies of OpenAI's API may hold, as types: fields of OpenAI, llama-server and vLLM that mean something here.

Pure. None everywhere means the same as absence: clients send both. What the fields come to is in `openai.py`.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

_Share = Annotated[float, Meta(ge=0, le=1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Repeat = Annotated[float, Meta(ge=0.1, le=10)]
_Bias = Annotated[float, Meta(ge=-100, le=100)]
_Most = Annotated[int, Meta(ge=-2)]


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of other servers that change what an answer is, and that cannot be honoured here.

    Whoever sends one relies on it, so that it is refused by name, unless it is null, false, zero or empty.
    """

    guided_decoding_backend: Any = None
    guided_whitespace_pattern: Any = None
    allowed_token_ids: Any = None
    bad_words: Any = None
    stop_token_ids: Any = None
    include_stop_str_in_output: Any = None
    logits_processors: Any = None
    use_beam_search: Any = None
    prompt_logprobs: Any = None
    post_sampling_probs: Any = None
    truncate_prompt_tokens: Any = None
    continue_final_message: Any = None
    chat_template: Any = None
    documents: Any = None
    image_data: Any = None
    audio: Any = None
    web_search_options: Any = None
    lora: Any = None
    samplers: Any = None
    min_keep: Any = None
    n_keep: Any = None
    n_indent: Any = None
    dry_multiplier: Any = None
    adaptive_target: Any = None
    t_max_predict_ms: Any = None


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class JsonSchema(msgspec.Struct, frozen=True):
    """OpenAI's way to name a schema. `strict`: what of it cannot be enforced is refused, not passed over."""

    schema: dict[str, Any] | bool | None = None
    name: str | None = None
    strict: bool | None = None


class Format(msgspec.Struct, frozen=True):
    """OpenAI's `response_format`; llama-server takes a `schema` beside "json_object" as well."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | None = None


class StructuredOutputs(msgspec.Struct, frozen=True):
    """vLLM's. Exactly one of its fields says what the answer has to look like."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: Annotated[list[str], Meta(max_length=1024)] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: Any = None
    whitespace_pattern: Any = None
    structural_tag: Any = None


class Common(Refused, frozen=True, kw_only=True):
    """What both requests have."""

    response_format: Format | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | bool | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Meta(max_length=1024)] | None = None
    guided_grammar: str | None = None

    model: str | None = None
    context: str | None = None
    max_tokens: _Most | None = None
    n_predict: _Most | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    ignore_eos: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    dynatemp_range: Annotated[float, Meta(ge=0, le=2)] | None = None
    dynatemp_exponent: Annotated[float, Meta(ge=0, le=10)] | None = None
    top_p: _Share | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: _Share | None = None
    typical_p: _Share | None = None
    top_n_sigma: Annotated[float, Meta(ge=-1, le=100)] | None = None
    xtc_probability: _Share | None = None
    xtc_threshold: _Share | None = None
    mirostat: Literal[0, 1, 2] | None = None
    mirostat_tau: Annotated[float, Meta(ge=0, le=100)] | None = None
    mirostat_eta: Annotated[float, Meta(ge=0, le=10)] | None = None
    seed: int | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    repeat_penalty: _Repeat | None = None
    repetition_penalty: _Repeat | None = None
    repeat_last_n: Annotated[int, Meta(ge=-1)] | None = None
    logit_bias: dict[int, _Bias | bool] | Annotated[list[tuple[int, _Bias | bool]], Meta(max_length=1024)] | None = None
    n_probs: Annotated[int, Meta(ge=0, le=20)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_progress: bool | None = None
    n: Annotated[int, Meta(ge=1)] | None = None


class Part(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None


class Function(msgspec.Struct, frozen=True):
    name: str
    arguments: str | dict[str, Any] = ""


class ToolCall(msgspec.Struct, frozen=True):
    function: Function
    id: str | None = None
    type: str = "function"


class Message(msgspec.Struct, frozen=True):
    role: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    content: str | list[Part] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: Any = None


class Declared(msgspec.Struct, frozen=True):
    """A function that the model may call; `parameters` is a JSON schema of an object."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True):
    type: str = "function"
    function: Declared | None = None


class Named(msgspec.Struct, frozen=True):
    name: str


class Allowed(msgspec.Struct, frozen=True):
    tools: list[Tool]
    mode: Literal["auto", "required"] = "auto"


class ToolChoice(msgspec.Struct, frozen=True):
    """Which function has to be called, or which may be."""

    type: str = "function"
    function: Named | None = None
    allowed_tools: Allowed | None = None


class Chat(Common, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: _Most | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=256)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None


class Completion(Common, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[int | str | list[int]]
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None


Request = Chat | Completion
