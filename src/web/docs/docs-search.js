/** Search over everything that has an address. Pure functions: `docs.js` shows what they find. */

/**
 * @param {import('./docs-model.js').Node} model
 * @returns {{kind: string, title: string, note: string, href: string, text: string}[]}
 */
export function index(model) {
  const entry = (kind, title, note, href, text = '') =>
    ({ kind, title, note, href, text: `${title} ${note} ${text}`.toLowerCase() });
  const names = (schema) => {
    const { properties = {}, ...rest } = model.deref(schema);
    return [...Object.keys(properties), ...(rest.oneOf ?? rest.anyOf ?? rest.allOf ?? []).map(names)].join(' ');
  };
  const line = ({ method, path }) => `${method.toUpperCase()} ${path}`;
  return [
    ...model.operations.map((it) =>
      entry('operation', it.summary, line(it), `#/operations/${it.id}`, `${it.id} ${it.description}`)),
    ...model.channels.map((it) => entry('channel', it.title, it.address, `#/channels/${it.name}`, it.description)),
    ...model.messages.map((it) => {
      const text = `${it.$name} ${it.description} ${names(it.payload)}`;
      return entry('message', it.title, it.summary ?? '', `#/messages/${it.$name}`, text);
    }),
    ...model.schemas.map((it) =>
      entry('schema', it.$name, it.title ?? '', `#/schemas/${it.$name}`, `${it.description} ${names(it)}`)),
    ...model.problems.map((it) => {
      const text = `${it.slug} ${it.detail} ${it.cause} ${it.remedy}`;
      return entry('problem', it.slug.replaceAll('-', ' '), `${it.status} ${it.title}`, `#/problems/${it.slug}`, text);
    }),
    ...model.operations.flatMap((it) => it.parameters.map(({ name, description }) =>
      entry('parameter', name, line(it), `#/operations/${it.id}`, description))),
  ];
}

/**
 * The entries that hold every word, those first that have the first word at the beginning of their title.
 * @param {ReturnType<typeof index>} entries @param {string} query
 */
export function find(entries, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return [];
  const rank = ({ title, note }) => {
    const at = title.toLowerCase().indexOf(words[0]);
    return at === 0 ? 0 : at > 0 ? 1 : note.toLowerCase().includes(words[0]) ? 2 : 3;
  };
  return entries
    .filter(({ text }) => words.every((word) => text.includes(word)))
    .map((entry) => ({ entry, rank: rank(entry) }))
    .sort((a, b) => a.rank - b.rank)
    .slice(0, 30)
    .map(({ entry }) => entry);
}
