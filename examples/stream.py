"""Several questions about one context at once, each answer as it is generated: AsyncEdge, for asyncio.

The context comes once for all of them, and they are computed in steps that they share.

    python examples/stream.py MODEL CLOUD CONTEXT QUESTION…
    python examples/stream.py smollm2-135m-instruct http://127.0.0.1:8000 manual "Which port?" "Which key?"
"""

import asyncio
import sys

from preread import AsyncEdge


async def tell(edge: AsyncEdge, context: str, question: str) -> None:
    async for text in edge.stream(question, context=context, temperature=0, max_tokens=50):
        print(f"{question} {text!r}", flush=True)


async def main(model: str, cloud: str, context: str, *questions: str) -> None:
    async with AsyncEdge(model=model, cloud=cloud) as edge, asyncio.TaskGroup() as asking:
        for question in questions:
            asking.create_task(tell(edge, context, question))


asyncio.run(main(*sys.argv[1:]))
