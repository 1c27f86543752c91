// Content addresses are those of other implementations: what npm's `ipfs-unixfs-importer` computes is what is written
// in vectors/unixfs.json, which the Rust tests read, and what `assay cid` prints.
//
// Usage: run.mjs PATH_OF_ASSAY. Prints one line a check and `N passed, N failed` at the end.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { bytes, vectors } from './vectors.mjs';

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

const written = JSON.parse(readFileSync(new URL('../../vectors/unixfs.json', import.meta.url), 'utf8'));
await check('the written CIDs are those of ipfs-unixfs-importer', async () => {
  assert.deepEqual(await vectors(), written);
});
await check('assay cid prints them', () => {
  for (const file of written.files) {
    const path = join(dir, 'file');
    writeFileSync(path, bytes(file.len));
    assert.equal(execFileSync(assay, ['cid', path], { encoding: 'utf8' }), `${file['unixfs-v1-2025']}\n`);
    const words = ['cid', path, '--profile', 'unixfs-v0-2015', '--json'];
    const { cid, bytes: length } = JSON.parse(execFileSync(assay, words, { encoding: 'utf8' }));
    assert.deepEqual([cid, length], [file['unixfs-v0-2015'], file.len]);
  }
});

console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed === 0 ? 0 : 1;
