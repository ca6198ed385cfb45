// Checks of /docs in a real browser, against a running server that needs no key:
//
//   node docs.mjs http://127.0.0.1:8001 [folder for screenshots]
//   node docs.mjs http://127.0.0.1:8001 measure
//
// It publishes a few hundred events of a session of its own, and deletes what is older than the year 2000.
import { createRequire } from 'node:module';
import { readFile } from 'node:fs/promises';
import { chromium } from 'playwright-core';

const [base, folder] = process.argv.slice(2);
if (!base) throw new Error('usage: node docs.mjs BASE_URL [FOLDER | measure]');
const axe = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const VIEWPORTS = {
  phone: { width: 360, height: 740 },
  tablet: { width: 820, height: 1180 },
  desktop: { width: 1440, height: 900 },
};

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox'] });
/** A session of this run, because the database may hold those of others. */
const session = `docs-check-${Date.now()}`;
let [passed, failed] = [0, 0];

/** One check: prints a line, whatever happens in it. */
async function check(name, run) {
  try {
    await run();
    passed += 1;
    console.log(`ok    ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL  ${name}: ${error.message.split('\n').slice(0, 12).join('\n      ')}`);
  }
}

function assert(condition, ...words) {
  if (!condition) throw new Error(words.join(' '));
}

/** A page, and the list of what it must not do: errors, requests elsewhere, violations of the CSP. */
async function open(options = {}, address = '/docs') {
  const context = await browser.newContext(options);
  context.setDefaultTimeout(10_000);
  const page = await context.newPage();
  const faults = [];
  page.on('console', (message) => message.type() === 'error' && faults.push(`console: ${message.text()}`));
  page.on('pageerror', (error) => faults.push(`error: ${error.message}`));
  page.on('request', (request) => {
    const { origin, protocol } = new URL(request.url());
    if (origin !== new URL(base).origin && protocol !== 'data:') faults.push(`request to ${request.url()}`);
  });
  await page.exposeFunction('violated', (what) => faults.push(`CSP: ${what}`));
  await page.addInitScript(() => addEventListener('securitypolicyviolation', (event) =>
    window.violated(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`)));
  await page.goto(base + address);
  await interactive(page);
  return { context, page, faults };
}

const interactive = (page) => page.waitForFunction(() => performance.getEntriesByName('interactive').length > 0);
const focused = (page) => page.evaluate(() => document.activeElement.id);
const inView = (page, id) => page.evaluate((of) => {
  const { top } = document.getElementById(of).getBoundingClientRect();
  return top >= 0 && top < innerHeight / 2;
}, id);
/** The part of the page about an operation, with its form open. */
async function tryIt(page, id) {
  const section = page.locator('section.operation').filter({ has: page.locator(`[id="/operations/${id}"]`) });
  if (await section.locator('form').isVisible()) return section;
  await section.locator('.try > summary').click();
  await section.locator('form').waitFor();
  for (const details of await section.locator('form details > summary').all()) await details.click();
  return section;
}
/** Opens everything that can be opened; a form that opens may bring more. */
async function openAll(page) {
  const closed = page.locator('details:not([open]) > summary');
  while ((await closed.count()) > 0) {
    await closed.evaluateAll((summaries) => summaries.forEach((summary) => summary.click()));
    await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve))));
  }
}
async function accessible(page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run({ resultTypes: ['violations'] }));
  const words = violations.map(({ id, nodes }) => `${id} (${nodes.length}): ${nodes[0].html} ${nodes[0].failureSummary}`);
  assert(violations.length === 0, words.join('\n'));
}
const operation = async (kind) => {
  const { paths } = await (await fetch(`${base}/openapi.json`)).json();
  const [method, path] = kind.split(' ');
  return paths[path][method].operationId;
};

async function measure() {
  const times = [];
  for (let load = 0; load < 20; load += 1) {
    const { context, page } = await open({ viewport: VIEWPORTS.desktop });
    times.push(await page.evaluate(() => performance.getEntriesByName('interactive')[0].startTime));
    await context.close();
  }
  times.sort((a, b) => a - b);
  const [median, min, max] = [(times[9] + times[10]) / 2, times[0], times.at(-1)].map((time) => time.toFixed(1));
  console.log(`interactive after ${median} ms (median of 20 loads with an empty cache; min ${min}, max ${max})`);
}

async function everyViewport() {
  for (const [name, viewport] of Object.entries(VIEWPORTS)) {
    for (const colorScheme of ['light', 'dark']) {
      const { context, page, faults } = await open({ viewport, colorScheme });
      await check(`${name} ${colorScheme}: no console error, outside request or CSP violation`, async () => {
        await openAll(page);
        assert(faults.length === 0, faults.join('; '));
      });
      await check(`${name} ${colorScheme}: nothing is wider than the screen`, async () => {
        const width = await page.evaluate(() => document.documentElement.scrollWidth);
        assert(width <= viewport.width, `${width} px`);
      });
      await context.close();
      if (folder) {
        const shown = await open({ viewport, colorScheme });
        await shown.page.screenshot({ path: `${folder}/docs-${name}-${colorScheme}.png` });
        await shown.page.evaluate((id) => (location.hash = `#/operations/${id}`), await operation('post /events'));
        await shown.page.waitForFunction(() => document.activeElement.matches('h3'));
        await (await tryIt(shown.page, await operation('post /events'))).locator('.try').waitFor();
        await shown.page.screenshot({ path: `${folder}/docs-${name}-${colorScheme}-operation.png` });
        await shown.context.close();
      }
      // The CSP forbids foreign scripts, so axe gets a context of its own that ignores it.
      const free = await open({ viewport, colorScheme, bypassCSP: true });
      await check(`${name} ${colorScheme}: axe finds nothing`, async () => {
        await openAll(free.page);
        await accessible(free.page);
      });
      await free.context.close();
    }
  }
}

async function addresses() {
  const { context, page, faults } = await open({ viewport: VIEWPORTS.desktop });
  const kinds = ['operations', 'channels', 'messages', 'schemas', 'problems'];
  const all = await page.locator('nav a').evaluateAll((found) => found.map((link) => link.getAttribute('href')));
  await check('the contents list every kind', async () => {
    for (const kind of kinds) assert(all.some((href) => href.startsWith(`#/${kind}/`)), kind);
  });
  await check('every address is opened: scrolled to, focused, marked in the contents', async () => {
    for (const href of all) {
      const id = href.slice(1);
      await page.evaluate((hash) => (location.hash = hash), href);
      await page.waitForFunction((of) => document.activeElement.id === of, id);
      assert(await inView(page, id), `${href} is not in view`);
      await page.waitForFunction((of) => document.querySelector('nav [aria-current]')?.getAttribute('href') === of, href);
    }
  });
  await check('every link within the page leads somewhere', async () => {
    const lost = await page.locator('a[href^="#"]').evaluateAll((found) => found.map((link) => link.getAttribute('href'))
      .filter((href) => !document.getElementById(decodeURIComponent(href.slice(1)))));
    assert(lost.length === 0, lost.join(', '));
  });
  await check('back and forward', async () => {
    const [first, last] = [all[0], all.at(-1)];
    await page.evaluate((hash) => (location.hash = hash), first);
    await page.waitForFunction((of) => document.activeElement.id === of, first.slice(1));
    await page.evaluate((hash) => (location.hash = hash), last);
    await page.waitForFunction((of) => document.activeElement.id === of, last.slice(1));
    await page.goBack();
    await page.waitForFunction((of) => document.activeElement.id === of, first.slice(1));
    assert(await inView(page, first.slice(1)), 'not scrolled back');
    await page.goForward();
    await page.waitForFunction((of) => document.activeElement.id === of, last.slice(1));
  });
  await check('an address that does not exist is said to be none', async () => {
    await page.evaluate(() => (location.hash = '#/operations/none'));
    await page.getByText('Nothing here has the address').waitFor();
    await page.evaluate((hash) => (location.hash = hash), all[0]);
    await page.getByText('Nothing here has the address').waitFor({ state: 'hidden' });
  });
  await check('an address is opened at the first load, also under /api/v1', async () => {
    for (const prefix of ['', '/api/v1']) {
      const loaded = await open({ viewport: VIEWPORTS.phone }, `${prefix}/docs${all.at(-1)}`);
      assert((await focused(loaded.page)) === all.at(-1).slice(1), 'not focused');
      assert(await inView(loaded.page, all.at(-1).slice(1)), 'not in view');
      const line = await loaded.page.locator('.code pre code').first().textContent();
      assert(line.includes(`${base}${prefix}/`), `another address: ${line}`);
      assert(loaded.faults.length === 0, loaded.faults.join('; '));
      await loaded.context.close();
    }
  });
  await check('no fault on the way', async () => assert(faults.length === 0, faults.join('; ')));
  await context.close();
}

async function keyboard() {
  const { context, page, faults } = await open({ viewport: VIEWPORTS.desktop });
  const { keyboard: keys } = page;
  await check('search: / focuses, arrows move, Enter opens, Escape leaves', async () => {
    await keys.press('/');
    assert((await focused(page)) === 'search', 'not focused');
    await keys.type('rate');
    const results = page.locator('#results [role=option]');
    const count = await results.count();
    assert(count > 0, 'nothing found');
    assert((await results.first().getAttribute('aria-selected')) === 'true', 'the first is not chosen');
    await keys.press('ArrowUp');
    assert((await results.last().getAttribute('aria-selected')) === 'true', 'the arrows do not go round');
    await keys.press('ArrowDown');
    await keys.press('Enter');
    await page.waitForFunction(() => location.hash.startsWith('#/') && document.activeElement.id === location.hash.slice(1));
    await keys.press('/');
    await keys.type('zzz');
    await page.getByText('Nothing matches “zzz”').waitFor();
    await keys.press('Escape');
    assert((await focused(page)) !== 'search' && (await page.locator('.results').isHidden()), 'Escape does not leave');
  });
  await check('search finds operations, parameters, messages, schemas and problems', async () => {
    const found = { publish: 'operation', session_id: 'parameter', keepalive: 'message', event: 'schema', 503: 'problem' };
    for (const [words, kind] of Object.entries(found)) {
      await page.fill('#search', words);
      assert((await page.locator('#results .kind', { hasText: kind }).count()) > 0, `no ${kind} for ${words}`);
    }
    await keys.press('Escape');
  });
  await check('Tab reaches the content by the skip link', async () => {
    await page.goto(`${base}/docs`);
    await interactive(page);
    await keys.press('Tab');
    await keys.press('Enter');
    await page.waitForFunction(() => document.activeElement.id === 'main');
    assert(page.url().endsWith('#main'), page.url());
  });
  await check('keyboard alone: every stop of Tab can be seen, and an event is published', async () => {
    await page.goto(`${base}/docs#/operations/${await operation('post /events')}`);
    await interactive(page);
    const until = async (selector) => {
      for (let stops = 0; stops < 60; stops += 1) {
        await keys.press('Tab');
        const at = await page.evaluate((wanted) => {
          const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
          const isSeen = outlineStyle !== 'none' && outlineWidth !== '0px';
          const isThere = document.activeElement.matches(wanted);
          return { isThere, isSeen, html: document.activeElement.outerHTML.slice(0, 90) };
        }, selector);
        assert(at.isSeen, `no outline on ${at.html}`);
        if (at.isThere) return;
      }
      assert(false, `${selector} was not reached`);
    };
    await until('.try > summary');
    await keys.press('Enter');
    await page.locator('form').waitFor();
    await until('form .primary');
    await keys.press('Enter');
    await page.locator('.answer b').waitFor();
    assert((await page.locator('.answer b').textContent()).startsWith('201'), await page.locator('.answer').textContent());
    assert(await page.evaluate(() => document.activeElement.matches('form .primary')), 'the focus is lost after sending');
  });
  await check('on a phone the contents open, close with Escape, and lead on', async () => {
    await page.setViewportSize(VIEWPORTS.phone);
    await page.locator('.menu').click();
    await page.locator('nav').waitFor();
    await keys.press('Escape');
    await page.locator('nav').waitFor({ state: 'hidden' });
    await page.locator('.menu').click();
    await page.locator('nav a').last().click();
    await page.locator('nav').waitFor({ state: 'hidden' });
    await page.waitForFunction(() => document.activeElement.id === location.hash.slice(1));
  });
  await check('no fault on the way', async () => assert(faults.length === 0, faults.join('; ')));
  await context.close();
}

async function theme() {
  const { context, page } = await open({ colorScheme: 'light' });
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await check('the theme is switched, and remembered', async () => {
    const light = await ground();
    await page.locator('.theme select').selectOption('dark');
    const dark = await ground();
    assert(dark !== light, 'nothing changed');
    await page.reload();
    await interactive(page);
    assert((await ground()) === dark && (await page.locator('.theme select').inputValue()) === 'dark', 'forgotten');
    await page.locator('.theme select').selectOption('system');
    assert((await ground()) === light, 'the system is not followed');
  });
  await context.close();
  await check('it works when storage is refused', async () => {
    const refused = await browser.newContext();
    const other = await refused.newPage();
    const errors = [];
    other.on('pageerror', (error) => errors.push(error.message));
    await other.addInitScript(() => Object.defineProperty(window, 'localStorage', {
      get() { throw new DOMException('refused', 'SecurityError'); },
    }));
    await other.goto(`${base}/docs`);
    await interactive(other);
    await other.locator('.theme select').selectOption('dark');
    await other.locator('.tabs button', { hasText: 'Python' }).first().click();
    assert(errors.length === 0, errors.join('; '));
    await refused.close();
  });
}

async function faultsOfLoading() {
  for (const [name, left] of [['openapi.json', 'Channels'], ['asyncapi.json', 'Schemas']]) {
    await check(`without ${name} the page says so, shows the rest, and tries again`, async () => {
      const context = await browser.newContext();
      const page = await context.newPage();
      await page.route(`**/${name}`, (route) => route.fulfill({ status: 503, body: '{}' }));
      await page.goto(`${base}/docs`);
      await page.getByRole('alert').getByText(`${name}: the server answered 503`).waitFor();
      await page.getByRole('heading', { name: left, exact: true }).waitFor();
      await page.unroute(`**/${name}`);
      await page.getByRole('button', { name: 'Try again' }).click();
      await page.getByRole('alert').waitFor({ state: 'detached' });
      assert((await page.locator('section.operation .code').count()) > 10, 'not everything is shown');
      await context.close();
    });
  }
}

async function text() {
  await check('text of a document stays text, and only links to pages are links', async () => {
    const context = await browser.newContext();
    const page = await context.newPage();
    const bad = ['javascript:alert(1)', 'JAVASCRIPT:alert(1)', 'java\tscript:alert(1)', 'data:text/html,x', 'vbscript:x'];
    const good = ['https://example.org/', '#/schemas/Event', 'openapi.json'];
    const links = [...bad, ...good].map((href) => `[link](${href})`);
    const description = `<img src=x onerror=alert(1)> <b>bold</b> ${links.join(' ')}`;
    await page.route('**/openapi.json', async (route) => {
      const response = await route.fetch();
      const json = await response.json();
      json.info.description = description;
      await route.fulfill({ response, json });
    });
    await page.goto(`${base}/docs`);
    await interactive(page);
    const section = page.locator('main section').first();
    assert((await section.textContent()).includes('<img src=x onerror=alert(1)> <b>bold</b>'), 'the text is not there');
    assert((await section.locator('img, p b').count()) === 0, 'it became HTML');
    const schemes = await section.locator('p a').evaluateAll((all) => all.map(({ protocol }) => protocol));
    assert(schemes.length === good.length && schemes.every((scheme) => /^https?:$/.test(scheme)), schemes.join(' '));
    await context.close();
  });
  const { context, page } = await open({ viewport: VIEWPORTS.desktop, permissions: ['clipboard-read', 'clipboard-write'] });
  await check('lines are switched for all operations, remembered, and copied', async () => {
    await page.locator('.tabs button', { hasText: 'Python' }).first().click();
    const lines = page.locator('.code pre code');
    for (const line of await lines.allTextContents()) assert(/^(import|from) /.test(line), line);
    await page.locator('.copy').nth(1).click();
    await page.getByText('Copied').waitFor();
    const copied = await page.evaluate(() => navigator.clipboard.readText());
    assert(copied === (await lines.nth(1).textContent()), `another text was copied: ${copied}`);
    await page.reload();
    await interactive(page);
    assert((await lines.first().textContent()).includes('urlopen'), 'forgotten');
  });
  await check('a long answer is cut, and says so', async () => {
    const whole = await tryIt(page, await operation('get /openapi.json'));
    await whole.locator('.primary').click();
    await whole.getByText('Cut: the first 20,000 characters are shown.').waitFor();
    assert((await whole.locator('.answer pre').last().textContent()).length === 20_000, 'not cut');
  });
  await context.close();
}

async function requests() {
  const { context, page, faults } = await open({ viewport: VIEWPORTS.desktop });
  const event = (value) => JSON.stringify({ event_type: 'timer_tick', source: 'docs', session_id: session, payload: { value } });
  let id;
  await check('HTTP: an event is published, read back, and found', async () => {
    const publish = await tryIt(page, await operation('post /events'));
    await publish.locator('textarea').fill(event('http'));
    assert((await publish.locator('.code pre code').textContent()).includes(session), 'the line does not follow the form');
    await publish.locator('.primary').click();
    await publish.locator('.answer b', { hasText: '201' }).waitFor();
    id = /evt_[0-9a-f]{12}/.exec(await publish.locator('.answer').textContent())[0];
    const read = await tryIt(page, await operation('get /events/{id}'));
    await read.locator('form input').first().fill(id);
    await read.locator('.primary').click();
    await read.locator('.answer b', { hasText: '200' }).waitFor();
    assert((await read.locator('.answer').textContent()).includes('"value": "http"'), 'another event');
    const list = await tryIt(page, await operation('get /events'));
    await list.locator('label', { hasText: /^session_id/ }).locator('input').fill(session);
    await list.locator('.primary').click();
    await list.locator('.answer b', { hasText: '200' }).waitFor();
    assert((await list.locator('.answer').textContent()).includes(id), 'not found');
  });
  await check('HTTP: a refusal leads to its problem', async () => {
    const publish = page.locator('section.operation').filter({ has: page.locator(`[id="/operations/${await operation('post /events')}"]`) });
    await publish.locator('textarea').fill('{"event_type":"none","source":"docs"}');
    await publish.locator('.primary').click();
    await publish.locator('.answer b.bad', { hasText: '422' }).waitFor();
    await publish.getByRole('link', { name: 'What this problem means' }).click();
    await page.waitForFunction(() => location.hash.startsWith('#/problems/') && document.activeElement.id === location.hash.slice(1));
  });
  await check('HTTP: a deletion asks first, and says what it deletes', async () => {
    const asked = [];
    page.on('request', (request) => request.method() === 'DELETE' && asked.push(request.url()));
    const remove = await tryIt(page, await operation('delete /events'));
    for (const input of await remove.locator('form > label input:not([type=password])').all()) await input.fill('');
    await remove.locator('.primary').click();
    await remove.getByRole('button', { name: 'Delete all events?' }).waitFor();
    assert((await page.evaluate(() => document.activeElement.textContent)) === 'Keep', 'the focus is on the button that deletes');
    await page.keyboard.press('Enter');
    await remove.getByRole('button', { name: 'Send' }).waitFor();
    await remove.locator('label', { hasText: /^before/ }).locator('input').fill('2000-01-01T00:00:00Z');
    await remove.locator('.primary').click();
    assert(asked.length === 0, 'it was sent at the first click');
    await remove.getByRole('button', { name: 'Delete the events with before=2000-01-01T00:00:00Z?' }).click();
    await remove.locator('.answer b', { hasText: '200' }).waitFor();
    assert(asked.length === 1, asked.join(', '));

    // Characters that mean something in a URL are part of what is asked for.
    const field = (name) => remove.locator('label', { hasText: name }).locator('input');
    for (const value of ['payload.rate=100%', 'payload.tag=a#1', 'payload.tag=a?b/../c&payload.n=+']) {
      await field(/^payload.KEY/).fill(value);
      await remove.locator('.primary').click();
      const question = `Delete the events with ${value}, before=2000-01-01T00:00:00Z?`;
      await remove.getByRole('button', { name: question, exact: true }).click();
      await remove.locator('.answer b', { hasText: '200' }).waitFor();
      const { searchParams, hash } = new URL(asked.at(-1));
      const sent = [...searchParams].map((pair) => pair.join('=')).join('&');
      assert(sent === `${value}&before=2000-01-01T00:00:00Z` && !hash, asked.at(-1));
    }
    await field(/^payload.KEY/).fill('tag=1');
    await remove.locator('.primary').click();
    await remove.locator('.answer', { hasText: 'payload.KEY is one or several of payload.key=value' }).waitFor();

    const before = asked.length;
    const unsubscribe = await tryIt(page, await operation('delete /subscriptions/{name}'));
    await unsubscribe.locator('form input').first().fill('..');
    await unsubscribe.locator('.primary').click();
    await unsubscribe.locator('.answer', { hasText: 'No URL can have ..' }).waitFor();
    assert(asked.length === before, asked.at(-1));
    await unsubscribe.locator('form input').first().fill('../events');
    await unsubscribe.locator('.primary').click();
    await unsubscribe.getByRole('button', { name: 'Delete ../events?' }).click();
    await unsubscribe.locator('.answer b', { hasText: '404' }).waitFor();
    assert(new URL(asked.at(-1)).pathname === '/subscriptions/..%2Fevents', asked.at(-1));
  });
  await check('event stream: starts, shows live events, keeps the newest 200, stops', async () => {
    const stream = await tryIt(page, await operation('get /events/stream'));
    await stream.locator('label', { hasText: /^session_id/ }).locator('input').fill(session);
    await stream.locator('.primary').click();
    await stream.locator('.log li', { hasText: 'subscribed' }).first().waitFor();
    await stream.locator('.log li', { hasText: `"id":"${id}"` }).waitFor();
    const many = Array.from({ length: 300 }, (_, at) => event(`live ${at}`)).join('\n');
    const answer = await fetch(`${base}/events`, { method: 'POST', headers: { 'content-type': 'application/x-ndjson' }, body: many });
    assert(answer.status === 201, answer.status);
    await stream.locator('.log li', { hasText: 'live 299' }).waitFor();
    // Also behind a fold, and with characters that end a line elsewhere.
    await stream.locator('.try > summary').click();
    const odd = await fetch(`${base}/events`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: event('odd \u2028 end') });
    assert(odd.status === 201, odd.status);
    await stream.locator('.try > summary').click();
    await stream.locator('.log li', { hasText: 'odd' }).waitFor();
    assert((await stream.locator('.log li').count()) === 200, `${await stream.locator('.log li').count()} rows`);
    await stream.getByText('the newest 200 are shown').waitFor();
    await stream.getByRole('button', { name: 'Stop' }).click();
    await stream.getByRole('button', { name: 'Start' }).waitFor();
  });
  await check('WebSockets: what one publishes, the other receives', async () => {
    const subscribe = await tryIt(page, await operation('get /ws/subscribe'));
    await subscribe.getByRole('button', { name: 'Connect' }).click();
    await subscribe.locator('textarea').fill(JSON.stringify({ strict: true, session_id: session }));
    await subscribe.getByRole('button', { name: 'Send message' }).click();
    await subscribe.locator('.log li', { hasText: '"status":"subscribed"' }).waitFor();
    const publish = await tryIt(page, await operation('get /ws/publish'));
    await publish.getByRole('button', { name: 'Connect' }).click();
    await publish.locator('textarea').fill(event('socket'));
    await publish.getByRole('button', { name: 'Send message' }).click();
    await publish.locator('.log li', { hasText: '"status":"ok"' }).waitFor();
    await subscribe.locator('.log li', { hasText: '"value":"socket"' }).waitFor();
    for (const section of [publish, subscribe]) {
      await section.getByRole('button', { name: 'Close' }).click();
      await section.locator('.log li', { hasText: 'closed with 1000' }).waitFor();
      await section.getByRole('button', { name: 'Connect' }).waitFor();
    }
  });
  await check('a key goes to a WebSocket as a subprotocol, and not in its URL', async () => {
    const subscribe = await tryIt(page, await operation('get /ws/subscribe'));
    await subscribe.locator('input[type=password]').fill('open-sesame');
    const opened = page.waitForEvent('websocket');
    await subscribe.getByRole('button', { name: 'Connect' }).click();
    const url = (await opened).url();
    assert(!url.includes('sesame'), url);
    // The browser keeps the connection only if the server chooses one of the subprotocols.
    await subscribe.getByRole('button', { name: 'Close' }).click();
    await subscribe.getByRole('button', { name: 'Connect' }).waitFor();
    await subscribe.locator('input[type=password]').fill('');
  });
  await check('no fault on the way, but for the refusals that were asked for', async () => {
    const others = faults.filter((fault) => !/status of (404|422)/.test(fault));
    assert(others.length === 0, others.join('; '));
  });
  await context.close();

  const free = await open({ viewport: VIEWPORTS.desktop, colorScheme: 'dark', bypassCSP: true });
  await check('axe finds nothing in answers, live messages and search results', async () => {
    const publish = await tryIt(free.page, await operation('post /events'));
    await publish.locator('.primary').click();
    await publish.locator('.answer b', { hasText: '201' }).waitFor();
    const stream = await tryIt(free.page, await operation('get /events/stream'));
    await stream.locator('.primary').click();
    await stream.locator('.log li').nth(2).waitFor();
    await free.page.fill('#search', 'event');
    await accessible(free.page);
  });
  await free.context.close();
}

if (folder === 'measure') {
  await measure();
} else {
  for (const part of [everyViewport, addresses, keyboard, theme, faultsOfLoading, text, requests]) await part();
  console.log(`${passed} passed, ${failed} failed`);
}
await browser.close();
process.exitCode = failed ? 1 : 0;
