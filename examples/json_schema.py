"""An answer in a form that a program can read: tokens that do not fit the schema are never chosen.

pip install openai
python examples/json_schema.py http://127.0.0.1:8080 manual "Which port does the cloud use, and is it TLS?"
"""

import sys

from openai import OpenAI
from pydantic import BaseModel


class Port(BaseModel):
    number: int
    tls: bool


edge, context, question = sys.argv[1:]
client = OpenAI(base_url=f"{edge}/v1", api_key="none")
answer = client.chat.completions.parse(
    model=f"preread@{context}",
    messages=[{"role": "user", "content": question}],
    response_format=Port,
    max_tokens=100,
)
port = answer.choices[0].message.parsed
if port is None:
    sys.exit("json_schema: the answer was cut off; give it more tokens")
print(port.number, "with TLS" if port.tls else "without TLS")
