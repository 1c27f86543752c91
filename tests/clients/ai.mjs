// Vercel's `ai` against a running network. Usage: ai.mjs BASE_URL KEY. Prints as node.mjs does.
import assert from 'node:assert/strict';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, jsonSchema, streamText, tool } from 'ai';

const [baseURL, apiKey] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: 'assay', baseURL, apiKey, includeUsage: true });
const model = provider('assay-tiny');
const ask = { model, prompt: 'What is the capital of France?', temperature: 0, maxRetries: 0 };

const checks = {
  'ai: generateText': async () => {
    const { text, usage, finishReason } = await generateText(ask);
    assert.match(text, /Paris/);
    assert.equal(finishReason, 'stop');
    assert.ok(usage.outputTokens > 0);
  },
  'ai: streamText equals the whole answer': async () => {
    const stream = streamText(ask);
    let text = '';
    for await (const piece of stream.textStream) text += piece;
    assert.equal(text, (await generateText(ask)).text);
    assert.ok((await stream.usage).outputTokens > 0);
  },
  'ai: a forced tool call': async () => {
    const city = { type: 'object', additionalProperties: false, required: ['city'], properties: { city: { type: 'string', enum: ['Paris', 'Rome'] } } };
    const tools = { rain: tool({ description: 'Whether it rains', inputSchema: jsonSchema(city) }) };
    const { toolCalls } = await generateText({ ...ask, tools, toolChoice: 'required' });
    assert.equal(toolCalls[0].toolName, 'rain');
    assert.match(toolCalls[0].input.city, /Paris|Rome/);
  },
  'ai: an unknown model is an error': async () => {
    await assert.rejects(generateText({ ...ask, model: provider('gpt-9') }), (e) => e.statusCode === 404);
  },
};

for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(JSON.stringify({ name }));
  } catch (error) {
    console.log(JSON.stringify({ name, error: String(error?.stack ?? error).slice(0, 2000) }));
  }
}
