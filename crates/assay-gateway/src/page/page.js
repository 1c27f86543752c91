// The receipt page: gets a receipt file, shows what it says, and checks it.
import { parse, verify } from '/r/verify.js';

const element = (id) => document.getElementById(id);

function row(table, mark, what, detail) {
  const cells = table.insertRow();
  const [first, second] = [cells.insertCell(), cells.insertCell()];
  first.textContent = mark;
  // Only ever as text: what is in a file was written by strangers.
  second.append(what, document.createElement('br'));
  const small = document.createElement('span');
  small.className = 'detail';
  small.textContent = detail;
  second.append(small);
  return cells;
}

function say(text, isBad) {
  element('verdict').textContent = text;
  element('verdict').className = isBad ? 'bad' : '';
}

function show(json) {
  for (const id of ['facts', 'checks']) element(id).replaceChildren();
  try {
    const file = parse(json);
    const checks = verify(file);
    const charged = file.parts.reduce((sum, part) => sum + BigInt(part.receipt.charged), 0n);
    const output = file.parts.reduce((sum, part) => sum + part.output.length, 0);
    const last = file.parts[file.parts.length - 1];
    const facts = element('facts');
    row(facts, '', 'Model', `${file.manifest.name} ${file.job.modelId}`);
    row(facts, '', 'Tokens', `${file.job.prompt.length} of the prompt, ${output} of the answer, which ended with ${last.finish}`);
    row(facts, '', 'Charged', `${charged} base units of the token, on chain ${file.chainId}`);
    row(facts, '', 'Signed', new Date(1000 * last.receipt.issuedAt).toISOString());
    row(facts, '', 'Providers', file.parts.map((part) => part.provider).join(', '));
    element('title').hidden = false;
    for (const { what, holds, detail } of checks) {
      if (!holds) row(element('checks'), '✗', `${what}: does not hold`, detail).className = 'bad';
      else row(element('checks'), '✓', what, detail);
    }
    const broken = checks.filter((check) => !check.holds).length;
    say(broken ? `${broken} of ${checks.length} checks do not hold.` : `All ${checks.length} checks hold.`, broken > 0);
  } catch (error) {
    say(`This is no receipt: ${error.message}`, true);
  }
}

element('ask').addEventListener('submit', async (event) => {
  event.preventDefault();
  const id = location.pathname.split('/').pop();
  try {
    const reply = await fetch(`/v1/receipts/${id}`, { headers: { authorization: `Bearer ${element('key').value}` } });
    const body = await reply.text();
    if (reply.ok) show(body);
    else say(JSON.parse(body).error.message, true);
  } catch (error) {
    say(`The gateway did not answer: ${error.message}`, true);
  }
});
element('file').addEventListener('change', async () => {
  const [file] = element('file').files;
  if (file) show(await file.text());
});
