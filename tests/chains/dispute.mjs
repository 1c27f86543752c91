// A whole dispute over a thousand tokens, played by real processes on the embedded chain (`assay demo cheat`), and every one of
// its network's transactions again on anvil: the same signed bytes at the same time have to give the same receipts.
//
// Usage: dispute.mjs PATH_OF_ASSAY PATH_OF_SERVE (the example of assay-chain). Prints the gas of each move.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { decodeFunctionData, keccak256, pad, parseEventLogs, serializeTransaction } from 'viem';
import { Anvil, Embedded } from './chains.mjs';

const [assay, serve] = process.argv.slice(2);
const TOKENS = 1_000;
const MOVES_MIN = 10;

const abiOf = (name) =>
  JSON.parse(readFileSync(new URL(`../../contracts/artifacts/${name}.json`, import.meta.url), 'utf8')).abi;
const abis = ['Trial', 'Court'].map(abiOf);

/** The bytes that were signed, which a node does not give back. */
const rawOf = (tx) => {
  const [r, s] = [tx.r, tx.s].map((part) => pad(part, { size: 32 }));
  const body = {
    type: 'eip1559', chainId: Number(tx.chainId), nonce: Number(tx.nonce), to: tx.to, data: tx.input, value: BigInt(tx.value),
    gas: BigInt(tx.gas), maxFeePerGas: BigInt(tx.maxFeePerGas), maxPriorityFeePerGas: BigInt(tx.maxPriorityFeePerGas),
  };
  const raw = serializeTransaction(body, { r, s, yParity: Number(tx.yParity) });
  assert.equal(keccak256(raw), tx.hash);
  return raw;
};

const outcomeOf = (receipt) => ({
  status: receipt.status,
  gas: Number(receipt.gasUsed),
  created: receipt.contractAddress?.toLowerCase() ?? null,
  logs: receipt.logs.map(({ address, topics, data }) => ({ address: address.toLowerCase(), topics, data })),
});

/** Every transaction of a chain, with its time and what came of it. */
const historyOf = async (chain) => {
  const history = [];
  const head = Number(await chain.rpc('eth_blockNumber'));
  for (let number = 1; number <= head; number += 1) {
    const block = await chain.rpc('eth_getBlockByNumber', [`0x${number.toString(16)}`, true]);
    for (const tx of block.transactions) {
      const receipt = await chain.rpc('eth_getTransactionReceipt', [tx.hash]);
      history.push({ tx, raw: rawOf(tx), time: Number(block.timestamp), outcome: outcomeOf(receipt) });
    }
  }
  return history;
};

/** `Trial.pick`, or nothing if it is no call of the court's contracts. */
const nameOf = (tx) => {
  for (const abi of abis) {
    try {
      return decodeFunctionData({ abi, data: tx.input }).functionName;
    } catch {
      // Another contract's.
    }
  }
  return undefined;
};

const dir = mkdtempSync(join(tmpdir(), 'assay-dispute-'));
const chains = [];
try {
  const demo = spawnSync(assay, ['demo', 'cheat', '--dir', join(dir, 'net'), '--tokens', String(TOKENS)], { encoding: 'utf8' });
  assert.equal(demo.status, 0, `${demo.stdout}\n${demo.stderr}`);
  const receipt = JSON.parse(readFileSync(join(dir, 'net/receipt.json'), 'utf8'));
  const answered = receipt.parts.reduce((sum, part) => sum + part.output.length, 0);
  assert.ok(answered >= TOKENS, `the answer has ${answered} tokens`);

  const operator = readFileSync(join(dir, 'net/operator.key'), 'utf8').trim();
  const embedded = await Embedded.start(serve, operator, 1_900_000_000, join(dir, 'net/chain'));
  chains.push(embedded);
  const history = await historyOf(embedded);

  const anvil = await Anvil.start(embedded.chainId, embedded.accounts, history[0].time - 1, ['--order', 'fifo', '--no-mining']);
  chains.push(anvil);
  const times = [...new Set(history.map(({ time }) => time))];
  for (const time of times) {
    // The embedded chain may have several blocks in a second, anvil not.
    const block = history.filter((entry) => entry.time === time);
    await anvil.mine(block.map(({ raw }) => raw), time);
    for (const { tx, outcome } of block) {
      assert.deepEqual(outcomeOf(await anvil.receipt(tx.hash)), outcome, `${nameOf(tx) ?? tx.input.slice(0, 10)} differs`);
    }
  }

  let moves = 0;
  let total = 0;
  console.log(`${'gas'.padStart(10)}  a dispute over ${answered} tokens, the same on the embedded chain and anvil`);
  for (const { tx, outcome } of history) {
    const name = tx.to && nameOf(tx);
    if (!name || !outcome.logs.length) continue;
    console.log(`${String(outcome.gas).padStart(10)}  ${name}`);
    moves += 1;
    total += outcome.gas;
  }
  const logs = history.flatMap(({ outcome }) => outcome.logs);
  const convictions = parseEventLogs({ abi: abis[1], logs, eventName: 'Convicted' });
  assert.equal(convictions.length, 1);
  assert.ok(convictions[0].args.slashed > 0n, 'stake was taken');
  assert.ok(moves >= MOVES_MIN, `${moves} moves`);
  console.log(`${String(total).padStart(10)}  together\n\n${history.length} transactions agree, ${moves} of them in court`);
} finally {
  for (const chain of chains) await chain.stop();
  rmSync(dir, { recursive: true, force: true });
}
