/**
 * What the page shows, made from the two documents. Nothing here needs a browser, so that a test can run it in node.
 *
 * @typedef {Record<string, any>} Node A part of a document, or what was made from one.
 */

const METHODS = ['get', 'post', 'put', 'patch', 'delete'];

/** The same object with another value under each key. */
const mapped = (object, change) =>
  Object.fromEntries(Object.entries(object ?? {}).map(([key, value]) => [key, change(value, key)]));

/** A copy in which every `$ref` names its document, because parts of both documents come together. */
function anchored(node, document) {
  if (Array.isArray(node)) return node.map((item) => anchored(item, document));
  if (!node || typeof node !== 'object') return node;
  return mapped(node, (value, key) =>
    key === '$ref' && typeof value === 'string' && value[0] === '#' ? document + value : anchored(value, document));
}

/**
 * @param {Node} [openapi] @param {Node} [asyncapi] Either may be missing, when it could not be loaded.
 * @returns {Node} `info`, `groups` of operations, `operations`, `channels`, `messages`, `schemas`, `problems`, `security`,
 *   and `deref`, which follows the `$ref` of a node. An operation has the shape of OpenAPI with its references resolved, and
 *   beside it `id`, `method`, `path`, `kind`, `needsKey`, `channel`, and `messages`: the examples that a client can send.
 */
export function model(openapi = {}, asyncapi = {}) {
  const documents = mapped({ 'openapi.json': openapi, 'asyncapi.json': asyncapi }, anchored);
  const { 'openapi.json': open, 'asyncapi.json': async } = documents;

  function deref(node) {
    // A limit, so that references in a circle end.
    for (let hops = 0; node?.$ref && hops < 9; hops += 1) {
      const { $ref, ...beside } = node;
      const [document, pointer = ''] = $ref.split('#');
      const steps = pointer.split('/').slice(1);
      const names = steps.map((step) => decodeURIComponent(step).replaceAll('~1', '/').replaceAll('~0', '~'));
      node = { ...names.reduce((at, name) => at?.[name], documents[document]), ...beside, $name: names.at(-1) };
    }
    return node ?? {};
  }

  const messageNames = (refs) => [...new Set((refs ?? []).map((ref) => deref(ref).$name))];
  const channels = Object.entries(async.channels ?? {}).map(([name, channel]) => {
    const operations = Object.values(async.operations ?? {}).filter(({ channel }) => channel.$ref.endsWith(`/${name}`));
    const of = (action) => operations.filter((operation) => operation.action === action);
    const sent = (action) => of(action).flatMap((it) => it.messages ?? Object.values(channel.messages ?? {}));
    const answered = (action) => of(action).flatMap((it) => it.reply?.messages ?? []);
    const isSocket = channel.address?.startsWith('/ws/');
    return {
      title: name,
      ...channel,
      name,
      // The document is written from the server's side: what it receives, a client sends.
      client: messageNames([...sent('receive'), ...answered('send')]),
      server: messageNames([...answered('receive'), ...sent('send')]),
      goesOn: of('send').length > 0,
      closeCodes: channel['x-close-codes'] ?? (isSocket && async['x-close-codes']) ?? [],
    };
  });
  const messages = Object.entries(async.components?.messages ?? {}).map(([name, message]) => {
    const on = channels.filter((channel) => [...channel.client, ...channel.server].includes(name));
    return { title: name, ...deref(message), $name: name, channels: on };
  });

  const content = (of) => ({ ...of, content: mapped(of.content, (media) => media) });
  const operations = Object.entries(open.paths ?? {}).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]).map((method) => {
      const operation = item[method];
      const channel = channels.find(({ address }) => address === path);
      const sendable = messages.filter(({ $name }) => channel?.client.includes($name));
      const examples = sendable.flatMap((message) =>
        (message.examples ?? []).map((example) => ({ title: message.title, ...example })));
      const first = channel?.['x-example'];
      const resolved = {
        ...operation,
        id: operation.operationId ?? `${method} ${path}`,
        summary: operation.summary ?? `${method.toUpperCase()} ${path}`,
        method,
        path,
        channel,
        parameters: [...(item.parameters ?? []), ...(operation.parameters ?? [])].map(deref),
        requestBody: operation.requestBody && content(deref(operation.requestBody)),
        responses: mapped(operation.responses, (response) => {
          const { headers, ...rest } = deref(response);
          return { ...content(rest), headers: mapped(headers, deref) };
        }),
        messages: examples.sort((a, b) => (b.name === first) - (a.name === first)),
        needsKey: (operation.security ?? open.security ?? []).some((one) => Object.keys(one).length > 0),
      };
      return { ...resolved, kind: kindOf(resolved) };
    }));

  const named = [...(open.tags ?? []), ...operations.map(({ tags }) => ({ name: tags?.[0] ?? 'Other' }))];
  const groups = [...new Map(named.reverse().map((tag) => [tag.name, tag])).values()].reverse();
  const { schemas: first = {} } = open.components ?? {};
  // A schema that both documents have is there once, in the place and the words of OpenAPI.
  const schemas = { ...first, ...async.components?.schemas, ...first };
  return {
    info: { title: 'Event pipeline', ...(open.info ?? async.info) },
    groups: groups
      .map((tag) => ({ ...tag, operations: operations.filter(({ tags }) => (tags?.[0] ?? 'Other') === tag.name) }))
      .filter((group) => group.operations.length > 0),
    operations,
    channels,
    messages,
    schemas: Object.entries(schemas).map(([name, schema]) => ({ ...schema, $name: name })),
    problems: open['x-problem-types'] ?? [],
    security: Object.values(open.components?.securitySchemes ?? {}),
    deref,
  };
}

/**
 * How an operation is talked to.
 * @param {Node} operation @returns {'http' | 'stream' | 'socket'}
 */
export function kindOf(operation) {
  if (operation.responses?.[101]) return 'socket';
  return operation.responses?.[200]?.content?.['text/event-stream'] ? 'stream' : 'http';
}
