"""Ask about a published context from a program of your own: the library opens an edge inside this process.

preread cloud --model smollm2-135m-instruct --store ./store          # in another terminal
preread publish docs/operations.md --name manual --cloud http://127.0.0.1:8000
python examples/ask.py smollm2-135m-instruct http://127.0.0.1:8000 manual "Which port does the cloud use?"
"""

import sys

from preread import Edge, PrereadError

model, cloud, context, question = sys.argv[1:]
try:
    with Edge(model=model, cloud=cloud) as edge:
        answer = edge.ask(question, context=context, temperature=0, max_tokens=100)
except PrereadError as error:
    sys.exit(f"ask: {error}")
print(answer.text)
timings = answer.timings
print(f"{context}: {timings.way}, {timings.bytes_received} bytes, {timings.ttft_ms:.0f} ms to the first token")
