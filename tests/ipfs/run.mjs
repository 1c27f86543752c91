// Content addresses and gateways are those of other implementations: npm's `ipfs-unixfs-importer` computes the same CIDs,
// `assay pull` takes files from a gateway that answers with `@helia/verified-fetch`, and Helia takes files from
// `assay store serve`. And `assay pull hf:` against a host that behaves like Hugging Face.
//
// Usage: run.mjs PATH_OF_ASSAY, with Node 22. Prints one line a check and `N passed, N failed` at the end.
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { heliaFetch, heliaGateway } from './helia.mjs';
import { bytes, vectors } from './vectors.mjs';

const PROFILES = ['unixfs-v1-2025', 'unixfs-v0-2015'];
const assay = process.argv[2];
const dir = mkdtempSync(join(tmpdir(), 'assay-ipfs-'));
process.on('exit', () => rmSync(dir, { recursive: true, force: true }));

let [passed, failed] = [0, 0];
const check = async (name, work) => {
  try {
    await work();
    passed += 1;
    console.log(`ok  ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name}: ${String(error?.stack ?? error).slice(0, 2000)}`);
  }
};

/** What assay prints; an error has what it said. */
const run = (words, env) =>
  new Promise((resolve, reject) => {
    execFile(assay, words, { env: { ...process.env, HOME: dir, ...env } }, (error, stdout, stderr) => {
      if (error) reject(new Error(`assay ${words.join(' ')}: ${stderr}`));
      else resolve(stdout);
    });
  });
let files = 0;
const pull = async (what, words, env) => {
  files += 1;
  const out = join(dir, `pulled-${files}`);
  const result = JSON.parse(await run(['pull', what, '--json', '--out', out, ...words], env));
  return { ...result, content: readFileSync(out) };
};
const same = (left, right) => assert.equal(Buffer.compare(left, right), 0);

const written = JSON.parse(readFileSync(new URL('../../vectors/unixfs.json', import.meta.url), 'utf8'));
const file = bytes(written.files[3].len);
const path = join(dir, 'file');
writeFileSync(path, file);

await check('the written CIDs are those of ipfs-unixfs-importer', async () => {
  assert.deepEqual(await vectors(), written);
});
await check('assay cid prints them', async () => {
  for (const { len, ...cids } of written.files) {
    const path = join(dir, 'any');
    writeFileSync(path, bytes(len));
    assert.equal(await run(['cid', path]), `${cids[PROFILES[0]]}\n`);
    const json = JSON.parse(await run(['cid', path, '--profile', PROFILES[1], '--json']));
    assert.deepEqual([json.cid, json.bytes], [cids[PROFILES[1]], len]);
  }
});

for (const profile of PROFILES) {
  const gateway = await heliaGateway([file, bytes(0), bytes(1000)], profile);
  await check(`blocks and streams of Helia, ${profile}`, async () => {
    for (const [index, cid] of gateway.cids.entries()) {
      for (const way of [[], ['--car']]) {
        gateway.asked.length = 0;
        const pulled = await pull(cid, ['--from', gateway.url, ...way]);
        same(pulled.content, [file, bytes(0), bytes(1000)][index]);
        assert.equal(gateway.asked.length, way.length ? 1 : pulled.blocks);
      }
    }
  });
  await check(`one flipped bit is refused at its block and fetched elsewhere, ${profile}`, async () => {
    const liar = await heliaGateway([file], profile);
    let spoiled;
    liar.spoil = (pathname, piece) => {
      if (spoiled === undefined && pathname !== `/ipfs/${liar.cids[0]}`) {
        spoiled = pathname.slice('/ipfs/'.length);
        piece = Uint8Array.from(piece);
        piece[piece.length >> 1] ^= 1;
      }
      return piece;
    };
    const pulled = await pull(liar.cids[0], ['--from', liar.url, '--from', gateway.url]);
    same(pulled.content, file);
    assert.equal(pulled.dropped.length, 1);
    const [{ source, why, lied }] = pulled.dropped;
    assert.ok(lied && source.startsWith(liar.url) && why.includes(spoiled), why);
    await liar.close();
  });
  await check(`Helia takes a file from assay, ${profile}`, async () => {
    const words = ['store', 'serve', path, '--listen', '127.0.0.1:0', '--json', '--profile', profile];
    const home = mkdtempSync(join(dir, 'home-'));
    const server = spawn(assay, words, { stdio: ['ignore', 'pipe', 'inherit'], env: { ...process.env, HOME: home } });
    try {
      const [line] = await once(createInterface({ input: server.stdout }), 'line');
      const { url, models } = JSON.parse(line);
      assert.equal(models[0].cid, gateway.cids[0]);
      const got = await heliaFetch(models[0].cid, url);
      assert.equal(got.status, 200);
      same(got.bytes, file);
      // By the name that it has there.
      same((await pull('file', ['--from', url])).content, file);
    } finally {
      const ended = once(server, 'exit');
      server.kill('SIGTERM');
      assert.deepEqual(await ended, [0, null]);
    }
  });
  await gateway.close();
}

await check('a repository: the token stays with its host, a break is gone on from', async () => {
  const sha256 = createHash('sha256').update(file).digest('hex');
  const seen = [];
  let breaks = 1;
  const cdn = createServer((request, reply) => {
    seen.push(request.headers.authorization);
    const from = Number(/bytes=(\d+)-/.exec(request.headers.range ?? '')?.[1] ?? 0);
    const head = { 'content-length': file.length - from };
    if (from > 0) head['content-range'] = `bytes ${from}-${file.length - 1}/${file.length}`;
    reply.writeHead(from > 0 ? 206 : 200, head);
    if (breaks > 0) {
      breaks -= 1;
      reply.write(file.subarray(from, from + 1_000_000), () => reply.destroy());
    } else {
      reply.end(file.subarray(from));
    }
  });
  const hub = createServer((request, reply) => {
    if (request.headers.authorization !== 'Bearer hf_x') {
      reply.writeHead(401).end();
    } else if (request.url.startsWith('/api/models/Owner/Tiny-GGUF/tree/main')) {
      const row = (path) => ({ type: 'file', path, size: file.length, lfs: { oid: sha256 } });
      reply.end(JSON.stringify([row('tiny-F16.gguf'), row('tiny-Q4_K_M.gguf')]));
    } else {
      reply.writeHead(302, { location: `http://127.0.0.1:${cdn.address().port}${request.url}` }).end();
    }
  });
  for (const server of [cdn, hub]) {
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
  }
  const env = { HF_ENDPOINT: `http://127.0.0.1:${hub.address().port}`, HF_TOKEN: 'hf_x' };
  const pulled = await pull('hf:Owner/Tiny-GGUF', [], env);
  same(pulled.content, file);
  assert.equal(pulled.sha256, sha256);
  assert.deepEqual(seen, [undefined, undefined]);
  await assert.rejects(pull('hf:Owner/Tiny-GGUF:Q2_K', [], env), /tiny-F16.gguf, tiny-Q4_K_M.gguf/);
  await assert.rejects(pull('hf:Owner/Tiny-GGUF', [], { ...env, HF_TOKEN: '' }), /HF_TOKEN/);
  for (const server of [cdn, hub]) {
    server.closeAllConnections();
    server.close();
  }
});

await check('a model is published: on the chain, and from there to its manifest and its file', async () => {
  const model = join(dir, 'tiny.gguf');
  copyFileSync(new URL('../../models/assay-tiny/assay-tiny-q8_0.gguf', import.meta.url), model);
  const keys = ['a1', 'b2'].map((byte) => {
    const key = join(dir, `${byte}.key`);
    writeFileSync(key, byte.repeat(32));
    return key;
  });
  const network = spawn(assay, ['up', '--json', '--dir', join(dir, 'network'), '--port', '0', '--providers', '1'], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, HOME: dir },
  });
  const ended = once(network, 'exit');
  let server;
  try {
    const [line] = await once(createInterface({ input: network.stdout }), 'line');
    const { modelRegistry } = JSON.parse(readFileSync(join(dir, 'network/network.json'), 'utf8')).addresses;
    const publish = async (key) =>
      JSON.parse(
        await run(['publish', model, '--json', '--rpc', JSON.parse(line).chain, '--registry', modelRegistry, '--key-file', key]),
      );
    const first = await publish(keys[0]);
    assert.match(first.transaction, /^0x[0-9a-f]{64}$/);
    assert.equal((await publish(keys[1])).transaction, null);
    assert.equal(`${first.cid}\n`, await run(['cid', model]));
    server = spawn(assay, ['store', 'serve', model, '--listen', '127.0.0.1:0', '--json'], {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...process.env, HOME: dir },
    });
    const { url } = JSON.parse((await once(createInterface({ input: server.stdout }), 'line'))[0]);
    const manifest = JSON.parse((await pull(first.uri, ['--from', url])).content);
    assert.deepEqual([manifest.modelId, manifest.cid], [first.modelId, first.cid]);
    assert.equal(manifest.manifest.weightsRoot, first.weightsRoot);
    same((await pull(manifest.cid, ['--from', url])).content, readFileSync(model));
    // The same model cut in another way has another manifest, which only its publisher could have registered.
    rmSync(join(dir, '.assay/blocks'), { recursive: true });
    const words = ['publish', model, '--profile', PROFILES[1], '--rpc', JSON.parse(line).chain];
    await assert.rejects(run([...words, '--registry', modelRegistry, '--key-file', keys[1]]), /was registered by 0x/);
    await assert.rejects(run([...words, '--registry', modelRegistry, '--key-file', keys[0]]), /can never change/);
  } finally {
    server?.kill('SIGTERM');
    network.kill('SIGTERM');
    await ended;
  }
});

console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
