/** Text of the documents as templates: their little Markdown, and JSON. It never becomes HTML. */
import { html, render } from './lit-html.js';

const INLINE = /`([^`]+)`|\*\*([^*]+)\*\*|\[([^\]]+)\]\(([^()\s]+)\)/;
const TOKEN = /("(?:[^"\\]|\\.)*")(\s*:)?|-?\d[\d.eE+-]*|\b(?:true|false|null)\b/g;

/** A whole number with commas. `Intl` would take 20 ms, a tenth of the time until the page is there. @param {number} value */
export const number = (value) => String(value).replace(/\B(?=(\d{3})+$)/g, ',');

/** Asks the parser that the browser itself uses, because `java\tscript:` is a scheme for it and not for a pattern. */
const isLink = (href) => URL.canParse(href, document.baseURI) && /^https?:$/.test(new URL(href, document.baseURI).protocol);

/** A line of Markdown: `code`, **strong** and [links](…). @param {string} [text] */
export function inline(text = '') {
  const match = INLINE.exec(text);
  if (!match) return text;
  const [whole, code, strong, label, href] = match;
  const rest = inline(text.slice(match.index + whole.length));
  const part = code ? html`<code>${code}</code>`
    : strong ? html`<strong>${inline(strong)}</strong>`
    : isLink(href) ? html`<a href=${href}>${inline(label)}</a>` : whole;
  return [text.slice(0, match.index), part, rest];
}

/** Paragraphs, lists and fenced code. @param {string} [text] */
export function markdown(text = '') {
  // A fence may hold empty lines, so every second piece is one.
  return text.split(/^```.*\n?/m).map((piece, index) => index % 2 === 1
    ? html`<pre><code>${piece.trimEnd()}</code></pre>`
    : piece.split(/\n\s*\n/).filter((block) => block.trim()).map((block) => {
      const [lead, ...items] = `\n${block}`.split(/\n\s*[-*] /);
      return html`${lead.trim() ? html`<p>${inline(lead.trim())}</p>` : ''}
        ${items.length ? html`<ul>${items.map((item) => html`<li>${inline(item)}</li>`)}</ul>` : ''}`;
    }));
}

/**
 * A part that is made when it is opened: most elements of the page would be in parts that nobody opens.
 * @param {unknown} summary @param {() => unknown} content @param {string} [name] Its class.
 */
export const folded = (summary, content, name = '') => {
  const show = ({ target }) => target.open && render(content(), target.lastElementChild);
  return html`<details class=${name} @toggle=${show}><summary>${summary}</summary><div></div></details>`;
};

/** JSON with its kinds of tokens marked. @param {string} text */
export function json(text) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(TOKEN)) {
    const [whole, string, colon] = match;
    const kind = colon ? 'key' : string ? 'string' : 'value';
    parts.push(text.slice(end, match.index), html`<span class=${kind}>${string ?? whole}</span>`, colon ?? '');
    end = match.index + whole.length;
  }
  return [...parts, text.slice(end)];
}

/** Indents JSON without parsing it, so that numbers and escapes stay as they were sent. @param {string} text */
export function indent(text) {
  const out = [];
  let depth = 0;
  let last = '';
  const line = () => out.push(`\n${'  '.repeat(depth)}`);
  for (const [token] of text.matchAll(/"(?:[^"\\]|\\.)*"?|[{}[\],:]|[^\s"{}[\],:]+/g)) {
    const closes = token === '}' || token === ']';
    if (closes) depth = Math.max(0, depth - 1);
    if (last && (closes ? !'{['.includes(last) : '{[,'.includes(last))) line();
    out.push(token === ':' ? ': ' : token);
    if (token === '{' || token === '[') depth += 1;
    last = token;
  }
  return out.join('');
}
