/** The panel beside an operation: its lines to copy, and a form that sends what they say. */
import { html, nothing, render } from './lit-html.js';
import { bodies, defaults, isOpen, literal, refusal, request, snippets } from './docs-snippets.js';
import { indent, json, number } from './docs-text.js';

/** The rows that a live log keeps, so that a stream can run for days. */
const ROWS = 200;
/** Characters of one row: the longest events that are usual, not the longest that are possible. */
const ROW = 4_000;
/** Bytes of an answer that are read, and characters of it that are shown: more than that makes a page slow. */
const READ = 1_000_000;
const SHOWN = 20_000;

const LANGUAGES = { curl: 'curl', python: 'Python', javascript: 'JavaScript' };
/** What a line for a WebSocket needs, or does not do. */
const OF_SOCKETS = { curl: 'Shows the handshake only: curl sends no messages.', python: 'Needs: pip install websockets' };
const cut = (text, at) =>
  text.length > at ? `${text.slice(0, at)}… (${number(text.length - at)} more characters)` : text;

/** Reads the beginning of a body, and stops the rest. */
async function head(answer) {
  const reader = answer.body?.getReader();
  const decoder = new TextDecoder();
  let [text, bytes, isWhole] = ['', 0, !reader];
  while (!isWhole && bytes < READ) {
    const { done, value } = await reader.read();
    isWhole = done;
    bytes += value?.length ?? 0;
    text += decoder.decode(value, { stream: !done });
  }
  if (!isWhole) await reader.cancel();
  return { text, bytes, isWhole };
}

/** The messages of an event stream, as they arrive. */
async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (text + value).split('\n\n');
    text = blocks.pop();
    for (const block of blocks) {
      const message = {};
      for (const line of block.split('\n')) {
        // Not `.`, at which a line separator within a payload would end.
        const [, field, content] = /^([a-z]*): ?([^]*)$/.exec(line) ?? [];
        if (field) message[field] = content;
      }
      if (message.data !== undefined) yield message;
    }
  }
}

/** A list of the newest messages. It is filled once a frame, without templates: a stream may bring thousands a second. */
class Log {
  constructor(element) {
    this.element = element;
    this.waiting = [];
    this.count = 0;
  }

  add(mark, text) {
    if (mark !== '–') this.count += 1;
    this.waiting.push([new Date().toISOString().slice(11, 23), mark, cut(text, ROW)]);
    // A hidden page gets no frames.
    if (this.waiting.length > ROWS) this.waiting.shift();
    this.frame ??= requestAnimationFrame(() => this.flush());
  }

  flush() {
    this.frame = undefined;
    const { element } = this;
    const isHeld = element.scrollHeight - element.scrollTop - element.clientHeight > 40;
    for (const row of this.waiting.splice(0)) {
      const item = document.createElement('li');
      for (const [at, name] of ['time', 'b', 'code'].entries()) {
        item.append(Object.assign(document.createElement(name), { textContent: row[at] }));
      }
      element.append(item);
    }
    while (element.childElementCount > ROWS) element.firstChild.remove();
    // A reader who has scrolled up is not moved.
    if (!isHeld) element.scrollTop = element.scrollHeight;
    const cutAt = this.count > ROWS ? `, the newest ${ROWS} are shown` : '';
    element.previousElementSibling.textContent = `${number(this.count)} messages${cutAt}`;
  }
}

/** @typedef {{base: string, language: string, key: string, changed: () => void, deref: Function}} Shared What all panels share. */

/** One panel. It renders itself, so that typing in it costs nothing elsewhere. */
export class Panel {
  /** @param {Element} element @param {import('./docs-model.js').Node} operation @param {Shared} shared */
  constructor(element, operation, shared) {
    Object.assign(this, { element, operation, shared, values: defaults(operation), wasOpen: false, state: 'idle' });
    const messages = operation.messages.map(({ summary, name, ...rest }) => ({ summary: summary ?? name, ...rest }));
    this.examples = operation.kind === 'socket' ? messages : bodies(operation);
    this.render();
  }

  render() {
    const { operation, shared, values } = this;
    const { method, path } = operation;
    // The key itself is never shown.
    const lines = snippets(operation, method, path, shared.base, values, shared.key && 'YOUR_KEY');
    const line = lines[shared.language];
    const note = operation.kind === 'socket' && OF_SOCKETS[shared.language];
    const choose = (language) => () => {
      shared.language = language;
      shared.changed();
    };
    const hadFocus = this.element.contains(document.activeElement);
    render(html`
      <div class="code">
        <div class="tabs" role="group" aria-label="Language of the example">
          ${Object.entries(LANGUAGES).map(([language, name]) =>
            html`<button aria-pressed=${language === shared.language} @click=${choose(language)}>${name}</button>`)}
          <button class="copy" @click=${(event) => this.copy(event.target, line)}>Copy</button>
        </div>
        <pre><code>${line}</code></pre>
        ${note ? html`<p class="soft">${note}</p>` : nothing}
      </div>
      <details class="try" @toggle=${(event) => this.unfold(event.target.open)}>
        <summary>Try it</summary>${this.wasOpen ? this.form() : nothing}
      </details>`, this.element);
    if (hadFocus && !this.element.contains(document.activeElement)) this.element.querySelector('.primary')?.focus();
  }

  /** The form is made when it is opened, and stays: a log that is filled behind a fold must not lose its place. */
  unfold(isOpen) {
    this.wasOpen ||= isOpen;
    this.render();
  }

  async copy(button, line) {
    try {
      await navigator.clipboard.writeText(line);
      button.textContent = 'Copied';
    } catch {
      // Without TLS only loopback has a clipboard; the selected text can still be copied by hand.
      getSelection().selectAllChildren(this.element.querySelector('pre code'));
      button.textContent = 'Press Ctrl-C';
    }
    setTimeout(() => (button.textContent = 'Copy'), 2000);
  }

  form() {
    const { operation } = this;
    const all = operation.parameters.filter(({ name }) => !['api_key', 'X-API-Key'].includes(name));
    const first = (parameter) => parameter.required || this.initial?.[parameter.name] !== undefined;
    this.initial ??= { ...this.values.parameters };
    const [shown, rest] = [all.filter(first), all.filter((parameter) => !first(parameter))];
    const media = Object.keys(operation.responses[200]?.content ?? {});
    const setKey = (event) => {
      this.shared.key = event.target.value;
      this.shared.changed();
    };
    return html`<form @submit=${(event) => { event.preventDefault(); this.start(); }}>
      ${shown.map((parameter) => this.input(parameter))}
      ${rest.length ? html`<details><summary>${shown.length ? 'More parameters' : 'Parameters'} (${rest.length})</summary>
        ${rest.map((parameter) => this.input(parameter))}</details>` : nothing}
      ${operation.kind === 'http' && media.length > 1 ? html`<label><span>Accept</span>
        <select @change=${(event) => this.set({ accept: event.target.value })}>
          ${media.map((type, index) => html`<option value=${index ? type : ''}>${type}</option>`)}</select></label>` : nothing}
      ${operation.requestBody || operation.kind === 'socket' ? this.body() : nothing}
      ${operation.needsKey ? html`<label><span>API key</span><input type="password" autocomplete="off"
        placeholder="only if the server asks for one" .value=${this.shared.key} @input=${setKey}></label>` : nothing}
      <div class="buttons">${this.buttons()}</div>
    </form>
    ${this.result ? this.answer(this.result) : nothing}
    ${operation.kind === 'http' ? nothing : html`<div class="log" ?hidden=${!this.log}><p class="soft"></p>
      <ol tabindex="0" aria-label="Messages"></ol></div>`}`;
  }

  input(parameter) {
    const { name, schema = {}, example } = parameter;
    const { enum: options, type } = this.shared.deref(schema);
    const choices = options ?? (type === 'boolean' ? [true, false] : undefined);
    const set = (event) => this.set({ parameters: { ...this.values.parameters, [name]: event.target.value } });
    const value = this.values.parameters[name] ?? '';
    return html`<label><span>${name}</span>${choices
      ? html`<select @change=${set}><option value=""></option>
          ${choices.map((one) => html`<option ?selected=${String(one) === value}>${String(one)}</option>`)}</select>`
      : html`<input .value=${value} ?required=${parameter.required} @input=${set} autocomplete="off" spellcheck="false"
          placeholder=${isOpen(parameter) ? 'key=value&key=value' : example === undefined ? '' : String(example)}>`}</label>`;
  }

  body() {
    const choose = (event) => {
      const { payload, text = literal(payload), media = '' } = this.examples[event.target.value];
      this.set({ body: text, media });
    };
    const rows = Math.min(14, this.values.body.split('\n').length + 1);
    const type = (event) => this.set({ body: event.target.value });
    const options = this.examples.map(({ title, summary }, index) =>
      html`<option value=${index}>${title ? `${title}: ` : ''}${summary}</option>`);
    return html`${options.length > 1
      ? html`<label><span>Example</span><select @change=${choose}>${options}</select></label>` : nothing}
      <label class="body"><span>${this.operation.kind === 'socket' ? 'Message' : 'Body'}</span>
        <textarea rows=${rows} spellcheck="false" .value=${this.values.body} @input=${type}></textarea></label>`;
  }

  set(changes) {
    this.isAsking = false;
    Object.assign(this.values, changes);
    this.render();
  }

  /** The first button stays the same element in every state, so that it keeps the focus. */
  buttons() {
    const { operation: { kind }, state, isAsking } = this;
    const isBusy = !['idle', 'open'].includes(state);
    const label = state === 'open' ? 'Send message' : { http: 'Send', stream: 'Start', socket: 'Connect' }[kind];
    const other = isAsking ? 'Keep' : state === 'open' ? 'Close' : isBusy ? { http: 'Cancel' }[kind] ?? 'Stop' : '';
    return html`<button class=${isAsking ? 'danger' : 'primary'} type=${isAsking ? 'button' : 'submit'} aria-disabled=${isBusy}
        @click=${() => isAsking && this.start(true)}>${isAsking ? this.question() : label}</button>
      ${other ? html`<button class="other" type="button" @click=${() => this.stop()}>${other}</button>` : nothing}
      <span class="state" role="status">${isBusy ? `${state}…` : state === 'open' ? 'connected' : ''}</span>`;
  }

  /** What a deletion will delete, for the second click. */
  question() {
    const { operation, values } = this;
    const [of, name] = operation.path.split('/').slice(1);
    const given = operation.parameters.filter((parameter) => values.parameters[parameter.name]);
    if (name) return `Delete ${values.parameters[given[0]?.name]}?`;
    const words = given.map((parameter) => {
      const value = values.parameters[parameter.name];
      return isOpen(parameter) ? value : `${parameter.name}=${value}`;
    });
    return words.length ? `Delete the ${of} with ${words.join(', ')}?` : `Delete all ${of}?`;
  }

  sent() {
    const { operation, shared, values } = this;
    return request(operation, operation.method, operation.path, shared.base, values, shared.key);
  }

  async start(isSure = false) {
    if (this.state === 'open') return this.send();
    if (this.state !== 'idle') return undefined;
    const words = refusal(this.operation, this.values);
    if (words) return this.become('idle', { words });
    this.isAsking = this.operation.method === 'delete' && !isSure;
    if (this.isAsking) {
      this.render();
      // Not the button that deletes: an Enter that is held down would press it.
      return this.element.querySelector('.other').focus();
    }
    if (this.operation.kind === 'socket') return this.connect();
    const { url, ...init } = this.sent();
    const started = performance.now();
    this.abort = new AbortController();
    this.become('waiting', undefined);
    try {
      const answer = await fetch(url, { ...init, signal: this.abort.signal, cache: 'no-store' });
      if (this.operation.kind === 'stream' && answer.ok) return await this.follow(answer);
      const body = await head(answer);
      this.become('idle', { url, ...init, answer, ...body, took: performance.now() - started });
    } catch (error) {
      const isStopped = error.name === 'AbortError';
      this.log?.add('–', isStopped ? 'stopped' : 'the connection broke');
      this.become('idle', this.log ? undefined : { words: isStopped ? 'Cancelled.' : `No answer: ${error.message}.` });
    }
  }

  stop() {
    this.isAsking = false;
    this.abort?.abort();
    this.socket?.close(1000);
    this.render();
  }

  become(state, result) {
    Object.assign(this, { state, result });
    this.render();
  }

  open(state) {
    this.log ??= new Log(this.element.querySelector('ol'));
    this.become(state, undefined);
  }

  async follow(answer) {
    this.open('receiving');
    for await (const { event, data } of eventsOf(answer)) this.log.add(event ?? '↓', data);
    this.log.add('–', 'the server ended the stream');
    this.become('idle', undefined);
  }

  connect() {
    const { url, protocols } = this.sent();
    const socket = new WebSocket(url, protocols);
    this.socket = socket;
    this.open('connecting');
    socket.onopen = () => {
      this.log.add('–', 'connected');
      this.become('open', undefined);
    };
    socket.onmessage = ({ data }) => this.log.add('↓', data);
    socket.onclose = ({ code, reason }) => {
      this.socket = undefined;
      const why = code === 1006 ? 'no connection: the server refused it, or it broke' : `closed with ${code} ${reason}`;
      this.log.add('–', why);
      this.become('idle', undefined);
    };
  }

  send() {
    this.socket.send(this.values.body);
    this.log.add('↑', this.values.body);
  }

  answer({ words, url, method, answer, text, bytes, isWhole, took }) {
    if (words) return html`<p class="answer" role="status">${words}</p>`;
    const { pathname, search } = new URL(url);
    const isJson = /[/+]json/.test(answer.headers.get('content-type') ?? '');
    // Spaces are added only to what can be shown.
    const pretty = isJson ? indent(text.slice(0, SHOWN)) + text.slice(SHOWN) : text;
    const problem = isJson && /"type": ?"[^"]*(#\/problems\/[\w-]+)"/.exec(text)?.[1];
    const isCut = pretty.length > SHOWN || !isWhole;
    const shown = pretty.slice(0, SHOWN);
    const headers = Array.from(answer.headers, (pair) => pair.join(': '));
    return html`<div class="answer" role="status">
      <p><code>${method} ${pathname}${search}</code></p>
      <p><b class=${answer.ok ? 'good' : 'bad'}>${answer.status} ${answer.statusText}</b>
        <span class="soft">${took.toFixed(1)} ms · ${isWhole ? '' : 'more than '}${number(bytes)} bytes</span>
        ${problem ? html`<a href=${problem}>What this problem means</a>` : nothing}</p>
      <details><summary>Headers</summary><pre><code>${headers.join('\n')}</code></pre></details>
      ${text ? html`<pre tabindex="0" aria-label="Body of the answer"><code>${isJson ? json(shown) : shown}</code></pre>` : nothing}
      ${isCut ? html`<p class="soft">Cut: the first ${number(shown.length)} characters are shown.</p>` : nothing}
    </div>`;
  }
}
