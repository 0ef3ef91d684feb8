// Drives a running server through Vercel's AI SDK (`ai` with `@ai-sdk/openai-compatible`).
//
//     npm install && node ai_sdk.mjs http://127.0.0.1:30000/v1
//
// The server needs `--reasoning-parser qwen3`, and a model whose chat template is Qwen3's. Nothing
// here depends on what the model says: forms and calls of tools are forced.

import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import {
  APICallError, embed, generateObject, generateText, Output, stepCountIs, streamObject, streamText, tool,
} from "ai";
import { z } from "zod";
import { apiKey, baseURL, model as id, run } from "./checks.mjs";

const server = createOpenAICompatible({
  name: "engine",
  baseURL,
  apiKey,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = server(id);
const atOnce = { engine: { chat_template_kwargs: { enable_thinking: false } } };
const question = {
  model,
  messages: [{ role: "user", content: "서울 날씨 어때?" }],
  maxRetries: 0,
  temperature: 0,
  providerOptions: atOnce,
};
const short = { ...question, maxOutputTokens: 24 };
const long = { ...question, maxOutputTokens: 300 };

const weather = z.strictObject({ city: z.enum(["Seoul", "Busan"]), days: z.literal([1, 2]) });
const getWeather = (calls) =>
  tool({
    description: "Says the weather of a city.",
    inputSchema: weather,
    execute: async (input) => {
      calls.push(input);
      return `clear in ${input.city}`;
    },
  });

const assertSums = ({ inputTokens, outputTokens, totalTokens }) => {
  assert.ok(inputTokens > 0 && outputTokens > 0);
  assert.equal(totalTokens, inputTokens + outputTokens);
};
const tokenOf = async (text) => {
  const body = JSON.stringify({ prompt: text });
  const headers = { authorization: `Bearer ${apiKey}`, "content-type": "application/json" };
  const answer = await fetch(`${baseURL}/tokenize`, { method: "POST", headers, body });
  const { tokens } = await answer.json();
  assert.equal(tokens.length, 1);
  return tokens[0];
};

await run({
  async generateText() {
    const answer = await generateText(short);
    assert.ok(answer.text.length > 0);
    assert.ok(["stop", "length"].includes(answer.finishReason));
    assert.equal(answer.response.modelId, id);
    assertSums(answer.usage);
    assert.ok(answer.usage.outputTokens <= 24);
    assert.deepEqual(answer.warnings ?? [], []);
  },

  async "streamText with usage"() {
    const whole = await generateText(short);
    const answer = streamText(short);
    const parts = [];
    for await (const part of answer.textStream) parts.push(part);
    assert.ok(parts.length > 3);
    assert.equal(parts.join(""), whole.text);
    assert.equal(await answer.finishReason, whole.finishReason);
    const usage = await answer.usage;
    assertSums(usage);
    assert.equal(usage.outputTokens, whole.usage.outputTokens);
    assert.equal(usage.inputTokens, whole.usage.inputTokens);
  },

  async "topP of 0"() {
    // Keeps the likeliest token, whatever the temperature.
    const greedy = await generateText(short);
    const narrow = await generateText({ ...short, temperature: 1, topP: 0, seed: 3 });
    assert.equal(narrow.text, greedy.text);
    assert.equal((await generateText({ ...short, temperature: undefined, topP: 0 })).text, greedy.text);
  },

  async "stop sequences"() {
    const { text } = await generateText(short);
    // From the middle, and no character that stands for broken ones.
    const half = [...text].slice([...text].length / 2).join("");
    const [stop] = half.split("\ufffd").filter((piece) => piece).map((piece) => [...piece].slice(0, 4).join(""));
    const answer = await generateText({ ...short, stopSequences: [stop] });
    assert.equal(answer.text, text.slice(0, text.indexOf(stop)));
    assert.equal(answer.finishReason, "stop");
  },

  async generateObject() {
    const { object, finishReason, usage } = await generateObject({ ...long, schema: weather });
    assert.ok(weather.safeParse(object).success);
    assert.equal(finishReason, "stop");
    assertSums(usage);
    const several = await generateObject({ ...long, output: "enum", enum: ["맑음", "흐림"] });
    assert.ok(["맑음", "흐림"].includes(several.object));
    const { output } = await generateText({ ...long, output: Output.object({ schema: weather }) });
    assert.deepEqual(output, object);
  },

  async streamObject() {
    const answer = streamObject({ ...long, schema: weather });
    let last = null;
    for await (const part of answer.partialObjectStream) last = part;
    assert.ok(weather.safeParse(last).success);
    assert.deepEqual(await answer.object, last);
  },

  async "tools, and an answer with their results"() {
    const calls = [];
    const answer = await generateText({
      ...long,
      tools: { getWeather: getWeather(calls) },
      // Forced in the first step, so that an answer can follow.
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
      maxOutputTokens: 60,
      providerOptions: { engine: { ...atOnce.engine, parallel_tool_calls: false } },
      stopWhen: stepCountIs(2),
    });
    assert.equal(answer.steps.length, 2);
    assert.equal(answer.steps[0].finishReason, "tool-calls");
    assert.equal(calls.length, 1);
    assert.ok(weather.safeParse(calls[0]).success);
    const [call] = answer.steps[0].toolCalls;
    const [result] = answer.steps[0].toolResults;
    assert.equal(call.toolName, "getWeather");
    assert.equal(result.toolCallId, call.toolCallId);
    assert.equal(result.output, `clear in ${calls[0].city}`);
    assert.ok(["stop", "length"].includes(answer.finishReason));
  },

  async "a tool by name, streamed"() {
    const calls = [];
    const answer = streamText({
      ...long,
      tools: { getWeather: getWeather(calls), other: getWeather(calls) },
      toolChoice: { type: "tool", toolName: "getWeather" },
    });
    let text = "";
    let whole = null;
    for await (const part of answer.fullStream) {
      if (part.type === "tool-input-delta") text += part.delta;
      if (part.type === "tool-call") whole = part;
      assert.notEqual(part.type, "error", part.error);
    }
    assert.equal(whole.toolName, "getWeather");
    assert.deepEqual(JSON.parse(text), whole.input);
    assert.deepEqual(calls, [whole.input]);
    assert.equal(await answer.finishReason, "tool-calls");
  },

  async thoughts() {
    const logit_bias = { [await tokenOf("<think>")]: 50, [await tokenOf("ha")]: 90 };
    const thinking = {
      ...question,
      maxOutputTokens: 5,
      providerOptions: { engine: { logit_bias, guided_choice: ["well."] } },
    };
    const whole = await generateText(thinking);
    assert.equal(whole.reasoningText, "hahahaha");
    assert.equal(whole.text, "");
    // The fifth begins the thought.
    assert.equal(whole.usage.outputTokenDetails.reasoningTokens, 4);
    const streamed = streamText(thinking);
    await streamed.consumeStream();
    assert.equal(await streamed.reasoningText, "hahahaha");
  },

  async "an abandoned stream"() {
    const stop = new AbortController();
    const answer = streamText({ ...question, maxOutputTokens: 2000, abortSignal: stop.signal });
    for await (const part of answer.fullStream) if (part.type === "text-delta") stop.abort();
    const next = await generateText({ ...short, maxOutputTokens: 1 });
    assert.equal(next.usage.outputTokens, 1);
  },

  async completion() {
    const prompt = "Once upon a time";
    const answer = await generateText({
      model: server.completionModel(id), prompt, maxRetries: 0, temperature: 0, maxOutputTokens: 8,
    });
    assert.ok(answer.text.length > 0);
    assertSums(answer.usage);
  },

  async refusals() {
    const refused = (fields, status, words) =>
      assert.rejects(generateText({ ...short, ...fields }), (error) => {
        assert.ok(APICallError.isInstance(error), error);
        assert.equal(error.statusCode, status);
        assert.match(error.message, words);
        return true;
      });
    await refused({ temperature: -1 }, 400, /temperature is -1/);
    await refused({ model: server("no-such-model") }, 404, /no-such-model/);
    await refused({ messages: [{ role: "user", content: "word ".repeat(50000) }] }, 400, /tokens/);
    const wish = embed({ model: server.embeddingModel(id), value: "x", maxRetries: 0 });
    await assert.rejects(wish, (error) => error.statusCode === 400 && /embeddings is not impl/.test(error.message));
    // A stream says the same.
    let said = null;
    const stream = streamText({ ...short, temperature: -1, onError: ({ error }) => (said = error) });
    await stream.consumeStream();
    assert.equal(said.statusCode, 400);
    assert.match(said.message, /temperature is -1/);
  },
});
