/**
 * Requests as they are sent, and as lines for a shell, Python and JavaScript. Pure functions of the document: the page, and
 * the test that runs each line against a server, call the same ones.
 *
 * @typedef {import('./docs-model.js').Node} Node
 * @typedef {{parameters: Record<string, string>, body: string, media: string, accept?: string}} Values What to send.
 */
import { kindOf } from './docs-model.js';

/** Whether a parameter stands for many, as `payload.KEY=` does. Its value is then a piece of the query, `a=1&b=2`. */
export const isOpen = (parameter) => parameter.in === 'query' && parameter.schema?.type === 'object';

const isJson = (media) => /[/+]json$/.test(media);
const quoted = (text) => JSON.stringify(text);
const inShell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
// What is readable in a query without escapes stays readable. In a path a slash would be another step.
const inUrl = (text) => encodeURIComponent(text).replace(/%(?:2C|2F|3A)/g, decodeURIComponent);
const inPath = (text) => encodeURIComponent(text).replaceAll('%3A', ':');
const indented = (text) => text.replaceAll('\n', '\n  ');

/** The examples of a request's body. @param {Node} operation @returns {Node[]} */
export function bodies(operation) {
  return Object.entries(operation.requestBody?.content ?? {}).flatMap(([media, { examples }]) =>
    Object.entries(examples ?? {}).map(([name, { summary, value }]) => {
      return { name, media, summary: summary ?? name, text: isJson(media) ? literal(value) : String(value) };
    }));
}

/** What the document gives as the example of a request. @param {Node} operation @returns {Values} */
export function defaults(operation) {
  const { parameters = {}, body } = operation['x-example'] ?? {};
  const values = {};
  for (const parameter of operation.parameters ?? []) {
    const example = parameter.example ?? Object.values(parameter.examples ?? {})[0]?.value;
    const value = parameters[parameter.name] ?? (parameter.required ? example : undefined);
    if (value !== undefined) values[parameter.name] = isOpen(parameter) ? query(value) : String(value);
  }
  const examples = bodies(operation);
  const example = examples.find(({ name }) => name === body) ?? examples[0];
  const message = operation.messages?.[0];
  const text = message ? literal(message.payload) : (example?.text ?? '');
  return { parameters: values, body: text, media: example?.media ?? '' };
}

/** The value of an open parameter, as a person writes it: `a=1&b=2`, without escapes. */
const query = (value) =>
  typeof value === 'object' ? Object.entries(value).map((pair) => pair.join('=')).join('&') : String(value);

/** The same as a piece of a query: only `&` and the first `=` of each part keep their meaning. */
function escaped(value) {
  return value.split('&').map((part) => {
    const [, name, text = ''] = /^([^=]*)=?([^]*)$/.exec(part);
    return `${inUrl(name)}=${inUrl(text)}`;
  }).join('&');
}

/** Why a request cannot be sent as it is meant; nothing if it can. @param {Node} operation @param {Values} values */
export function refusal(operation, values) {
  for (const parameter of operation.parameters ?? []) {
    const value = values.parameters[parameter.name] ?? '';
    // A URL knows no step of these names, not even with escapes.
    if (parameter.in === 'path' && /^\.\.?$/.test(value)) return `No URL can have ${value} as ${parameter.name}.`;
    const prefix = parameter.name.replace(/[A-Z]+$/, '');
    if (isOpen(parameter) && value && !value.split('&').every((part) => part.startsWith(prefix) && part.includes('='))) {
      return `${parameter.name} is one or several of ${prefix}key=value, separated by &.`;
    }
  }
  return undefined;
}

/**
 * @param {Node} operation @param {string} method @param {string} path
 * @param {string} base The address of the server without a slash at its end, with the prefix if there is one.
 * @param {Values} [values] @param {string} [key] The API key; browsers cannot send it to WebSockets in a header.
 * @returns {{url: string, method: string, headers: Record<string, string>, body?: string, protocols?: string[]}}
 */
export function request(operation, method, path, base, values = defaults(operation), key = '') {
  const kind = kindOf(operation);
  const headers = {};
  const parts = [];
  for (const parameter of operation.parameters ?? []) {
    const { name } = parameter;
    const value = values.parameters[name] ?? '';
    if (value === '') continue;
    if (parameter.in === 'path') path = path.replace(`{${name}}`, () => inPath(value));
    else if (parameter.in === 'header') headers[name] = value;
    else parts.push(isOpen(parameter) ? escaped(value) : `${name}=${inUrl(value)}`);
  }
  if (values.accept) headers.Accept = values.accept;
  if (key && kind !== 'socket') headers['X-API-Key'] = key;
  // A key that cannot be a subprotocol, such as one with a space, is left to the URL.
  const isProtocol = /^[\w!#$%&'*+.^`|~-]+$/.test(key);
  if (key && kind === 'socket' && !isProtocol) parts.push(`api_key=${inUrl(key)}`);
  const hasBody = kind === 'http' && Boolean(operation.requestBody) && values.body !== '';
  if (hasBody) headers['Content-Type'] = values.media;
  const start = kind === 'socket' ? base.replace(/^http/, 'ws') : base;
  const url = start + path + (parts.length ? `?${parts.join('&')}` : '');
  const protocols = kind === 'socket' && isProtocol ? ['event-pipeline', `key.${key}`] : undefined;
  return { url, method: method.toUpperCase(), headers, ...(hasBody && { body: values.body }), ...(protocols && { protocols }) };
}

/**
 * The lines that send a request. The Python is of the standard library, but for WebSockets, which need `websockets`.
 * @param {Node} operation @param {string} method @param {string} path @param {string} base
 * @param {Values} [values] @param {string} [key] As for `request`.
 * @returns {{curl: string, python: string, javascript: string}}
 */
export function snippets(operation, method, path, base, values = defaults(operation), key = '') {
  const kind = kindOf(operation);
  const sent = request(operation, method, path, base, values, key);
  if (kind === 'socket') return ofSocket(operation, sent, values.body);
  if (kind === 'stream') return ofStream(sent);
  const answers = Object.entries(operation.responses ?? {}).find(([status]) => status.startsWith('2'))?.[1].content ?? {};
  const media = values.accept || Object.keys(answers)[0];
  const read = !media ? 'none' : isJson(media) ? 'json' : 'text';
  return { curl: curl(sent), python: python(sent, read), javascript: javascript(sent, read) };
}

const curl = ({ url, method, headers, body }, flags = '') =>
  [
    `curl ${flags}${method === 'DELETE' ? '-X DELETE ' : ''}${inShell(url)}`,
    ...Object.entries(headers).map(([name, value]) => `-H ${inShell(`${name}: ${value}`)}`),
    ...(body === undefined ? [] : [`${isJson(headers['Content-Type']) ? '-d' : '--data-binary'} ${inShell(body)}`]),
  ].join(' \\\n  ');

function python({ url, method, headers, body }, read) {
  const value = parsed(body, headers['Content-Type']);
  const isPlain = method === 'GET' && Object.keys(headers).length === 0;
  const given = [
    quoted(url),
    value !== undefined && `data=json.dumps(${indented(literal(value, PYTHON))}).encode()`,
    value === undefined && body !== undefined && `data=${quoted(body)}.encode()`,
    Object.keys(headers).length > 0 && `headers=${literal(headers)}`,
    method !== 'GET' && `method=${quoted(method)}`,
  ].filter(Boolean);
  const what = { json: 'answer.status, json.load(answer)', text: 'answer.read().decode()', none: 'answer.status' };
  return [
    ...(value !== undefined || read === 'json' ? ['import json'] : []),
    `from urllib.request import ${isPlain ? '' : 'Request, '}urlopen`,
    '',
    ...(isPlain ? [] : ['request = Request(', ...given.map((line) => `  ${line},`), ')']),
    `with urlopen(${isPlain ? quoted(url) : 'request'}) as answer:`,
    `  print(${what[read]})`,
  ].join('\n').replace(INDENTS, '$&$&');
}

function javascript({ url, method, headers, body }, read) {
  const value = parsed(body, headers['Content-Type']);
  const given = [
    method !== 'GET' && `method: ${quoted(method)}`,
    Object.keys(headers).length > 0 && `headers: ${literal(headers)}`,
    value !== undefined && `body: JSON.stringify(${indented(literal(value))})`,
    value === undefined && body !== undefined && `body: ${quoted(body)}`,
  ].filter(Boolean);
  const options = given.length ? `, {\n${given.map((line) => `  ${line},\n`).join('')}}` : '';
  const what = { json: ', await answer.json()', text: ', await answer.text()', none: '' };
  return `const answer = await fetch(${quoted(url)}${options});\nconsole.log(answer.status${what[read]});`;
}

/** An `EventSource` sends no headers of a page: for it they are parameters, as far as there are such. */
function ofStream(sent) {
  const { url, headers } = sent;
  const print = '  for line in stream:\n    print(line.decode().rstrip())';
  const log = 'stream.onmessage = (message) => console.log(message.lastEventId, message.data);';
  const given = Object.keys(headers).length > 0;
  const request = given ? `Request(${quoted(url)}, headers=${literal(headers)})` : quoted(url);
  const asked = new URL(url);
  if (headers['Last-Event-ID']) asked.searchParams.set('after', headers['Last-Event-ID']);
  if (headers['X-API-Key']) asked.searchParams.set('api_key', headers['X-API-Key']);
  return {
    curl: curl(sent, '-N '),
    python: `from urllib.request import ${given ? 'Request, ' : ''}urlopen\n\nwith urlopen(${request}) as stream:\n${print}`
      .replace(INDENTS, '$&$&'),
    javascript: `const stream = new EventSource(${quoted(given ? asked.href : url)});\n${log}`,
  };
}

/** Debian's curl sends no WebSocket messages, so its line shows only whether the handshake succeeds. */
function ofSocket(operation, { url, protocols = [] }, body) {
  const value = parsed(body, 'application/json');
  const handshake = {
    Connection: 'Upgrade',
    Upgrade: 'websocket',
    'Sec-WebSocket-Version': '13',
    'Sec-WebSocket-Key': 'dGhlIHNhbXBsZSBub25jZQ==',
    ...(protocols.length > 0 && { 'Sec-WebSocket-Protocol': protocols.join(', ') }),
  };
  const text = value === undefined ? quoted(body) : `json.dumps(${literal(value, PYTHON)})`;
  const read = operation.channel?.goesOn ? '  for message in socket:\n    print(message)' : '  print(socket.recv())';
  const offered = protocols.length > 0 ? `, subprotocols=${literal(protocols, PYTHON)}` : '';
  const socket = `with connect(${quoted(url)}${offered}) as socket:\n  socket.send(${indented(text)})\n${read}`;
  return {
    curl: curl({ url: url.replace(/^ws/, 'http'), method: 'GET', headers: handshake }, '-i -N --max-time 2 '),
    python: `import json\nfrom websockets.sync.client import connect\n\n${socket}`.replace(INDENTS, '$&$&'),
    javascript: [
      `const socket = new WebSocket(${quoted(url)}${protocols.length > 0 ? `, ${literal(protocols)}` : ''});`,
      `socket.onopen = () => socket.send(${value === undefined ? quoted(body) : `JSON.stringify(${literal(value)})`});`,
      'socket.onmessage = (message) => console.log(message.data);',
    ].join('\n'),
  };
}

/**
 * The value of a JSON body; nothing if the text is none, or says more than a value can hold, such as more digits, the order of
 * keys that are numbers, or a key twice. It is then sent as the text that it is.
 */
function parsed(body, media) {
  try {
    const value = body !== undefined && isJson(media) ? JSON.parse(body) : undefined;
    const isWhole = JSON.stringify(value) === body?.replace(/("(?:[^"\\]|\\.)*")|\s+/g, '$1');
    return isWhole && !body.includes('__proto__') ? value : undefined;
  } catch {
    return undefined;
  }
}

/** Python is indented by four spaces, the rest by two. No line within a string begins here: its break is escaped. */
const INDENTS = /^ +/gm;
const PYTHON = { true: 'True', false: 'False', null: 'None' };
/** The longest object that stays on one line. */
const LINE = 64;

/**
 * A JSON value as JavaScript and JSON write it, or with other words for `true`, `false` and `null`.
 * @param {unknown} value @param {Record<string, string>} [words] @returns {string}
 */
export function literal(value, words = {}) {
  if (typeof value === 'string') return quoted(value);
  if (!value || typeof value !== 'object') return words[value] ?? quoted(value);
  const isList = Array.isArray(value);
  const items = isList
    ? value.map((item) => literal(item, words))
    : Object.entries(value).map(([key, item]) => `${quoted(key)}: ${literal(item, words)}`);
  const [open, close] = isList ? '[]' : '{}';
  const line = items.join(', ');
  if (line.length <= LINE && !line.includes('\n')) return open + line + close;
  return `${open}\n  ${items.map(indented).join(',\n  ')}\n${close}`;
}
