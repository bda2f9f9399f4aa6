"""OpenAI's client: the context of a chat goes into `extra_body`. Streamed; at the end, how much was reused.

preread edge --model smollm2-135m-instruct --cloud http://127.0.0.1:8000         # in another terminal
pip install openai
python examples/openai_context.py http://127.0.0.1:8080 manual "Which port does the cloud use?"
"""

import sys

from openai import OpenAI

edge, context, question = sys.argv[1:]
client = OpenAI(base_url=f"{edge}/v1", api_key="none")  # the edge's key, where it asks for one
chunks = client.chat.completions.create(
    model="preread",
    messages=[{"role": "user", "content": question}],
    extra_body={"context": context},
    temperature=0,
    max_tokens=100,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in chunks:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
    if chunk.usage and chunk.usage.prompt_tokens_details:
        cached = chunk.usage.prompt_tokens_details.cached_tokens
        print(f"\n{cached} of {chunk.usage.prompt_tokens} tokens did not have to be computed")
