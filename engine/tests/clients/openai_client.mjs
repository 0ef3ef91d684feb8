// Drives a running server through OpenAI's own client for TypeScript and JavaScript.
//
//     npm install && node openai_client.mjs http://127.0.0.1:30000/v1
//
// The server needs a model whose chat template is Qwen3's. One PASS or FAIL line a check; the exit
// code is 1 if any failed. Nothing here depends on what the model says.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { apiKey, baseURL, model, run } from "./checks.mjs";

const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });

const messages = [{ role: "user", content: "서울에 대해 한 문장으로 말해 줘." }];
const at_once = { chat_template_kwargs: { enable_thinking: false } };
const chat = (fields) =>
  client.chat.completions.create({ model, messages, max_tokens: 24, temperature: 0, ...at_once, ...fields });

const schema = {
  type: "object",
  properties: { city: { enum: ["Seoul", "Busan"] } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "get_weather", parameters: schema } }];
const isCity = (text) => ["Seoul", "Busan"].includes(JSON.parse(text).city);

await run({
  async completion() {
    const answer = await client.completions.create({ model, prompt: "Once", max_tokens: 8, temperature: 0 });
    assert.ok(["stop", "length"].includes(answer.choices[0].finish_reason));
    const { prompt_tokens, completion_tokens, total_tokens } = answer.usage;
    assert.equal(total_tokens, prompt_tokens + completion_tokens);
  },

  async "streamed chat"() {
    const whole = await chat({});
    let text = "";
    let usage = null;
    for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
      text += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  },

  async logprobs() {
    const { content } = (await chat({ logprobs: true, top_logprobs: 2 })).choices[0].logprobs;
    assert.ok(content.length > 0);
    for (const token of content) assert.equal(token.logprob, token.top_logprobs[0].logprob);
  },

  async schema() {
    const response_format = { type: "json_schema", json_schema: { name: "city", schema } };
    const answer = await chat({ response_format, max_tokens: 300 });
    assert.ok(isCity(answer.choices[0].message.content));
  },

  async "tool, streamed"() {
    const tool_choice = { type: "function", function: { name: "get_weather" } };
    const stream = client.chat.completions.stream({
      model, messages, tools, tool_choice, max_tokens: 300, temperature: 0, ...at_once,
    });
    const answer = await stream.finalChatCompletion();
    assert.equal(answer.choices[0].finish_reason, "tool_calls");
    const [call] = answer.choices[0].message.tool_calls;
    assert.equal(call.function.name, "get_weather");
    assert.ok(isCity(call.function.arguments));
  },

  async "abandoned stream"() {
    const stream = await chat({ stream: true, max_tokens: 200 });
    for await (const _ of stream) break;
    assert.equal((await chat({ max_tokens: 1 })).usage.completion_tokens, 1);
  },

  async "bad requests"() {
    const bad = (fields, status, param) =>
      assert.rejects(chat(fields), (error) => error.status === status && error.param === param);
    await bad({ temperature: -1 }, 400, "temperature");
    await bad({ messages: [] }, 400, "messages");
    await bad({ model: "no-such-model" }, 404, "model");
    await assert.rejects(client.embeddings.create({ model, input: "x" }), { status: 400 });
  },
});
