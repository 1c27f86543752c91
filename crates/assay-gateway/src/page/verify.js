// Checks what a receipt file says against itself: every hash, count and signature, as `assay verify FILE` does without a
// model. No dependencies: integers are BigInt, bytes are Uint8Array. docs/PROTOCOL.md defines the bytes.

const PARTS_MAX = 64;
const FINISHES = ['open', 'stop', 'length', 'cancelled'];
const GRAMMARS = ['json_schema', 'regex', 'lark'];

// ---- keccak-256 (FIPS 202's permutation with the padding byte 01)
const MASK = (1n << 64n) - 1n;
const [ROUNDS, ROTATIONS] = (() => {
  const rotations = Array(25).fill(0n);
  let [x, y] = [1, 0];
  for (let t = 0; t < 24; t += 1) {
    rotations[x + 5 * y] = BigInt(((t + 1) * (t + 2)) / 2) % 64n;
    [x, y] = [y, (2 * x + 3 * y) % 5];
  }
  // The round constants come from a shift register of 8 bits.
  const constants = [];
  let register = 1;
  for (let round = 0; round < 24; round += 1) {
    let constant = 0n;
    for (let j = 0; j < 7; j += 1) {
      if (register & 1) constant |= 1n << BigInt((1 << j) - 1);
      register = register & 0x80 ? ((register << 1) ^ 0x171) & 0xff : register << 1;
    }
    constants.push(constant);
  }
  return [constants, rotations];
})();

const rotate = (lane, by) => ((lane << by) | (lane >> (64n - by))) & MASK;

function permute(s) {
  for (const constant of ROUNDS) {
    const c = [0, 1, 2, 3, 4].map((x) => s[x] ^ s[x + 5] ^ s[x + 10] ^ s[x + 15] ^ s[x + 20]);
    for (let i = 0; i < 25; i += 1) s[i] ^= c[(i + 4) % 5] ^ rotate(c[(i + 1) % 5], 1n);
    const b = Array(25);
    for (let x = 0; x < 5; x += 1) {
      for (let y = 0; y < 5; y += 1) b[y + 5 * ((2 * x + 3 * y) % 5)] = rotate(s[x + 5 * y], ROTATIONS[x + 5 * y]);
    }
    for (let i = 0; i < 25; i += 1) {
      const row = i - (i % 5);
      s[i] = b[i] ^ (~b[row + ((i + 1) % 5)] & MASK & b[row + ((i + 2) % 5)]);
    }
    s[0] ^= constant;
  }
}

export function keccak(bytes) {
  const RATE = 136;
  const padded = new Uint8Array((Math.floor(bytes.length / RATE) + 1) * RATE);
  padded.set(bytes);
  padded[bytes.length] ^= 0x01;
  padded[padded.length - 1] ^= 0x80;
  const words = new DataView(padded.buffer);
  const state = Array(25).fill(0n);
  for (let start = 0; start < padded.length; start += RATE) {
    for (let i = 0; i < RATE / 8; i += 1) state[i] ^= words.getBigUint64(start + 8 * i, true);
    permute(state);
  }
  const out = new DataView(new ArrayBuffer(32));
  for (let i = 0; i < 4; i += 1) out.setBigUint64(8 * i, state[i], true);
  return new Uint8Array(out.buffer);
}

// ---- bytes
const text = (value) => new TextEncoder().encode(value);
const number = (bytes) => bytes.reduce((sum, byte) => (sum << 8n) | BigInt(byte), 0n);
const shown = (bytes) => `0x${[...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('')}`;

function integer(value, size) {
  let rest = BigInt.asUintN(8 * size, BigInt(value));
  const out = new Uint8Array(size);
  for (let i = size - 1; i >= 0; i -= 1, rest >>= 8n) out[i] = Number(rest & 0xffn);
  return out;
}

function hex(value, size) {
  if (typeof value !== 'string' || !/^0x[0-9a-fA-F]*$/.test(value) || value.length !== 2 + 2 * size) {
    throw new Error(`${JSON.stringify(value)} is not ${size} bytes in hex`);
  }
  return Uint8Array.from(value.slice(2).match(/../g) ?? [], (byte) => parseInt(byte, 16));
}

function join(parts) {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => (out.set(part, at), at + part.length), 0);
  return out;
}

const counted = (items) => join([integer(items.length, 4), ...items]);
const tokens = (ids) => counted(ids.map((id) => integer(id, 4)));
const string = (value) => join([integer(text(value).length, 4), text(value)]);

// ---- what is hashed
function requestHash(job, prefix) {
  if (job.embed) {
    const { lengths, dimensions } = job.embed;
    const parts = [hex(job.modelId, 32), tokens(job.prompt), tokens(lengths), integer(dimensions, 4), hex(job.nonce, 32)];
    return keccak(join([text('assay/embed/1'), ...parts]));
  }
  const { sampling } = job;
  const grammar = !job.grammar
    ? integer(0, 1)
    : join([integer(GRAMMARS.indexOf(job.grammar.kind) + 1, 1), integer(job.grammar.version, 4), string(job.grammar.text)]);
  return keccak(
    join([
      text('assay/job/1'),
      hex(job.modelId, 32),
      tokens(job.prompt),
      tokens(prefix),
      integer(job.maxTokens, 4),
      integer(sampling.temperatureMicro, 4),
      integer(sampling.topPMicro, 4),
      integer(sampling.topK, 4),
      integer(sampling.minPMicro ?? 0, 4),
      integer(sampling.repetitionPenaltyMicro ?? 1_000_000, 4),
      integer(sampling.frequencyPenaltyMicro ?? 0, 4),
      integer(sampling.presencePenaltyMicro ?? 0, 4),
      integer(sampling.seed, 8),
      counted((job.logitBias ?? []).map((entry) => join([integer(entry.token, 4), integer(entry.biasMicro, 4)]))),
      grammar,
      counted((job.stop ?? []).map(string)),
      integer(job.ignoreEos ? 1 : 0, 1),
      integer(job.logprobs == null ? 0 : job.logprobs + 1, 1),
      hex(job.nonce, 32),
    ]),
  );
}

const responseHash = (output, finish) =>
  keccak(join([text('assay/response/1'), tokens(output), integer(FINISHES.indexOf(finish), 1)]));

function modelId(manifest) {
  // Version 2 is the one that has a hash of the model's graph.
  const graph = manifest.graphHash === undefined ? [] : [hex(manifest.graphHash, 32)];
  return keccak(
    join([
      text(`assay/manifest/${graph.length + 1}`),
      string(manifest.profile),
      hex(manifest.fileSha256, 32),
      integer(manifest.fileLen, 8),
      hex(manifest.weightsRoot, 32),
      hex(manifest.tokenizerHash, 32),
      hex(manifest.ropeHash, 32),
      ...graph,
      string(manifest.name),
      string(manifest.license),
    ]),
  );
}

// ---- typed data (EIP-712)
const wide = (value) => integer(value, 32);
const address = (value) => join([new Uint8Array(12), hex(value, 20)]);
const typed = (type, fields) => keccak(join([keccak(text(type)), ...fields]));

function domain(name, chainId, contract) {
  const type = 'EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)';
  return typed(type, [keccak(text(name)), keccak(text('1')), wide(chainId), address(contract)]);
}

const digest = (separator, struct) => keccak(join([Uint8Array.of(0x19, 0x01), separator, struct]));

function channelId(file, channel) {
  const type =
    'ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)';
  const parties = [channel.payer, channel.payerAuthorizer, channel.receiver, channel.receiverAuthorizer, channel.token];
  const struct = typed(type, [...parties.map(address), wide(channel.withdrawDelay), hex(channel.salt, 32)]);
  return digest(domain('x402 Batch Settlement', file.chainId, file.settlement), struct);
}

function receiptDigest(file, receipt) {
  const type =
    'Receipt(bytes32 channelId,bytes32 requestHash,bytes32 responseHash,bytes32 modelId,uint64 promptTokens,uint64 outputTokens,uint128 charged,uint128 chargedTotal,uint64 issuedAt)';
  const hashes = [receipt.channelId, receipt.requestHash, receipt.responseHash, receipt.modelId].map((h) => hex(h, 32));
  const counts = [receipt.promptTokens, receipt.outputTokens, receipt.charged, receipt.chargedTotal, receipt.issuedAt];
  return digest(domain('Assay', file.chainId, file.registry), typed(type, [...hashes, ...counts.map(wide)]));
}

// ---- secp256k1: who signed
const P = 2n ** 256n - 2n ** 32n - 977n;
const N = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n;
const G = [
  0x79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798n,
  0x483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8n,
];
const mod = (value, m) => ((value % m) + m) % m;

function power(base, exponent, m) {
  let result = 1n;
  for (let b = mod(base, m), e = exponent; e > 0n; e >>= 1n, b = (b * b) % m) if (e & 1n) result = (result * b) % m;
  return result;
}

const inverse = (value, m) => power(value, m - 2n, m);

// `null` is the point at infinity.
function add(a, b) {
  if (!a || !b) return a ?? b;
  if (a[0] === b[0] && mod(a[1] + b[1], P) === 0n) return null;
  const slope = a[0] === b[0] ? 3n * a[0] * a[0] * inverse(2n * a[1], P) : (b[1] - a[1]) * inverse(b[0] - a[0], P);
  const x = mod(slope * slope - a[0] - b[0], P);
  return [x, mod(slope * (a[0] - x) - a[1], P)];
}

function times(point, scalar) {
  let result = null;
  for (let p = point, k = scalar; k > 0n; k >>= 1n, p = add(p, p)) if (k & 1n) result = add(result, p);
  return result;
}

function signer(hash, signature) {
  const [r, s, v] = [number(signature.slice(0, 32)), number(signature.slice(32, 64)), signature[64]];
  // A high s would give one statement two signatures.
  if ((v !== 27 && v !== 28) || r === 0n || r >= N || s === 0n || s > N / 2n) throw new Error('the signature is malformed');
  const square = mod(r * r * r + 7n, P);
  let y = power(square, (P + 1n) / 4n, P);
  if ((y * y) % P !== square) throw new Error('the signature is malformed');
  if ((y & 1n) !== BigInt(v - 27)) y = P - y;
  const back = inverse(r, N);
  const key = add(times([r, y], mod(s * back, N)), times(G, mod(-number(hash) * back, N)));
  if (!key) throw new Error('the signature is malformed');
  return shown(keccak(join([wide(key[0]), wide(key[1])])).slice(12));
}

// ---- the checks
/// Reads a receipt file. Seeds have up to 64 bits, which a JSON number in JavaScript does not hold.
export const parse = (json) => JSON.parse(json.replace(/("seed"\s*:\s*)(\d+)/g, '$1"$2"'));

/// All checks of a parsed receipt file, in order: [{what, holds, detail}].
export function verify(file) {
  const checks = [];
  const check = (what, holds, detail = '') => checks.push({ what, holds: Boolean(holds), detail });
  const same = (a, b) => String(a).toLowerCase() === String(b).toLowerCase();
  check('format', file.version === 1 && file.manifest.profile === 'canonical-1', `version ${file.version}, ${file.manifest.profile}`);
  check('parts', file.parts.length >= 1 && file.parts.length <= PARTS_MAX, `${file.parts.length}`);
  check('the request is the one the receipt is named after', same(shown(requestHash(file.job, [])), file.id) && !file.job.prefix?.length, file.id);
  check('the model is the one of the manifest', same(shown(modelId(file.manifest)), file.job.modelId), file.job.modelId);
  const before = [];
  file.parts.slice(0, PARTS_MAX).forEach((part, index) => {
    const { receipt } = part;
    const of = (what) => `part ${index + 1}: ${what}`;
    const isLast = index + 1 === file.parts.length;
    const ends = part.finish === 'stop' || part.finish === 'length';
    const total = before.length + part.output.length;
    check(of('its place'), FINISHES.includes(part.finish) && (isLast || !ends) && total <= file.job.maxTokens, part.finish);
    check(of('request'), same(shown(requestHash(file.job, before)), receipt.requestHash), receipt.requestHash);
    check(of('answer'), same(shown(responseHash(part.output, part.finish)), receipt.responseHash), receipt.responseHash);
    const counts = [file.job.prompt.length + before.length, part.output.length];
    const isCounted = receipt.promptTokens === counts[0] && receipt.outputTokens === counts[1];
    check(of('model and token counts'), same(receipt.modelId, file.job.modelId) && isCounted, counts.join(' + '));
    const isCharged = BigInt(receipt.charged) <= BigInt(receipt.chargedTotal);
    const pays = same(shown(channelId(file, part.channel)), receipt.channelId) && same(part.channel.receiverAuthorizer, part.provider);
    check(of('payment channel'), pays && isCharged && part.channel.withdrawDelay < 2 ** 40, receipt.channelId);
    const who = signer(receiptDigest(file, receipt), hex(part.signature, 65));
    check(of('signed by the provider'), same(who, part.provider), who);
    before.push(...part.output);
  });
  return checks;
}
