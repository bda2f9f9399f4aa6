// The Vercel AI SDK with @ai-sdk/openai-compatible and @ai-sdk/openai against an edge, in PREREAD_TESTED_EDGE.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = `${process.env.PREREAD_TESTED_EDGE}/v1`;
const listed = await (await fetch(`${baseURL}/models`)).json();
const name = listed.data.map((model) => model.id).find((id) => id.endsWith("@manual"));
const compatible = createOpenAICompatible({ name: "edge", baseURL, supportsStructuredOutputs: true, includeUsage: true });
const model = compatible(name);
const prompt = "What is the code of the pump?";
const asked = { model, prompt, temperature: 0, maxOutputTokens: 60, maxRetries: 0 };
const Part = z.object({ name: z.string(), code: z.number().int() });
const code_of = tool({
  description: "The code of a part.",
  inputSchema: z.object({ part: z.string() }),
  execute: async () => 114,
});

test("generateText", async () => {
  const { text, usage } = await generateText(asked);
  assert.ok(text);
  assert.ok(usage.outputTokens > 0);
});

test("streamText", async () => {
  const result = streamText(asked);
  let text = "";
  for await (const part of result.textStream) text += part;
  assert.ok(text);
  assert.ok((await result.usage).outputTokens > 0);
});

test("generateObject", async () => {
  const { object } = await generateObject({ ...asked, schema: Part });
  assert.ok(Number.isInteger(object.code));
});

test("streamObject", async () => {
  const result = streamObject({ ...asked, schema: Part });
  for await (const _ of result.partialObjectStream);
  assert.ok(Number.isInteger((await result.object).code));
});

test("generateText with tools", async () => {
  const wanted = { ...asked, tools: { code_of }, toolChoice: "required", stopWhen: stepCountIs(1) };
  const { toolCalls, toolResults } = await generateText(wanted);
  assert.equal(toolCalls[0].toolName, "code_of");
  assert.equal(toolResults[0].output, 114);
});

test("streamText with tools", async () => {
  const wanted = { ...asked, tools: { code_of }, toolChoice: "required", stopWhen: stepCountIs(1) };
  const result = streamText(wanted);
  await result.consumeStream();
  assert.equal((await result.toolCalls)[0].toolName, "code_of");
});

test("@ai-sdk/openai: generateText over responses", async () => {
  const openai = createOpenAI({ baseURL, apiKey: "none" });
  const { text } = await generateText({ ...asked, model: openai.responses(name) });
  assert.ok(text);
});
