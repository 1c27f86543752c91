// CIDs of the same bytes by npm's `ipfs-unixfs-importer`: files of several lengths in both profiles, and trees of small
// chunks and few links, which are deep.
//
// Usage: vectors.mjs > vectors/unixfs.json
import { importBytes } from 'ipfs-unixfs-importer';
import { fixedSize } from 'ipfs-unixfs-importer/chunker';
import { balanced } from 'ipfs-unixfs-importer/layout';
import { fileURLToPath } from 'node:url';

const LENGTHS = [0, 1000, 262_145, 3_145_735, 45_613_057];
const TREES = [];
for (const raw of [true, false]) {
  for (const [chunk, links, len] of [[16, 2, 100], [16, 2, 512], [100, 3, 8_100], [100, 3, 8_101], [7, 5, 4_000]]) {
    TREES.push({ chunk, links, raw, len });
  }
}

/** The bytes that the tests make, too. */
export const bytes = (length) => {
  const out = new Uint8Array(length);
  let state = 7;
  for (let i = 0; i < length; i += 1) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    out[i] = state >>> 24;
  }
  return out;
};

/** Keeps nothing. */
const nowhere = { put: async (cid) => cid, get: () => { throw new Error('nothing is kept'); } };

const cid = async (content, options) => (await importBytes(content, nowhere, options)).cid.toString();

export const vectors = async () => {
  const all = bytes(Math.max(...LENGTHS));
  const files = [];
  for (const len of LENGTHS) {
    const file = { len };
    for (const profile of ['unixfs-v1-2025', 'unixfs-v0-2015']) {
      file[profile] = await cid(all.subarray(0, len), { profile });
    }
    files.push(file);
  }
  const trees = [];
  for (const tree of TREES) {
    const options = {
      profile: tree.raw ? 'unixfs-v1-2025' : 'unixfs-v0-2015',
      chunker: fixedSize({ chunkSize: tree.chunk }),
      layout: balanced({ maxChildrenPerNode: tree.links }),
    };
    trees.push({ ...tree, cid: await cid(all.subarray(0, tree.len), options) });
  }
  return { files, trees };
};

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  console.log(JSON.stringify(await vectors(), undefined, 1));
}
