/** The page: reads both documents, shows them as one reference, and keeps the address and the view together. */
import { html, nothing, render } from './lit-html.js';
import { model } from './docs-model.js';
import { schemaViews } from './docs-schema.js';
import { find, index } from './docs-search.js';
import { folded, inline, json, markdown } from './docs-text.js';
import { literal } from './docs-snippets.js';
import { Panel } from './docs-try.js';

const head = document.querySelector('header');
const body = document.getElementById('body');
const root = document.documentElement;

/** A browser may refuse storage; then nothing is remembered, and all else works. */
const storage = {
  get(name) {
    try { return localStorage.getItem(name); } catch { return null; }
  },
  set(name, value) {
    try { localStorage.setItem(name, value); } catch { /* Not remembered. */ }
  },
};

const state = {
  model: model(),
  failed: [],
  isMenu: false,
  query: '',
  found: [],
  active: 0,
  theme: storage.get('theme') ?? 'system',
};
let entries = [];
let panels = [];
let marks;
let view = schemaViews(state.model.deref);

const shared = {
  // The page has no trailing slash, so its folder is where the server is, also behind a proxy that adds a prefix.
  base: new URL('.', location.origin + location.pathname).href.replace(/\/$/, ''),
  language: storage.get('language') ?? 'curl',
  key: '',
  deref: (node) => state.model.deref(node),
  changed() {
    storage.set('language', shared.language);
    for (const panel of panels) panel.render();
  },
};

async function load() {
  const names = ['openapi.json', 'asyncapi.json'];
  const loaded = await Promise.allSettled(names.map(async (name) => {
    const answer = await fetch(name);
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    return answer.json();
  }));
  state.failed = loaded.flatMap(({ reason }, at) => (reason ? [`${names[at]}: ${reason.message}`] : []));
  state.model = model(...loaded.map(({ value }) => value));
  view = schemaViews(state.model.deref);
  entries = index(state.model);
  update();
  render([navigation(), main()], body);
  panels = Array.from(body.querySelectorAll('.panel'), (element) =>
    new Panel(element, state.model.operations.find(({ id }) => id === element.dataset.id), shared));
  watch();
  go();
  performance.mark('interactive');
}

const title = (level, id, text) => html`<div class="title">${level === 2
  ? html`<h2 id=${id} tabindex="-1">${text}</h2>` : html`<h3 id=${id} tabindex="-1">${text}</h3>`}
  <a class="anchor" href="#${id}" aria-label="Link to ${text}">#</a></div>`;

const METHOD = { stream: 'SSE', socket: 'WS' };
const badge = ({ kind, method }) =>
  html`<span class="badge ${kind === 'http' ? method : kind}">${METHOD[kind] ?? method}</span>`;
const links = (names, kind) => names.map((name, at) => [at ? ', ' : '', html`<a href="#/${kind}/${name}">${name}</a>`]);
const example = (value, name) => html`<figure>${name ? html`<figcaption>${name}</figcaption>` : nothing}
  <pre><code>${typeof value === 'string' ? value : json(literal(value))}</code></pre></figure>`;
const examplesOf = ({ examples, example: one }) => (examples
  ? Object.entries(examples).map(([name, { summary, value }]) => example(value, summary ?? name))
  : one === undefined ? nothing : example(one));

/** What a reader looks for first: an example of the answer when all is well. */
function answerOf({ responses }) {
  const good = Object.entries(responses).filter(([status]) => status.startsWith('2'));
  const [found] = good.flatMap(([status, { content = {} }]) => Object.values(content).flatMap(({ examples = {} }) =>
    Object.values(examples).map(({ summary = 'answer', value }) => example(value, `${status} · ${summary}`))));
  return found ?? nothing;
}

/** A parameter or a header: its description stands beside its schema. */
const fieldOf = (name, { schema, description, required }, note = '') =>
  view.field(name, { ...state.model.deref(schema), description }, required, [], note);

function operationView(operation) {
  const { id, summary, path, parameters, requestBody, channel, needsKey } = operation;
  const mediaView = ([media, content]) => folded(html`<code>${media}</code>`, () =>
    [content.schema ? view.fields(content.schema) : nothing, examplesOf(content)]);
  return html`<section class="operation">
    <div class="text">
      ${title(3, `/operations/${id}`, summary)}
      <p class="address">${badge(operation)} <code>${path}</code>
        ${needsKey ? nothing : html`<span class="soft">needs no key</span>`}</p>
      ${markdown(operation.description)}
      ${channel ? html`<p>Messages and how it ends: <a href="#/channels/${channel.name}">${channel.title}</a>.</p>` : nothing}
      ${parameters.length ? html`<h4>Parameters</h4><dl class="fields">${parameters.map((one) =>
        fieldOf(one.name, one, one.in === 'query' ? '' : one.in))}</dl>` : nothing}
      ${requestBody ? html`<h4>Body</h4>${markdown(requestBody.description)}
        ${Object.entries(requestBody.content).map(mediaView)}` : nothing}
      <h4>Responses</h4>${Object.entries(operation.responses).map(responseView)}
    </div>
    <div class="side"><div class="panel" data-id=${id}></div>${answerOf(operation)}</div>
  </section>`;
}

function responseView([status, { description, headers, content }]) {
  const media = Object.entries(content ?? {});
  const slugs = new Set(JSON.stringify(content ?? {}).match(/(?<=#\/problems\/)[\w-]+/g));
  const fields = Object.entries(headers).map(([name, header]) => fieldOf(name, header));
  const line = html`<b class=${status < 400 ? 'good' : 'bad'}>${status}</b> ${inline(description)}`;
  if (!media.length && !fields.length) return html`<p class="response">${line}</p>`;
  return folded(line, () => html`
    ${slugs.size ? html`<p>Problems: ${links([...slugs], 'problems')}</p>` : nothing}
    ${fields.length ? html`<h5>Headers</h5><dl class="fields">${fields}</dl>` : nothing}
    ${media.map(([type, of]) => html`<h5><code>${type}</code></h5>
      ${of.schema ? view.fields(of.schema) : nothing}${examplesOf(of)}`)}`, 'response');
}

function channelView(channel) {
  const { name, address, client, server, closeCodes } = channel;
  const operation = state.model.operations.find(({ path }) => path === address);
  const row = ({ $name, title: text, summary }) =>
    html`<div><dt><a href="#/messages/${$name}">${text}</a></dt><dd>${inline(summary)}</dd></div>`;
  const rows = (names) =>
    html`<dl class="fields">${state.model.messages.filter(({ $name }) => names.includes($name)).map(row)}</dl>`;
  const codeRow = ({ code, why, reconnect }) =>
    html`<tr><td><code>${code}</code></td><td>${inline(why)}</td><td>${reconnect}</td></tr>`;
  return html`<section>${title(3, `/channels/${name}`, channel.title)}
    <p class="address">${operation ? badge(operation) : nothing} <code>${address}</code></p>
    ${channel.summary ? html`<p>${inline(channel.summary)}</p>` : nothing}${markdown(channel.description)}
    ${operation ? html`<p>Connect and try it: <a href="#/operations/${operation.id}">${operation.summary}</a>.</p>` : nothing}
    <div class="sides">
      ${client.length ? html`<div><h4>The client sends</h4>${rows(client)}</div>` : nothing}
      ${server.length ? html`<div><h4>The server sends</h4>${rows(server)}</div>` : nothing}
    </div>
    ${closeCodes.length ? html`<h4>Close codes</h4><table>
      <thead><tr><th>Code</th><th>Why</th><th>Reconnect?</th></tr></thead>
      <tbody>${closeCodes.map(codeRow)}</tbody></table>` : nothing}
  </section>`;
}

const messageView = (message) => html`<section class="pair"><div class="text">
    ${title(3, `/messages/${message.$name}`, message.title)}
    <p class="soft">${message['x-event'] ? html`<code>event: ${message['x-event']}</code> · ` : nothing}on
      ${message.channels.map(({ name, address }, at) => [at ? ', ' : '', html`<a href="#/channels/${name}">${address}</a>`])}</p>
    ${message.summary ? html`<p>${inline(message.summary)}</p>` : nothing}${markdown(message.description)}
    ${message.payload ? view.fields(message.payload) : nothing}</div>
  <div>${(message.examples ?? []).map(({ name, summary, payload }) => example(payload, summary ?? name))}</div></section>`;

// Several problems share the phrase of their status, so the slug is the name.
const named = (slug) => slug[0].toUpperCase() + slug.slice(1).replaceAll('-', ' ');
const problemView = ({ slug, status, title: phrase, detail, cause, remedy }) => html`<section>
  ${title(3, `/problems/${slug}`, named(slug))}
  <p class="address"><b class="bad">${status}</b> ${phrase}</p>
  <dl class="problem"><dt>It says</dt><dd>“${detail}”</dd>
    <dt>Cause</dt><dd>${inline(cause)}</dd><dt>What to do</dt><dd>${inline(remedy)}</dd></dl></section>`;

const schemaView = (schema) =>
  html`<section>${title(3, `/schemas/${schema.$name}`, schema.$name)}${view.fields(schema)}</section>`;

/** What comes after the operations: how it is called, how one of it is shown, and its address, name and mark. */
const chapters = () => [
  ['channels', 'Channels', channelView, ({ name, title: text }) => [name, text]],
  ['messages', 'Messages', messageView, ({ $name, title: text }) => [$name, text]],
  ['schemas', 'Schemas', schemaView, ({ $name }) => [$name, $name]],
  ['problems', 'Problems', problemView, ({ slug, status }) => [slug, named(slug), status]],
].filter(([kind]) => state.model[kind].length);

function navigation() {
  const item = (href, text, mark = '') => html`<li><a href=${href} @click=${() => menu(false)}><span>${text}</span>${mark}</a></li>`;
  return html`<nav id="contents" aria-label="Contents">
    ${state.model.groups.map((group) => html`<b>${group.name}</b><ul>${group.operations.map((operation) =>
      item(`#/operations/${operation.id}`, operation.summary, badge(operation)))}</ul>`)}
    ${chapters().map(([kind, name, , entry]) => html`<b>${name}</b><ul>${state.model[kind].map((it) => {
      const [key, text, mark] = entry(it);
      return item(`#/${kind}/${key}`, text, mark ? html`<span class="badge">${mark}</span>` : '');
    })}</ul>`)}
  </nav>`;
}

function main() {
  const { failed, model: { info, groups, security } } = state;
  const scheme = ({ type, in: place = 'header', name, scheme: word, description }) => html`<p>
    <code>${type === 'apiKey' ? name : `Authorization: ${word}`}</code>
    <span class="soft">${place}</span> ${inline(description)}</p>`;
  return html`<main id="main" tabindex="-1">
    ${failed.length ? html`<div class="notice" role="alert"><p>This page cannot show everything. ${failed.join('. ')}.</p>
      <button class="primary" @click=${load}>Try again</button></div>` : nothing}
    <p class="notice" role="status" id="missing" hidden></p>
    <section><h1 id="/" tabindex="-1">${info.title} <span class="soft">${info.version}</span></h1>
      ${markdown(info.description)}
      <dl class="facts"><dt>This server</dt><dd><code>${shared.base}</code></dd>
        <dt>Documents</dt><dd><a href="openapi.json">openapi.json</a>, <a href="asyncapi.json">asyncapi.json</a></dd>
        ${security.length ? html`<dt>API key</dt><dd>${security.map(scheme)}</dd>` : nothing}</dl></section>
    ${groups.map(({ name, description, operations }) => html`${title(2, `/groups/${name}`, name)}
      ${markdown(description)}${operations.map(operationView)}`)}
    ${chapters().map(([kind, name, show]) => html`${title(2, `/${kind}`, name)}${state.model[kind].map(show)}`)}
  </main>`;
}

function search() {
  const { query, found, active } = state;
  const isShown = query.trim() !== '';
  const result = (entry, at) => html`<li id="result-${at}" role="option" aria-selected=${at === active}
    @mousedown=${(event) => { event.preventDefault(); open(entry); }}>
    <span>${entry.title}</span> <span class="soft">${entry.note}</span> <span class="kind">${entry.kind}</span></li>`;
  return html`<div class="search" role="search">
    <input id="search" type="search" role="combobox" placeholder="Search" aria-label="Search the reference"
      autocomplete="off" spellcheck="false" aria-expanded=${isShown} aria-controls="results"
      aria-activedescendant=${found.length ? `result-${active}` : nothing}
      .value=${query} @input=${(event) => look(event.target.value)} @keydown=${moveInResults} @blur=${() => look('')}>
    <kbd aria-hidden="true">/</kbd>
    <div class="results" ?hidden=${!isShown}>
      <ul id="results" role="listbox" aria-label="Results">${found.map(result)}</ul>
      ${isShown && !found.length ? html`<p>Nothing matches “${query}”.</p>` : nothing}
    </div></div>`;
}

/** Everything else is rendered once, so that typing in the search is not slowed by the length of the page. */
function update() {
  const themes = ['system', 'light', 'dark'];
  const change = (event) => theme(event.target.value);
  render(html`<a class="brand" href="#/">${state.model.info.title}</a>${search()}
      <label class="theme"><span>Theme</span><select aria-label="Theme" @change=${change}>
        ${themes.map((name) => html`<option ?selected=${name === state.theme}>${name}</option>`)}</select></label>
      <button class="menu" aria-expanded=${state.isMenu} aria-controls="contents"
        @click=${() => menu(!state.isMenu)}>Menu</button>`, head);
}

function theme(name) {
  state.theme = root.dataset.theme = name;
  storage.set('theme', name);
}

function menu(isMenu) {
  state.isMenu = isMenu;
  body.classList.toggle('with-menu', isMenu);
  document.getElementById('main').inert = isMenu;
  update();
}

function look(query) {
  Object.assign(state, { query, found: find(entries, query), active: 0 });
  update();
}

function open({ href }) {
  document.activeElement.blur();
  menu(false);
  if (location.hash === href) go();
  location.hash = href;
}

function moveInResults(event) {
  const { found, active } = state;
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step && found.length) {
    event.preventDefault();
    state.active = (active + step + found.length) % found.length;
    update();
    document.getElementById(`result-${state.active}`).scrollIntoView({ block: 'nearest' });
  } else if (event.key === 'Enter' && found.length) {
    open(found[active]);
  }
}

/** What an address says, or as it is if its escapes mean nothing. */
function plain(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Shows what the address names, and gives it the focus, so that reading and Tab go on from there. */
function go() {
  const id = plain(location.hash.slice(1));
  const target = document.getElementById(id);
  const missing = document.getElementById('missing');
  missing.hidden = !id || Boolean(target);
  if (!missing.hidden) {
    missing.textContent = `Nothing here has the address ${location.hash}.`;
    scrollTo(0, 0);
  }
  const { title: name } = state.model.info;
  document.title = target?.matches('h2, h3') ? `${target.textContent} · ${name}` : name;
  target?.scrollIntoView();
  target?.focus({ preventScroll: true });
}

/** Marks in the contents what is being read. */
function watch() {
  marks?.disconnect();
  const headings = [...body.querySelectorAll('main h3')];
  const visible = new Set();
  const nav = document.getElementById('contents');
  marks = new IntersectionObserver((seen) => {
    for (const { target, isIntersecting } of seen) visible[isIntersecting ? 'add' : 'delete'](target);
    const first = headings.find((heading) => visible.has(heading));
    const link = first && nav.querySelector(`a[href="#${CSS.escape(first.id)}"]`);
    if (!link) return;
    nav.querySelector('[aria-current]')?.removeAttribute('aria-current');
    link.setAttribute('aria-current', 'location');
    // Not `scrollIntoView`, which would also move the page under the reader.
    const [row, box] = [link, nav].map((element) => element.getBoundingClientRect());
    if (row.top < box.top || row.bottom > box.bottom) nav.scrollTop += row.top - box.top - box.height / 2;
  }, { rootMargin: '-50px 0px -60% 0px' });
  for (const heading of headings) marks.observe(heading);
}

addEventListener('hashchange', go);
addEventListener('keydown', (event) => {
  const isTyping = event.target.closest?.('input, textarea, select');
  if (event.key === '/' && !isTyping) {
    event.preventDefault();
    document.getElementById('search').focus();
  } else if (event.key === 'Escape') {
    if (event.target.id === 'search') event.target.blur();
    if (state.isMenu) menu(false);
  }
});

await load();
