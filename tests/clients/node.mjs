// The npm `openai` client against a running network. Usage: node.mjs BASE_URL KEY ENCODER. Prints one JSON line a check:
// {"name": .., "error": ..}; no `error` means passed.
import assert from 'node:assert/strict';
import OpenAI from 'openai';

const [baseURL, apiKey, encoder] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: 'user', content: 'What is the capital of France?' }];
const chat = (change) => client.chat.completions.create({ model, messages, temperature: 0, ...change });

const checks = {
  'node: answers the capital of France': async () => {
    const reply = await chat();
    assert.match(reply.choices[0].message.content, /Paris/);
    assert.equal(reply.choices[0].finish_reason, 'stop');
  },
  'node: stream equals the whole answer of the same seed': async () => {
    const whole = await chat({ seed: 11, temperature: 1 });
    let text = '';
    let usage;
    for await (const chunk of await chat({
      seed: 11,
      temperature: 1,
      stream: true,
      stream_options: { include_usage: true },
    })) {
      text += chunk.choices[0]?.delta?.content ?? '';
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  },
  'node: responses, whole and streamed': async () => {
    const ask = { model, input: 'What is the capital of France?', temperature: 0 };
    const whole = await client.responses.create(ask);
    assert.match(whole.output_text, /Paris/);
    let text = '';
    let last;
    for await (const event of await client.responses.create({ ...ask, stream: true })) {
      if (event.type === 'response.output_text.delta') text += event.delta;
      last = event;
    }
    assert.equal(text, whole.output_text);
    assert.equal(last.type, 'response.completed');
    assert.equal(last.response.usage.output_tokens, whole.usage.output_tokens);
  },
  'node: embeddings, base64 and float, and the receipt page checks theirs': async () => {
    const ask = { model: encoder, input: ['the cat', 'the dog'] };
    const packed = await client.embeddings.create(ask);
    const plain = await client.embeddings.create({ ...ask, encoding_format: 'float' });
    assert.deepEqual(packed.data.map((row) => row.embedding.length), [384, 384]);
    packed.data.forEach((row, i) => row.embedding.forEach((x, j) => assert.equal(Math.fround(plain.data[i].embedding[j]), x)));
    const source = await (await fetch(new URL('/r/verify.js', baseURL))).text();
    const { parse, verify } = await import(`data:text/javascript;base64,${Buffer.from(source).toString('base64')}`);
    const file = parse(JSON.stringify(await client.get(`/receipts/${packed.assay.receipt}`)));
    assert.ok(verify(file).every((check) => check.holds), JSON.stringify(verify(file)));
    file.job.embed.lengths.reverse();
    file.job.embed.lengths[0] += 1;
    assert.ok(verify(file).some((check) => !check.holds));
  },
  'node: the receipt page checks a receipt, and finds every change': async () => {
    const at = (path) => new URL(path, baseURL);
    assert.match(await (await fetch(at('/r/0x00'))).text(), /<script type="module" src="\/r\/page.js">/);
    const source = await (await fetch(at('/r/verify.js'))).text();
    const { parse, verify } = await import(`data:text/javascript;base64,${Buffer.from(source).toString('base64')}`);
    const ask = { seed: 5, stop: ['zzz', 'ä'], logit_bias: { 7: -1 }, response_format: { type: 'json_object' }, max_tokens: 90 };
    const { response } = await chat(ask).withResponse();
    const json = JSON.stringify(await client.get(`/receipts/${response.headers.get('x-assay-receipt')}`));
    const checks = verify(parse(json));
    assert.ok(checks.length >= 10 && checks.every((check) => check.holds), JSON.stringify(checks));
    const changes = [
      (file) => (file.job.prompt[0] += 1),
      (file) => (file.job.sampling.seed = '6'),
      (file) => file.job.stop.pop(),
      (file) => (file.job.grammar.text += ' '),
      (file) => (file.job.logitBias[0].biasMicro = 5),
      (file) => (file.manifest.fileLen += 1),
      (file) => (file.parts[0].output[0] ^= 1),
      (file) => (file.parts[0].receipt.charged = '0'),
      (file) => (file.parts[0].receipt.issuedAt += 1),
      (file) => (file.parts[0].channel.salt = `0x${'00'.repeat(31)}07`),
      (file) => (file.parts[0].provider = `0x${'11'.repeat(20)}`),
      (file) => (file.registry = `0x${'11'.repeat(20)}`),
    ];
    for (const change of changes) {
      const file = parse(json);
      change(file);
      assert.ok(verify(file).some((check) => !check.holds), change.toString());
    }
  },
  'node: system message and several turns': async () => {
    const reply = await client.chat.completions.create({
      model,
      temperature: 0,
      messages: [
        { role: 'system', content: 'You are a helpful assistant.' },
        { role: 'user', content: 'Hello' },
        { role: 'assistant', content: 'Hello! How can I help you?' },
        { role: 'user', content: [{ type: 'text', text: 'What is the capital of France?' }] },
      ],
    });
    assert.ok(reply.usage.prompt_tokens > 10);
  },
  'node: aborted stream': async () => {
    const stream = await chat({ stream: true, messages: [{ role: 'user', content: 'Tell me a long story.' }] });
    for await (const _chunk of stream) {
      stream.controller.abort();
      break;
    }
    assert.match((await chat()).choices[0].message.content, /Paris/);
  },
  'node: unknown model is 404 model_not_found': async () => {
    await assert.rejects(chat({ model: 'gpt-9' }), (e) => e.status === 404 && e.code === 'model_not_found');
  },
  'node: wrong type names the field': async () => {
    await assert.rejects(chat({ max_tokens: 'many' }), (e) => e.status === 400 && e.param === 'max_tokens');
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
