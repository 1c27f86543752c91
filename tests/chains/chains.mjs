// Three EVM chains with one interface: `include(raw, time)` puts a signed transaction into a block with that timestamp and
// returns its receipt, `rpc(method, params)` asks, `stop()` ends it.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const installed = (name) => fileURLToPath(new URL(`node_modules/.bin/${name}`, import.meta.url));
const START_MS_MAX = 60_000;
const RECEIPT_MS_MAX = 30_000;

const hex = (n) => `0x${BigInt(n).toString(16)}`;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Asks again until there is an answer. */
const patiently = async (limit, what, ask) => {
  const deadline = Date.now() + limit;
  for (;;) {
    const answer = await ask();
    if (answer !== undefined && answer !== null) return answer;
    if (Date.now() > deadline) throw new Error(`${what} took longer than ${limit} ms`);
    await pause(5);
  }
};

const jsonRpc = async (url, method, params) => {
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ jsonrpc: '2.0', id: 1, method, params }),
  });
  const { result, error } = await response.json();
  if (error) throw new Error(`${method}: ${error.message}`);
  return result;
};

const freePort = async () => {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
};

/** A child process and a folder of its own; both are gone at the end. */
class Chain {
  constructor(name) {
    this.name = name;
    this.dir = mkdtempSync(join(tmpdir(), 'assay-chains-'));
  }

  spawn(command, args, stdio) {
    this.child = spawn(command, args, { stdio, cwd: this.dir });
    this.ended = once(this.child, 'exit');
    this.kill = () => this.child.kill('SIGKILL');
    process.on('exit', this.kill);
  }

  rpc(method, params = []) {
    return jsonRpc(this.url, method, params);
  }

  async start() {
    await patiently(START_MS_MAX, `${this.name}'s start`, async () => {
      if (this.child.exitCode !== null) throw new Error(`${this.name} ended with ${this.child.exitCode}`);
      return this.rpc('eth_chainId').catch(() => undefined);
    });
    return this;
  }

  receipt(hash) {
    return patiently(RECEIPT_MS_MAX, `a receipt of ${this.name}`, () => this.rpc('eth_getTransactionReceipt', [hash]));
  }

  async stop() {
    this.child.kill('SIGTERM');
    await this.ended;
    process.off('exit', this.kill);
    rmSync(this.dir, { recursive: true, force: true });
  }
}

/** The chain of this project, by the program that its tests and benchmarks use. */
export class Embedded extends Chain {
  /** In a folder of its own, or going on in `dir`. */
  static async start(program, faucetKey, time, dir) {
    const chain = new Embedded('embedded');
    chain.spawn(program, [dir ?? chain.dir, faucetKey, String(time)], ['pipe', 'pipe', 'inherit']);
    chain.lines = createInterface({ input: chain.child.stdout })[Symbol.asyncIterator]();
    const { value } = await chain.lines.next();
    const { url, chainId, accounts } = JSON.parse(value);
    Object.assign(chain, { url, chainId, accounts, time });
    return chain.start();
  }

  async include(raw, time) {
    this.child.stdin.write(`advance ${time - this.time}\n`);
    assert.equal((await this.lines.next()).value, 'ok');
    this.time = time;
    return this.receipt(await this.rpc('eth_sendRawTransaction', [raw]));
  }
}

export class Anvil extends Chain {
  static async start(chainId, accounts, time, options = []) {
    const chain = new Anvil('anvil');
    const port = await freePort();
    chain.url = `http://127.0.0.1:${port}`;
    const args = ['--port', port, '--chain-id', chainId, '--hardfork', 'prague', '--timestamp', time, '--base-fee', '0'];
    chain.spawn(installed('anvil'), [...args.map(String), '--quiet', '--accounts', '1', ...options], ['ignore', 'ignore', 'inherit']);
    await chain.start();
    for (const { address, balance, code } of accounts) {
      await chain.rpc('anvil_setBalance', [address, balance]);
      if (code !== '0x') await chain.rpc('anvil_setCode', [address, code]);
    }
    return chain;
  }

  async include(raw, time) {
    await this.rpc('evm_setNextBlockTimestamp', [hex(time)]);
    return this.receipt(await this.rpc('eth_sendRawTransaction', [raw]));
  }

  /** One block of several transactions, in this order. Needs `--no-mining` and `--order fifo`. */
  async mine(raws, time) {
    for (const raw of raws) await this.rpc('eth_sendRawTransaction', [raw]);
    await this.rpc('evm_setNextBlockTimestamp', [hex(time)]);
    await this.rpc('evm_mine');
  }
}

/** Has no consensus of its own: this is the consensus client, which asks for a block and declares it the head. */
export class EthereumJs extends Chain {
  static async start(chainId, accounts, time) {
    const chain = new EthereumJs('ethereumjs');
    const [port, engine, peers] = [await freePort(), await freePort(), await freePort()];
    chain.url = `http://127.0.0.1:${port}`;
    chain.engine = `http://127.0.0.1:${engine}`;
    const genesis = join(chain.dir, 'genesis.json');
    writeFileSync(genesis, JSON.stringify(genesisOf(chainId, accounts, time)));
    const options = {
      gethGenesis: genesis,
      dataDir: join(chain.dir, 'data'),
      rpc: true,
      rpcPort: port,
      rpcEngine: true,
      rpcEnginePort: engine,
      rpcEngineAuth: false,
      port: peers,
      discV4: false,
      discDns: false,
      maxPeers: 0,
      logLevel: 'error',
    };
    const args = Object.entries(options).map(([name, value]) => `--${name}=${value}`);
    chain.spawn(installed('ethereumjs'), args, ['ignore', 'ignore', 'inherit']);
    await chain.start();
    await chain.build(time + 1);
    return chain;
  }

  /** One block of what is in the pool. */
  async build(time) {
    const head = (await this.rpc('eth_getBlockByNumber', ['latest', false])).hash;
    const state = { headBlockHash: head, safeBlockHash: head, finalizedBlockHash: head };
    const zero = `0x${'0'.repeat(64)}`;
    const attributes = {
      timestamp: hex(time),
      prevRandao: zero,
      suggestedFeeRecipient: `0x${'0'.repeat(40)}`,
      withdrawals: [],
      parentBeaconBlockRoot: zero,
    };
    const ask = (method, params) => jsonRpc(this.engine, method, params);
    const { payloadId } = await ask('engine_forkchoiceUpdatedV3', [state, attributes]);
    const { executionPayload, executionRequests } = await ask('engine_getPayloadV4', [payloadId]);
    const { status, validationError } = await ask('engine_newPayloadV4', [executionPayload, [], zero, executionRequests]);
    assert.equal(status, 'VALID', validationError);
    const hash = executionPayload.blockHash;
    await ask('engine_forkchoiceUpdatedV3', [{ headBlockHash: hash, safeBlockHash: hash, finalizedBlockHash: hash }, null]);
  }

  async include(raw, time) {
    const hash = await this.rpc('eth_sendRawTransaction', [raw]).catch((error) => {
      // It says that nobody else was told, and keeps the transaction.
      if (!/no peer connection/.test(error.message)) throw error;
      return this.hashOf(raw);
    });
    await this.build(time);
    return this.receipt(hash);
  }
}

/** Prague from the first block on, with what its rules call. */
const genesisOf = (chainId, accounts, time) => {
  const forks = ['homestead', 'eip150', 'eip155', 'eip158', 'byzantium', 'constantinople', 'petersburg', 'istanbul', 'berlin', 'london'];
  const config = { chainId, terminalTotalDifficulty: 0, terminalTotalDifficultyPassed: true, mergeForkBlock: 0 };
  for (const fork of forks) config[`${fork}Block`] = 0;
  for (const fork of ['shanghai', 'cancun', 'prague']) config[`${fork}Time`] = 0;
  config.blobSchedule = {
    cancun: { target: 3, max: 6, baseFeeUpdateFraction: 3338477 },
    prague: { target: 6, max: 9, baseFeeUpdateFraction: 5007716 },
  };
  config.depositContractAddress = `0x${'00'.repeat(19)}dc`;
  const alloc = {};
  for (const { address, balance, code } of accounts) alloc[address] = { balance, ...(code === '0x' ? {} : { code }) };
  // The contracts that the end of a block calls have to exist: these answer with nothing.
  for (const address of [
    '0x00000961Ef480Eb55e80D19ad83579A64c007002',
    '0x0000BBdDc7CE488642fb579F8B00f3a590007251',
    '0x0000F90827F1C53a10cb7A02335B175320002935',
    '0x000F3df6D732807Ef1319fB7B8bB8522d0Beac02',
  ]) {
    alloc[address] = { balance: '0x0', nonce: '0x1', code: '0x00' };
  }
  return {
    config,
    nonce: '0x0',
    timestamp: hex(time),
    extraData: '0x',
    gasLimit: hex(60_000_000),
    difficulty: '0x0',
    mixHash: `0x${'0'.repeat(64)}`,
    coinbase: `0x${'0'.repeat(40)}`,
    baseFeePerGas: '0x7',
    alloc,
  };
};
