// Runs the curl, Python and JavaScript lines of each operation, as /docs shows them, against a running server that needs no
// key and has the recorded class, deletions last:
//
//   node lines.mjs http://127.0.0.1:8001 ../../src/web/docs
//
// A line must succeed. Streams and sockets go on, so their lines end once they have printed what is expected. JavaScript runs
// in a browser, on the page itself. The Python of WebSockets needs the package `websockets`; PYTHON names an interpreter
// that has it.
import { spawn } from 'node:child_process';
import { copyFile, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { chromium } from 'playwright-core';

const [base, source] = process.argv.slice(2);
if (!source) throw new Error('usage: node lines.mjs BASE_URL FOLDER_OF_THE_PAGE');

// The modules of the page have no package of their own that says that they are modules.
const folder = await mkdtemp(path.join(tmpdir(), 'snippets-'));
await writeFile(path.join(folder, 'package.json'), '{"type":"module"}');
for (const file of await readdir(source)) await copyFile(path.join(source, file), path.join(folder, file));
const { model } = await import(path.join(folder, 'docs-model.js'));
const { snippets } = await import(path.join(folder, 'docs-snippets.js'));
const load = async (name) => (await fetch(`${base}/${name}`)).json();
const { operations } = model(await load('openapi.json'), await load('asyncapi.json'));

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox'] });
const page = await browser.newPage();
await page.goto(`${base}/docs`);

/** The words that an answer to an operation must have, in any of the languages. */
function expected({ id, kind }) {
  if (kind === 'stream') return 'evt_';
  if (kind === 'socket') return id === 'publishSocket' ? '"status":"ok"' : '"status":"subscribed"';
  return '';
}

/** Runs a program until it ends or has printed the words. */
function run(program, args, words) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    const timer = setTimeout(() => child.kill('SIGKILL'), 20_000);
    let [text, errors, found] = ['', '', false];
    child.stdout.on('data', (chunk) => {
      text += chunk;
      if (words && text.includes(words)) {
        found = true;
        child.kill('SIGKILL');
      }
    });
    child.stderr.on('data', (chunk) => (errors += chunk));
    child.on('close', (code) => {
      clearTimeout(timer);
      if (words ? found : code === 0) resolve(text);
      else reject(new Error(`exit code ${code}\n${text}\n${errors}`));
    });
  });
}

/** Runs a line in the page until it is done or has logged the words. */
async function runInPage(line, words) {
  const logged = [];
  let wake = () => {};
  const listen = (message) => {
    logged.push(message.text());
    wake();
  };
  page.on('console', listen);
  try {
    await page.evaluate(`(async () => {${line}\n})()`);
    const deadline = AbortSignal.timeout(20_000);
    while (!logged.join('\n').includes(words) || logged.length === 0) {
      await new Promise((resolve, reject) => {
        wake = resolve;
        deadline.addEventListener('abort', () => reject(new Error(`${words} is not in ${logged}`)));
      });
    }
  } finally {
    page.off('console', listen);
  }
  return logged.join('\n');
}

let [passed, failed] = [0, 0];
async function check(name, line, run) {
  try {
    await run();
    passed += 1;
  } catch (error) {
    failed += 1;
    console.log(`FAIL  ${name}: ${error.message}\n${line}`);
  }
}

operations.sort((a, b) => Number(a.method === 'delete') - Number(b.method === 'delete'));
for (const operation of operations) {
  const { id, kind, method } = operation;
  const lines = snippets(operation, method, operation.path, base);
  const words = expected(operation);
  // The subscription of the example is made anew for each line that deletes it.
  const prepare = () => id === 'deleteSubscription' && page.evaluate(join, base.replace('http', 'ws'));
  // `exec`, so that the end of the shell is the end of curl. Debian's curl cannot speak on a WebSocket: it shows the handshake.
  const shell = `exec ${kind === 'http' ? lines.curl.replace(/^curl /, 'curl -sS --fail ') : lines.curl}`;
  await prepare();
  await check(`${id} in a shell`, lines.curl, () => run('sh', ['-c', shell], kind === 'socket' ? '101 Switching' : words));
  await prepare();
  await check(`${id} in Python`, lines.python, () => run(process.env.PYTHON ?? 'python3', ['-uc', lines.python], words));
  await prepare();
  await check(`${id} in a browser`, lines.javascript, async () => {
    const text = await runInPage(lines.javascript, words);
    if (kind === 'http' && !/^2/.test(text)) throw new Error(`answered ${text}`);
  });
}

/** Opens the group of the examples, so that it is there. */
function join(url) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(`${url}/ws/subscribe`);
    socket.onopen = () => socket.send(JSON.stringify({ group: 'graders' }));
    socket.onmessage = () => resolve(socket.close());
    socket.onerror = reject;
  });
}

await browser.close();
await rm(folder, { recursive: true });
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed ? 1 : 0;
