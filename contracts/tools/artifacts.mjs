// Compiles src/ with the npm package `solc` and writes artifacts/NAME.json, or with --check compares
// them. The settings are those of foundry.toml, so forge tests exactly the code that is committed.
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const require = createRequire(import.meta.url);
const ROOT = join(dirname(fileURLToPath(import.meta.url)), '..');
const CONTRACTS = [
  'BatchSettlement',
  'Erc3009Collector',
  'ProviderRegistry',
  'ModelRegistry',
  'TestUSD',
  'Parameters',
  'Court',
  'Judge',
  'Trial',
];

// As fast as it can be, the trial is larger than a chain takes; foundry.toml has the same exception.
const OPTIMIZER_RUNS = { Trial: 2000 };

// These are placed in genesis as runtime code: an immutable would be zero there.
const GENESIS_PLACED = ['BatchSettlement', 'Erc3009Collector'];

// Printed for any use of transient storage; here it is a reentrancy guard, which the warning itself calls safe.
const TRANSIENT_STORAGE_WARNING = '2394';

function foundrySetting(toml, key) {
  const line = toml.match(new RegExp(`^${key} = (.+)$`, 'm'));
  if (!line) throw new Error(`foundry.toml has no line "${key} = ..."`);
  return JSON.parse(line[1]);
}

function compilerInput(names, runs) {
  const toml = readFileSync(join(ROOT, 'foundry.toml'), 'utf8');
  const sources = Object.fromEntries(
    names.map((name) => [`src/${name}.sol`, { content: readFileSync(join(ROOT, `src/${name}.sol`), 'utf8') }]),
  );
  return {
    language: 'Solidity',
    sources,
    settings: {
      evmVersion: foundrySetting(toml, 'evm_version'),
      viaIR: foundrySetting(toml, 'via_ir'),
      optimizer: { enabled: foundrySetting(toml, 'optimizer'), runs: runs ?? foundrySetting(toml, 'optimizer_runs') },
      metadata: {
        bytecodeHash: foundrySetting(toml, 'bytecode_hash'),
        appendCBOR: foundrySetting(toml, 'cbor_metadata'),
      },
      outputSelection: {
        '*': {
          '*': [
            'abi',
            'evm.bytecode.object',
            'evm.bytecode.linkReferences',
            'evm.deployedBytecode.object',
            'evm.deployedBytecode.immutableReferences',
          ],
        },
      },
    },
  };
}

function readImport(path) {
  const file = path.startsWith('@') ? join(ROOT, 'node_modules', path) : join(ROOT, path);
  return existsSync(file) ? { contents: readFileSync(file, 'utf8') } : { error: `no such file: ${file}` };
}

function compile() {
  const usual = CONTRACTS.filter((name) => !(name in OPTIMIZER_RUNS));
  const groups = [compileGroup(usual), ...Object.entries(OPTIMIZER_RUNS).map(([name, runs]) => compileGroup([name], runs))];
  return Object.fromEntries(groups.flat());
}

function compileGroup(names, runs) {
  const solc = require('solc');
  const output = JSON.parse(solc.compile(JSON.stringify(compilerInput(names, runs)), { import: readImport }));
  const problems = (output.errors ?? []).filter((problem) => problem.errorCode !== TRANSIENT_STORAGE_WARNING);
  for (const problem of problems) process.stderr.write(problem.formattedMessage);
  if (problems.some((problem) => problem.severity === 'error')) throw new Error('src/ does not compile');
  return names.map((name) => [name, artifact(name, output.contracts[`src/${name}.sol`][name])]);
}

function artifact(contractName, compiled) {
  const { bytecode, deployedBytecode } = compiled.evm;
  if (Object.keys(bytecode.linkReferences).length > 0) throw new Error(`${contractName} needs linking`);
  if (GENESIS_PLACED.includes(contractName) && Object.keys(deployedBytecode.immutableReferences).length > 0) {
    throw new Error(`${contractName} is placed in genesis and must not have immutables`);
  }
  return {
    contractName,
    abi: compiled.abi,
    bytecode: `0x${bytecode.object}`,
    deployedBytecode: `0x${deployedBytecode.object}`,
  };
}

// One ABI entry a line: a changed function is a changed line in review.
function render({ contractName, abi, bytecode, deployedBytecode }) {
  const entries = abi.map((entry) => `    ${JSON.stringify(entry)}`).join(',\n');
  return (
    `{\n  "contractName": ${JSON.stringify(contractName)},\n  "abi": [\n${entries}\n  ],\n` +
    `  "bytecode": "${bytecode}",\n  "deployedBytecode": "${deployedBytecode}"\n}\n`
  );
}

function check(artifacts) {
  const problems = [];
  for (const [name, built] of Object.entries(artifacts)) {
    const file = join(ROOT, 'artifacts', `${name}.json`);
    if (!existsSync(file)) problems.push(`artifacts/${name}.json is missing`);
    else if (readFileSync(file, 'utf8') !== render(built)) problems.push(`artifacts/${name}.json is not what src/ compiles to`);
  }
  const expected = new Set(CONTRACTS.map((name) => `${name}.json`));
  for (const file of existsSync(join(ROOT, 'artifacts')) ? readdirSync(join(ROOT, 'artifacts')) : []) {
    if (!expected.has(file)) problems.push(`artifacts/${file} belongs to no contract`);
  }
  return problems;
}

function main(args) {
  if (args.some((arg) => arg !== '--check')) {
    process.stderr.write('usage: node tools/artifacts.mjs [--check]\n');
    return 2;
  }
  const artifacts = compile();
  if (args.includes('--check')) {
    const problems = check(artifacts);
    for (const problem of problems) process.stderr.write(`${problem}\n`);
    if (problems.length > 0) {
      process.stderr.write('run `npm run artifacts` and commit the result with the change that caused it\n');
      return 1;
    }
    process.stdout.write(`${CONTRACTS.length} artifacts match src/\n`);
    return 0;
  }
  mkdirSync(join(ROOT, 'artifacts'), { recursive: true });
  for (const [name, built] of Object.entries(artifacts)) {
    writeFileSync(join(ROOT, 'artifacts', `${name}.json`), render(built));
    process.stdout.write(`artifacts/${name}.json: ${(built.deployedBytecode.length - 2) / 2} bytes of code\n`);
  }
  return 0;
}

process.exitCode = main(process.argv.slice(2));
