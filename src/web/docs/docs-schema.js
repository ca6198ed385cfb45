/** Schemas, as a list of fields with what each of them may hold. */
import { html, nothing } from './lit-html.js';
import { folded, inline, markdown, number } from './docs-text.js';

const shown = (value) => html`<code>${typeof value === 'string' ? value : JSON.stringify(value)}</code>`;
const list = (values) => values.map((value, index) => [index ? ', ' : '', shown(value)]);

/** The words for two limits. */
function range(schema, least, most, unit) {
  const [from, to] = [schema[least], schema[most]];
  if (from === undefined && to === undefined) return undefined;
  if (to === undefined) return `≥ ${number(from)}${unit}`;
  return (from === undefined ? `≤ ${number(to)}` : `${number(from)}–${number(to)}`) + unit;
}

/**
 * @param {(node: any) => any} deref Follows references.
 * @returns {{type: Function, fields: Function, field: Function}} Templates of a schema: its type in a few words; its type,
 *   limits and properties; a row with a name.
 */
export function schemaViews(deref) {
  const alternatives = (schema) => schema.oneOf ?? schema.anyOf;

  function type(node) {
    const schema = deref(node);
    if (schema.$name && node.$ref) return html`<a href="#/schemas/${schema.$name}">${schema.$name}</a>`;
    const of = alternatives(schema);
    if (of) return of.map((one, index) => [index ? ' or ' : '', type(one)]);
    if (schema.allOf) return schema.allOf.map((one, index) => [index ? ' and ' : '', type(one)]);
    if (schema.items) return html`array of ${type(schema.items)}`;
    return [schema.type ?? (schema.properties ? 'object' : schema.enum ? 'string' : 'any')].flat().join(' or ');
  }

  /** What a value must fulfil beside its type. */
  function limits(schema) {
    const limit = (key, words) => schema[key] !== undefined && [words, shown(schema[key])];
    const items = [
      limit('const', 'always '),
      schema.enum && ['one of ', list(schema.enum)],
      range(schema, 'minimum', 'maximum', ''),
      range(schema, 'minLength', 'maxLength', ' characters'),
      range(schema, 'minItems', 'maxItems', ' items'),
      range(schema, 'minProperties', 'maxProperties', ' keys'),
      limit('exclusiveMinimum', 'more than '),
      limit('exclusiveMaximum', 'less than '),
      schema.contentSchema && ['holds ', type(schema.contentSchema)],
      schema.format,
      limit('pattern', 'matches '),
      limit('default', 'default '),
      schema.examples?.length > 0 && ['for example ', list(schema.examples.slice(0, 3))],
    ].filter(Boolean);
    return items.length ? html`<ul class="limits">${items.map((item) => html`<li>${item}</li>`)}</ul>` : nothing;
  }

  /** The properties and alternatives within a schema. `above` holds the schemas around it, so that a circle ends. */
  function inner(node, above) {
    const schema = deref(node);
    if (schema.$name && above.includes(schema.$name)) return nothing;
    const path = schema.$name ? [...above, schema.$name] : above;
    const properties = Object.entries(schema.properties ?? {});
    const extra = schema.additionalProperties;
    const parts = [...(schema.allOf ?? []), ...(alternatives(schema) ?? []), ...(schema.items ? [schema.items] : [])];
    return html`${properties.length || (extra && extra !== true)
      ? html`<dl class="fields">
          ${properties.map(([name, property]) => field(name, property, schema.required?.includes(name), path))}
          ${extra && extra !== true ? field('any other key', extra, false, path) : nothing}
        </dl>` : nothing}
      ${parts.map((part) => inner(part, path))}`;
  }

  function field(name, node, isRequired, above = [], note = '') {
    const schema = deref(node);
    const hasMore = (at) => [at, at.items, ...(alternatives(at) ?? []), ...(at.allOf ?? [])]
      .some((one) => one && (deref(one).properties || deref(deref(one).items).properties));
    const isFolded = hasMore(schema) && !above.includes(schema.$name);
    return html`<div>
      <dt><code>${name}</code> <span class="type">${type(node)}</span>
        ${isRequired ? html`<span class="required">required</span>` : nothing}
        ${note ? html`<span class="soft">${note}</span>` : nothing}</dt>
      <dd>${markdown(schema.description)}${limits(schema)}
        ${isFolded ? folded(html`Fields of <code>${name}</code>`, () => inner(node, above)) : nothing}</dd>
    </div>`;
  }

  function fields(node, above = []) {
    const schema = deref(node);
    return html`<p class="type">${type(node)}</p>
      ${node.$ref ? nothing : html`${schema.title ? html`<p>${inline(schema.title)}</p>` : nothing}${markdown(schema.description)}`}
      ${limits(schema)}${inner(node, above)}`;
  }

  return { type, fields, field };
}
