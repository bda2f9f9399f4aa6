"""A client that can only choose a model: the context goes behind an @ of the model's name. Here Anthropic's client.

The same name works in any other: Open WebUI, LangChain, LiteLLM, llm …; GET /v1/models lists all of them.

    pip install anthropic
    python examples/anthropic_model.py http://127.0.0.1:8080 preread@manual "Which port does the cloud use?"
"""

import sys

from anthropic import Anthropic

edge, model, question = sys.argv[1:]
client = Anthropic(base_url=edge, api_key="none")  # without /v1: this client adds it
message = client.messages.create(model=model, max_tokens=50, messages=[{"role": "user", "content": question}])
print("".join(block.text for block in message.content if block.type == "text"))
print(f"{message.usage.cache_read_input_tokens} tokens came from the context")
