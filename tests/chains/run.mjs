// One story of the whole protocol on three chains: the embedded one, anvil and the EthereumJS client get the same signed
// bytes and have to give the same receipts, to the unit of gas.
//
// Usage: run.mjs PATH_OF_SERVE (the example of assay-chain). The story: contracts are deployed; a provider registers and
// stakes; a payer deposits by a signed authorization; a hundred requests are paid by vouchers and receipted; the provider
// claims and settles; the payer withdraws the rest; a claim is challenged and justified, another convicts; two receipts
// for one request convict; stake is slashed and paid out. Prints a table of gas and `N passed, N failed`.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import {
  encodeAbiParameters, encodeDeployData, encodeFunctionData, decodeFunctionResult, getContractAddress, hashTypedData,
  keccak256, maxUint256, pad, toHex,
} from 'viem';
import { privateKeyToAccount } from 'viem/accounts';
import { Anvil, Embedded, EthereumJs } from './chains.mjs';

const START = 1_900_000_000;
const DAY = 86_400;
const CHAIN_ID = 42_330;
const SETTLEMENT = '0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003';
const COLLECTOR = '0x4020806089470a89826cB9fB1f4059150b550004';
const [BOND, PENALTY, STAKE] = [5_000_000n, 50_000_000n, 200_000_000n];
const DEPOSIT = 1_000_000n;
const REQUESTS = 100;

const keyOf = (n) => pad(toHex(n));
const [faucet, provider, payer, hunter] = [1, 2, 3, 4].map((n) => privateKeyToAccount(keyOf(n)));
const artifact = (name) =>
  JSON.parse(readFileSync(new URL(`../../contracts/artifacts/${name}.json`, import.meta.url), 'utf8'));
const contracts = Object.fromEntries(
  ['BatchSettlement', 'TestUSD', 'ProviderRegistry', 'ModelRegistry', 'Judge', 'Parameters', 'Court', 'Trial'].map((n) => [n, artifact(n)]),
);
contracts.BatchSettlement.address = SETTLEMENT;

const chains = [await Embedded.start(process.argv[2], keyOf(1), START)];
const { accounts } = chains[0];
chains.push(await Anvil.start(CHAIN_ID, accounts, START));
chains.push(await EthereumJs.start(CHAIN_ID, accounts, START));

let time = START + 10;
const nonces = new Map();
const table = [];

/** The same signed bytes into each chain; status, gas, logs and the new contract have to agree. */
const transact = async (name, from, { to, data, value }) => {
  const nonce = nonces.get(from.address) ?? 0;
  nonces.set(from.address, nonce + 1);
  time += 1;
  const raw = await from.signTransaction({
    type: 'eip1559', chainId: CHAIN_ID, nonce, to, data, value,
    gas: to ? 3_000_000n : 12_000_000n, maxFeePerGas: 2_000_000_000n, maxPriorityFeePerGas: 1_000_000_000n,
  });
  const seen = [];
  for (const chain of chains) {
    chain.hashOf = keccak256;
    const receipt = await chain.include(raw, time);
    const logs = receipt.logs.map(({ address, topics, data: bytes }) => ({ address: address.toLowerCase(), topics, data: bytes }));
    const created = receipt.contractAddress?.toLowerCase() ?? null;
    seen.push({ status: receipt.status, gas: Number(receipt.gasUsed), created, logs });
  }
  for (const [i, one] of seen.entries()) assert.deepEqual(one, seen[0], `${name}: ${chains[i].name} differs from ${chains[0].name}`);
  assert.equal(seen[0].status, '0x1', `${name} failed`);
  table.push({ transaction: name, gas: seen[0].gas });
  return seen[0];
};
const send = (name, from, contract, functionName, args) =>
  transact(name, from, { to: contract.address, data: encodeFunctionData({ abi: contract.abi, functionName, args }) });
const deploy = async (name, args) => {
  const { abi, bytecode } = contracts[name];
  const { created } = await transact(`deploy ${name}`, faucet, { data: encodeDeployData({ abi, bytecode, args }) });
  contracts[name].address = created;
};
/** Reads from each chain; they have to say the same. */
const read = async (contract, functionName, args = []) => {
  const data = encodeFunctionData({ abi: contract.abi, functionName, args });
  const answers = [];
  for (const chain of chains) answers.push(await chain.rpc('eth_call', [{ to: contract.address, data }, 'latest']));
  for (const answer of answers) assert.equal(answer, answers[0], `${functionName} differs`);
  return decodeFunctionResult({ abi: contract.abi, functionName, data: answers[0] });
};

const settlementDomain = { name: 'x402 Batch Settlement', version: '1', chainId: CHAIN_ID, verifyingContract: SETTLEMENT };
const configType = [
  ['address', 'payer'], ['address', 'payerAuthorizer'], ['address', 'receiver'], ['address', 'receiverAuthorizer'],
  ['address', 'token'], ['uint40', 'withdrawDelay'], ['bytes32', 'salt'],
].map(([type, name]) => ({ type, name }));
const channelOf = (salt) => ({
  payer: payer.address, payerAuthorizer: payer.address, receiver: provider.address, receiverAuthorizer: provider.address,
  token: contracts.TestUSD.address, withdrawDelay: DAY, salt: keyOf(salt),
});
const idOf = (config) =>
  hashTypedData({ domain: settlementDomain, types: { ChannelConfig: configType }, primaryType: 'ChannelConfig', message: config });
const voucherOf = async (config, ceiling) => ({
  voucher: { channel: config, maxClaimableAmount: ceiling },
  signature: await payer.signTypedData({
    domain: settlementDomain,
    types: { Voucher: [{ type: 'bytes32', name: 'channelId' }, { type: 'uint128', name: 'maxClaimableAmount' }] },
    primaryType: 'Voucher',
    message: { channelId: idOf(config), maxClaimableAmount: ceiling },
  }),
});
const receiptTypes = {
  Receipt: [
    ['bytes32', 'channelId'], ['bytes32', 'requestHash'], ['bytes32', 'responseHash'], ['bytes32', 'modelId'],
    ['uint64', 'promptTokens'], ['uint64', 'outputTokens'], ['uint128', 'charged'], ['uint128', 'chargedTotal'], ['uint64', 'issuedAt'],
  ].map(([type, name]) => ({ type, name })),
};
const receiptOf = async (fields) => {
  const receipt = {
    modelId: keyOf(77), promptTokens: 20n, outputTokens: 64n, issuedAt: BigInt(START), ...fields,
  };
  const domain = { name: 'Assay', version: '1', chainId: CHAIN_ID, verifyingContract: contracts.ProviderRegistry.address };
  return [receipt, await provider.signTypedData({ domain, types: receiptTypes, primaryType: 'Receipt', message: receipt })];
};

const depositInto = async (config, amount, salt) => {
  const nonce = keccak256(encodeAbiParameters([{ type: 'bytes32' }, { type: 'uint256' }], [idOf(config), salt]));
  const signature = await payer.signTypedData({
    domain: { name: 'Assay Test USD', version: '1', chainId: CHAIN_ID, verifyingContract: contracts.TestUSD.address },
    types: {
      ReceiveWithAuthorization: [
        ['address', 'from'], ['address', 'to'], ['uint256', 'value'], ['uint256', 'validAfter'], ['uint256', 'validBefore'], ['bytes32', 'nonce'],
      ].map(([type, name]) => ({ type, name })),
    },
    primaryType: 'ReceiveWithAuthorization',
    message: { from: payer.address, to: COLLECTOR, value: amount, validAfter: 0n, validBefore: maxUint256, nonce },
  });
  const data = encodeAbiParameters(
    [{ type: 'uint256' }, { type: 'uint256' }, { type: 'uint256' }, { type: 'bytes' }],
    [0n, maxUint256, salt, signature],
  );
  // The faucet relays: the payer needs no gas.
  await send('deposit', faucet, contracts.BatchSettlement, 'deposit', [config, amount, COLLECTOR, data]);
};

const story = {
  'contracts are deployed and accounts are funded': async () => {
    for (const account of [provider, payer, hunter]) await transact('ether', faucet, { to: account.address, value: 10n ** 18n });
    await deploy('TestUSD', [faucet.address]);
    await deploy('ModelRegistry', []);
    await deploy('Judge', []);
    const terms = { bond: BOND, penalty: PENALTY, rewardBps: 5_000, refundBps: 500, version: 0 };
    const policy = { auditFloorPpm: 20_000, auditHalfTokens: 4_096n, decoyPpm: 50_000, recheckPpm: 30_000 };
    await deploy('Parameters', [faucet.address, 172_800n, 3_600, 10n * BOND, 10n * PENALTY, terms, policy]);
    const next = (after) => getContractAddress({ from: faucet.address, nonce: BigInt(nonces.get(faucet.address) + after) });
    const [court, trial] = [next(1), next(2)];
    await deploy('ProviderRegistry', [contracts.TestUSD.address, 100_000_000n, BigInt(7 * DAY), court, 5_000]);
    await deploy('Court', [contracts.ProviderRegistry.address, trial, SETTLEMENT, faucet.address, contracts.Parameters.address]);
    await deploy('Trial', [contracts.Judge.address, court]);
    for (const [account, amount] of [[provider, STAKE], [payer, 2n * DEPOSIT], [hunter, 10n * BOND]]) {
      await send('mint', faucet, contracts.TestUSD, 'mint', [account.address, amount]);
    }
  },
  'a provider registers and stakes': async () => {
    const { ProviderRegistry: registry, TestUSD: token } = contracts;
    await send('register', provider, registry, 'register', ['tcp://127.0.0.1:9', keyOf(5), keyOf(6)]);
    await send('approve', provider, token, 'approve', [registry.address, STAKE]);
    await send('stake', provider, registry, 'stake', [STAKE]);
    assert.equal(await read(registry, 'stakeOf', [provider.address]), STAKE);
  },
  'a hundred requests are paid by vouchers and claimed at once': async () => {
    const config = channelOf(1);
    await depositInto(config, DEPOSIT, 1n);
    let [row, last, total] = [undefined, undefined, 0n];
    for (let request = 1; request <= REQUESTS; request += 1) {
      const charged = 40n + BigInt(request);
      // The ceiling runs ahead of the charge by one grant; the receipt says what is owed.
      row = await voucherOf(config, total + 200n);
      total += charged;
      last = await receiptOf({
        channelId: idOf(config), requestHash: keyOf(1000 + request), responseHash: keyOf(2000 + request), charged, chargedTotal: total,
      });
    }
    assert.equal(total, 9_050n);
    await send('claim', provider, contracts.BatchSettlement, 'claim', [[{ ...row, totalClaimed: total }]]);
    await send('settle', provider, contracts.BatchSettlement, 'settle', [provider.address, contracts.TestUSD.address]);
    assert.equal(await read(contracts.TestUSD, 'balanceOf', [provider.address]), total);
    // Challenged, and justified by the last receipt: the bond is the provider's.
    await send('approve', hunter, contracts.TestUSD, 'approve', [contracts.Court.address, 10n * BOND]);
    await send('challengeClaim', hunter, contracts.Court, 'challengeClaim', [config]);
    await send('justifyClaim', provider, contracts.Court, 'justifyClaim', [idOf(config), ...last]);
    await send('withdraw bond', provider, contracts.Court, 'withdraw', []);
    assert.equal(await read(contracts.TestUSD, 'balanceOf', [provider.address]), total + BOND);
  },
  'the payer withdraws the rest after the delay': async () => {
    const config = channelOf(1);
    const left = DEPOSIT - 9_050n;
    await send('initiateWithdraw', payer, contracts.BatchSettlement, 'initiateWithdraw', [config, left]);
    time += DAY;
    await send('finalizeWithdraw', payer, contracts.BatchSettlement, 'finalizeWithdraw', [config]);
    assert.equal(await read(contracts.TestUSD, 'balanceOf', [payer.address]), 2n * DEPOSIT - 9_050n);
  },
  'a claim without a receipt convicts after the clock has run out': async () => {
    const config = channelOf(2);
    await depositInto(config, DEPOSIT, 2n);
    const row = await voucherOf(config, 5_000n);
    await send('claim', provider, contracts.BatchSettlement, 'claim', [[{ ...row, totalClaimed: 5_000n }]]);
    await send('challengeClaim', hunter, contracts.Court, 'challengeClaim', [config]);
    time += 3_600;
    await send('convictClaim', hunter, contracts.Court, 'convictClaim', [idOf(config)]);
    assert.equal(await read(contracts.ProviderRegistry, 'stakeOf', [provider.address]), STAKE - PENALTY);
  },
  'two receipts for one request convict at once': async () => {
    const fields = { channelId: idOf(channelOf(1)), requestHash: keyOf(3000), charged: 1n, chargedTotal: 9_051n };
    const [a, b] = [await receiptOf({ ...fields, responseHash: keyOf(1) }), await receiptOf({ ...fields, responseHash: keyOf(2) })];
    await send('convictEquivocation', hunter, contracts.Court, 'convictEquivocation', [...a, ...b]);
    assert.equal(await read(contracts.ProviderRegistry, 'stakeOf', [provider.address]), STAKE - 2n * PENALTY);
    // What the answer had cost goes back to the channel's payer, out of the stake.
    await send('refund', hunter, contracts.Court, 'refund', [a[0], provider.address, channelOf(1), PENALTY, 1]);
    assert.equal(await read(contracts.Court, 'owed', [payer.address]), 1n);
    const before = await read(contracts.TestUSD, 'balanceOf', [hunter.address]);
    await send('withdraw reward', hunter, contracts.Court, 'withdraw', []);
    // Half of two penalties, and the bond of the claim that convicted.
    assert.equal((await read(contracts.TestUSD, 'balanceOf', [hunter.address])) - before, PENALTY + BOND);
  },
  'no token was made or lost': async () => {
    const token = contracts.TestUSD;
    const holders = [provider, payer, hunter, faucet].map((a) => a.address);
    let sum = 0n;
    for (const who of [...holders, SETTLEMENT, contracts.Court.address, contracts.ProviderRegistry.address]) {
      sum += await read(token, 'balanceOf', [who]);
    }
    assert.equal(sum, STAKE + 2n * DEPOSIT + 10n * BOND);
    assert.equal(await read(token, 'totalSupply'), sum);
  },
};

let [passed, failed] = [0, 0];
for (const [name, part] of Object.entries(story)) {
  try {
    await part();
    passed += 1;
    console.log(`ok  ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name}: ${String(error?.stack ?? error).slice(0, 3000)}`);
    // Each part goes on from the one before.
    break;
  }
}
console.log(`\n${'gas'.padStart(10)}  transaction, the same on ${chains.map((chain) => chain.name).join(', ')}`);
for (const { transaction, gas } of table) console.log(`${String(gas).padStart(10)}  ${transaction}`);
for (const chain of chains) await chain.stop();
console.log(`\n${passed} passed, ${failed} failed`);
process.exitCode = failed === 0 && passed === Object.keys(story).length ? 0 : 1;
