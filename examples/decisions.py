"""Many small questions about one context in one request, each answered with a probability; nothing is generated.

pip install 'openai>=3.26'
python examples/decisions.py http://127.0.0.1:8080 manual
"""

import sys

from openai import OpenAI

edge, context = sys.argv[1:]
client = OpenAI(base_url=f"{edge}/v1", api_key="none")
asked = client.decisions.create(
    model=f"preread@{context}",
    input="",  # what is to be judged besides the context: a text, or messages
    questions=[
        {"type": "predicate", "name": "keys", "instructions": "The cloud can ask for keys."},
        {
            "type": "choice",
            "name": "port",
            "instructions": "Which port does the cloud use?",
            "choices": [{"value": "8000"}, {"value": "8080"}, {"value": "443"}],
        },
    ],
)
for answer in asked.answers:
    print(answer.to_json(indent=None))
