// The stock x402 client pays a running network request by request: scheme `exact`, and `batch-settlement` with deposit,
// vouchers, recovery and refund.
//
// Usage: run.mjs PATH_OF_ASSAY. Starts `assay up --x402` in a temporary folder on free ports, gives a payer some test
// dollars, pays, stops the network, and checks every balance against what the client was told. Prints one line a check
// and `N passed, N failed` at the end.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { decodePaymentRequiredHeader, decodePaymentResponseHeader } from '@x402/core/http';
import { BatchSettlementEvmScheme } from '@x402/evm/batch-settlement/client';
import { ExactEvmScheme } from '@x402/evm/exact/client';
import { toClientEvmSigner } from '@x402/evm';
import { wrapFetchWithPayment, x402Client } from '@x402/fetch';
import { createPublicClient, createWalletClient, defineChain, http, parseAbi } from 'viem';
import { generatePrivateKey, privateKeyToAccount } from 'viem/accounts';

const READY_MS_MAX = 60_000;
const STOP_MS_MAX = 30_000;
const FUNDS = 10_000_000n;
const SETTLEMENT = '0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003';
const ERC20 = parseAbi([
  'function mint(address to, uint256 amount)',
  'function balanceOf(address who) view returns (uint256)',
]);
const CHANNELS = parseAbi(['function channels(bytes32 id) view returns (uint128 balance, uint128 totalClaimed)']);

let [passed, failed] = [0, 0];
const check = async (name, work) => {
  try {
    const result = await work();
    passed += 1;
    console.log(`ok  ${name}`);
    return result;
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name}: ${String(error?.stack ?? error).slice(0, 2000)}`);
    return undefined;
  }
};

const dir = mkdtempSync(join(tmpdir(), 'assay-x402-'));
const network = spawn(process.argv[2], ['up', '--x402', '--json', '--dir', dir, '--port', '0', '--providers', '2'], {
  stdio: ['ignore', 'pipe', 'inherit'],
});
const ended = once(network, 'exit');
process.on('exit', () => network.kill('SIGKILL'));

const lines = createInterface({ input: network.stdout });
const ready = await new Promise((resolve, reject) => {
  const timer = setTimeout(() => reject(new Error('assay up was not ready in time')), READY_MS_MAX);
  lines.once('line', (line) => resolve((clearTimeout(timer), JSON.parse(line))));
  ended.then(([status]) => reject(new Error(`assay up ended before it was ready, status ${status}`)));
});

const { token } = JSON.parse(readFileSync(join(dir, 'network.json'))).addresses;
const chainId = JSON.parse(readFileSync(join(dir, 'network.json'))).addresses.chainId;
const transport = http(ready.chain);
const chain = defineChain({
  id: chainId,
  name: 'local',
  nativeCurrency: { name: 'Ether', symbol: 'ETH', decimals: 18 },
  rpcUrls: { default: { http: [ready.chain] } },
});
const publicClient = createPublicClient({ chain, transport, pollingInterval: 20 });
const owner = createWalletClient({
  account: privateKeyToAccount(`0x${readFileSync(join(dir, 'deployer.key'), 'utf8').trim()}`),
  chain,
  transport,
});
const balanceOf = (who) =>
  publicClient.readContract({ address: token, abi: ERC20, functionName: 'balanceOf', args: [who] });

/** A fresh key with test dollars. */
const newPayer = async () => {
  const account = privateKeyToAccount(generatePrivateKey());
  const hash = await owner.writeContract({
    address: token,
    abi: ERC20,
    functionName: 'mint',
    args: [account.address, FUNDS],
  });
  await publicClient.waitForTransactionReceipt({ hash });
  return account;
};

/** The stock client with one scheme; this token is not on its list. */
const payingFetch = (scheme) => {
  const client = new x402Client().register(`eip155:${chainId}`, scheme);
  client.setSpendControls({ allowedAssets: [{ network: `eip155:${chainId}`, asset: token, maxAmountPerPayment: String(FUNDS) }] });
  return wrapFetchWithPayment(fetch, client);
};

const url = `${ready.gateway}/chat/completions`;
const question = (extra) => ({
  method: 'POST',
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify({
    model: 'assay-tiny',
    messages: [{ role: 'user', content: 'What is the capital of France?' }],
    temperature: 0,
    max_tokens: 40,
    ...extra,
  }),
});
const settled = (response) => decodePaymentResponseHeader(response.headers.get('payment-response'));
const priceOf = async (request, scheme) => {
  const response = await fetch(url, request);
  assert.equal(response.status, 402);
  const required = decodePaymentRequiredHeader(response.headers.get('payment-required'));
  return BigInt(required.accepts.find((way) => way.scheme === scheme).amount);
};
const answer = async (response) => {
  assert.equal(response.status, 200, await response.clone().text());
  return (await response.json()).choices[0].message.content;
};

await check('no payment is 402 with a price for both schemes', async () => {
  const [exact, batch] = [await priceOf(question(), 'exact'), await priceOf(question(), 'batch-settlement')];
  assert.ok(exact > 0n && exact === batch, `${exact} ${batch}`);
});

await check('exact: a transfer pays for an answer', async () => {
  const payer = await newPayer();
  const pay = payingFetch(new ExactEvmScheme(toClientEvmSigner(payer, publicClient)));
  const price = await priceOf(question(), 'exact');
  const response = await pay(url, question());
  assert.match(await answer(response), /Paris/);
  const { success, transaction, payer: who } = settled(response);
  assert.ok(success && who.toLowerCase() === payer.address.toLowerCase());
  assert.equal((await publicClient.getTransactionReceipt({ hash: transaction })).status, 'success');
  assert.equal(await balanceOf(payer.address), FUNDS - price);
  const receipt = await fetch(`${ready.gateway}/receipts/${response.headers.get('x-assay-receipt')}`);
  assert.equal(receipt.status, 200);
});

await check('exact: a stream is paid for before its first byte', async () => {
  const payer = await newPayer();
  const pay = payingFetch(new ExactEvmScheme(toClientEvmSigner(payer, publicClient)));
  const response = await pay(url, question({ stream: true }));
  assert.ok(settled(response).success);
  assert.ok((await balanceOf(payer.address)) < FUNDS);
  assert.match(await response.text(), /Paris[\s\S]*\[DONE\]/);
});

await check('exact: an empty purse is refused', async () => {
  const poor = privateKeyToAccount(generatePrivateKey());
  const pay = payingFetch(new ExactEvmScheme(toClientEvmSigner(poor, publicClient)));
  const response = await pay(url, question());
  assert.equal(response.status, 402);
  assert.equal(decodePaymentRequiredHeader(response.headers.get('payment-required')).error, 'insufficient_funds');
});

let charged = 0n;
const payer = await newPayer();
const signer = toClientEvmSigner(payer, publicClient);
const scheme = new BatchSettlementEvmScheme(signer);
const pay = payingFetch(scheme);
let channelId;

await check('batch-settlement: the first request brings a deposit', async () => {
  const price = await priceOf(question(), 'batch-settlement');
  const response = await pay(url, question());
  assert.match(await answer(response), /Paris/);
  const { success, transaction, amount, extra } = settled(response);
  assert.ok(success && transaction.length === 66);
  assert.equal(await balanceOf(payer.address), FUNDS - BigInt(amount));
  charged += BigInt(extra.chargedAmount);
  assert.ok(charged > 0n && charged < price, 'what was used, not what was quoted');
  channelId = extra.channelState.channelId;
});

await check('batch-settlement: further requests are vouchers without a transaction', async () => {
  for (let i = 0; i < 3; i += 1) {
    const response = await pay(url, question());
    assert.match(await answer(response), /Paris/);
    const { transaction, extra } = settled(response);
    assert.equal(transaction, '');
    charged += BigInt(extra.chargedAmount);
    assert.equal(BigInt(extra.channelState.chargedCumulativeAmount), charged);
  }
});

await check('batch-settlement: a client that forgot everything is put right and goes on', async () => {
  const forgetful = payingFetch(new BatchSettlementEvmScheme(signer));
  const response = await forgetful(url, question());
  assert.match(await answer(response), /Paris/);
  charged += BigInt(settled(response).extra.chargedAmount);
});

await check('batch-settlement: a top-up when the channel is used up', async () => {
  const long = question({ max_tokens: 200, n: 16, stop: ['.'] });
  const price = await priceOf(long, 'batch-settlement');
  const [balance] = await publicClient.readContract({
    address: SETTLEMENT,
    abi: CHANNELS,
    functionName: 'channels',
    args: [channelId],
  });
  assert.ok(price > balance - charged, 'the request is dearer than what is left');
  const response = await pay(url, long);
  assert.equal(response.status, 200, await response.clone().text());
  const { transaction, extra } = settled(response);
  assert.equal(transaction.length, 66);
  charged += BigInt(extra.chargedAmount);
});

await check('batch-settlement: the rest is refunded', async () => {
  const { success, amount } = await scheme.refund(url);
  assert.ok(success && BigInt(amount) > 0n);
  assert.equal(await balanceOf(payer.address), FUNDS - charged);
});

await check('assay up: stops with status 0 on TERM', async () => {
  network.kill('SIGTERM');
  const timer = setTimeout(() => network.kill('SIGKILL'), STOP_MS_MAX);
  const [status] = await ended;
  clearTimeout(timer);
  assert.equal(status, 0);
});

rmSync(dir, { recursive: true, force: true });
console.log(`\n${passed} passed, ${failed} failed`);
process.exitCode = failed === 0 ? 0 : 1;
