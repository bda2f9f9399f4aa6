// OpenAI's client for Node: its documented calls against an edge, whose address is in PREREAD_TESTED_EDGE.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: `${process.env.PREREAD_TESTED_EDGE}/v1`, apiKey: "none", maxRetries: 0 });
const models = [];
for await (const model of client.models.list()) models.push(model.id);
const model = models.find((id) => id.endsWith("@manual"));
const messages = [{ role: "user", content: "What is the code of the pump?" }];
const asked = { model, messages, temperature: 0, max_tokens: 60 };
const parameters = { type: "object", properties: { part: { type: "string" } }, required: ["part"] };
const tools = [{ type: "function", function: { name: "code_of", description: "The code of a part.", parameters } }];

test("a chat", async () => {
  const answer = await client.chat.completions.create(asked);
  assert.ok(answer.choices[0].message.content);
  assert.ok(answer.usage.completion_tokens > 0);
});

test("a stream", async () => {
  const stream = await client.chat.completions.create({ ...asked, stream: true });
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
  assert.ok(text);
});

test("the streaming helper", async () => {
  const answer = await client.chat.completions.stream(asked).finalChatCompletion();
  assert.ok(answer.choices[0].message.content);
});

test("a completion", async () => {
  const answer = await client.completions.create({ model, prompt: "The capital of France is", max_tokens: 4 });
  assert.ok(answer.choices[0].text);
});

test("parse with a zod schema", async () => {
  const Part = z.object({ name: z.string(), code: z.number().int() });
  const form = { response_format: zodResponseFormat(Part, "part") };
  const answer = await client.chat.completions.parse({ ...asked, ...form });
  assert.ok(Number.isInteger(answer.choices[0].message.parsed.code));
});

for (const stream of [false, true]) {
  test(`a tool call${stream ? ", streamed" : ""}`, async () => {
    const wanted = { ...asked, tools, tool_choice: "required" };
    const answer = stream
      ? await client.chat.completions.stream(wanted).finalChatCompletion()
      : await client.chat.completions.create(wanted);
    const [call] = answer.choices[0].message.tool_calls;
    assert.equal(call.function.name, "code_of");
    assert.equal(typeof JSON.parse(call.function.arguments).part, "string");
    assert.equal(answer.choices[0].finish_reason, "tool_calls");
  });
}

test("a response", async () => {
  const answer = await client.responses.create({ model, input: messages, max_output_tokens: 16, temperature: 0 });
  assert.ok(answer.output_text);
});

test("a response, streamed", async () => {
  const events = [];
  const wanted = { model, input: messages, max_output_tokens: 16, temperature: 0, stream: true };
  for await (const event of await client.responses.create(wanted)) events.push(event.type);
  assert.equal(events[0], "response.created");
  assert.ok(["response.completed", "response.incomplete"].includes(events.at(-1)));
});

test("an error of the client's own", async () => {
  const long = { ...asked, messages: [{ role: "user", content: "ab ".repeat(30000) }] };
  await assert.rejects(client.chat.completions.create(long), (error) => error.code === "context_length_exceeded");
});
