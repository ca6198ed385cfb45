"use strict";
// Draws the runs that the page carries. Everything is put together from elements and text, never from markup.

const { sections, judgements, changes } = JSON.parse(document.getElementById("runs").textContent);

/** Drawings count to this, whatever their size on the screen. */
const SIZE = 1000;
/** With more threads than these, the cheapest are drawn as one. More colours than these cannot be told apart. */
const THREADS = 6, COLOURS = 8;
/** Labels beside a plot that are nearer to each other than this part of its height cannot be read. */
const GAP = 0.08;
const UNITS = { acknowledgement: "events", delivery: "deliveries", query: "queries", connection: "connections" };
const COUNT = ["", "k", "M", "G"], BYTES = [" B", " kB", " MB", " GB", " TB"], MICROS = [" µs", " ms", " s"];

function el(name, attributes = {}, ...children) {
  const isDrawn = ["svg", "path", "rect", "title"].includes(name);
  const made = isDrawn ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  const { style = {}, ...others } = attributes;
  for (const [key, value] of Object.entries(style)) made.style.setProperty(key, value);
  for (const [key, value] of Object.entries(others)) made.setAttribute(key, value);
  made.append(...children.flat(Infinity).filter(child => child || child === 0));
  return made;
}

const unique = items => [...new Set(items)].filter(Boolean);
const capital = text => text[0].toUpperCase() + text.slice(1);
const sum = values => values.reduce((one, other) => one + other, 0);
const greatest = values => values.reduce((one, other) => Math.max(one, other), 0);
const each = (tag, texts, attributes) => texts.map(text => el(tag, attributes, text));
const unitOf = of => of === "acknowledgement" ? "event" : of;

/** To three digits, or to the last before the point, with commas between thousands. */
function written(value) {
  const size = Math.abs(value);
  if (size === 0 || size >= 99.95) return value.toFixed(0).replace(/\B(?=(\d{3})+$)/g, ",");
  return value.toFixed(Math.min(8, 2 - Math.floor(Math.log10(size))));
}

/** As short as possible; each unit is a thousand of the one before. */
function short(value, units = [""]) {
  const power = value > 0 ? Math.floor(Math.log10(value) / 3 + 1e-9) : 0;
  const unit = Math.min(Math.max(power, 0), units.length - 1);
  return Number((value / 1000 ** unit).toPrecision(3)) + units[unit];
}

// Axes: where a value stands, from 0 to 1, and the labels.

/** The next of 1, 2 or 5 times a power of ten. */
function round(value, up) {
  const steps = [1, 2, 5, 10].map(step => step * 10 ** Math.floor(Math.log10(value) + 1e-9));
  return up ? steps.find(step => step >= value * (1 - 1e-9)) : steps.findLast(step => step <= value * (1 + 1e-9));
}

function linear(most, label, isCut) {
  const end = most > 1e-9 ? most : 1, step = round(end / 6, true);
  const high = isCut ? end : Math.ceil(end / step - 1e-9) * step;
  const count = Math.floor(high / step + 1e-9) + 1;
  return { place: value => value / high, ticks: Array.from({ length: count }, (_, i) => [i * step / high, label(i * step)]) };
}

function time(seconds) {
  const [size, unit] = seconds <= 120 ? [1, "s"] : seconds <= 7200 ? [60, "min"] : [3600, "h"];
  const { place, ticks } = linear(seconds / size, value => `${short(value)} ${unit}`, true);
  return { place: at => place(at / size), ticks };
}

function logarithmic(values, units) {
  const positive = values.filter(value => value > 0).sort((one, other) => one - other);
  const low = round(positive[0] ?? 1, false), high = round(Math.max(positive.at(-1) ?? 1, low * 1.5), true);
  const first = Math.floor(Math.log10(low) + 1e-9), last = Math.ceil(Math.log10(high) - 1e-9);
  const decades = Array.from({ length: last - first + 1 }, (_, i) => 10 ** (first + i));
  const ticks = (steps, every = 1) => decades.filter((_, i) => i % every === 0)
    .flatMap(decade => steps.map(step => step * decade))
    .filter(value => value > low * (1 - 1e-9) && value < high * (1 + 1e-9));
  const choices = [[1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 8], [1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 5], [1]];
  const dense = choices.map(steps => ticks(steps)).find(found => found.length <= 9);
  const place = value => Math.max(0, Math.log(value / low) / Math.log(high / low));
  const labelled = dense ?? ticks([1], Math.ceil(decades.length / 9));
  return { place, ticks: labelled.map(value => [place(value), short(value, units)]) };
}

/** Percentiles: 90, 99 and 99.9 are equally far apart. The greatest of n values stands where one in n lies above. */
function nines(count) {
  const high = Math.log10(Math.max(count, 10));
  const place = percentile => Math.min((2 - Math.log10(100 - percentile)) / high, 1);
  const labels = Array.from({ length: Math.floor(high + 1e-9) }, (_, i) => ["90", "99"][i] ?? `99.${"9".repeat(i - 1)}`);
  const ticks = [[0, "0"], [place(50), "50"], ...labels.map((label, i) => [(i + 1) / high, label])];
  return { place, ticks: high > 5 ? ticks.filter((_, i) => i !== 1 && (i < 4 || i % 2 === 0)) : ticks };
}

// Drawings are stretched to the width of the page; their text keeps its size.

const look = number => ({ "--c": `var(--c${number % COLOURS})`, "--d": ["none", "7 4", "2 4"][Math.floor(number / COLOURS) % 3] });
const key = (number, isShown) => isShown && el("b", { class: "key", style: look(number) }, number + 1);
const path = (kind, d, style = {}, ...children) => el("path", { class: kind, d, style }, children);
const figure = (title, kind, ...parts) => el("figure", { class: kind }, el("figcaption", {}, title), parts);
const drawing = (height, label, ...parts) =>
  el("svg", { viewBox: `0 0 ${SIZE} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label }, parts);

/** Lines, each with its points, null where it is broken. Those of a median run stand in front of its repetitions. */
function plot(title, x, y, lines, isKeyed) {
  const at = ([a, b]) => `${(x.place(a) * SIZE).toFixed(1)} ${((1 - y.place(b)) * SIZE).toFixed(1)}`;
  // A point without neighbours is a dot.
  const drawn = points => points.map((point, i) => point && (points[i - 1] ? `L${at(point)}` : `M${at(point)}h0`)).join("");
  const grid = [...y.ticks.map(([to]) => `M0 ${(1 - to) * SIZE}h${SIZE}`), ...x.ticks.map(([to]) => `M${to * SIZE} 0v${SIZE}`)];
  const shown = lines.filter(line => line.points.some(Boolean)).sort((one, other) => other.isFaint - one.isFaint);
  const ends = shown.filter(line => !line.isFaint && (isKeyed || line.label))
    .map(line => ({ line, to: y.place(line.points.findLast(Boolean)[1]) })).sort((one, other) => one.to - other.to);
  ends.forEach((end, i) => { end.to = Math.max(end.to, i > 0 ? ends[i - 1].to + GAP : 0); });
  ends.reverse().forEach((end, i) => { end.to = Math.min(end.to, i > 0 ? ends[i - 1].to - GAP : 1); });
  const label = (kind, side, to, text, style) => el("span", { class: kind, style: { [side]: `${to * 100}%`, ...style } }, text);
  return figure(title, "plot", el("div", { class: "field" },
    drawing(SIZE, title, path("grid", grid.join("")), shown.map(line => [
      path(line.isFaint ? "line faint" : "line", drawn(line.points), look(line.look)),
      line.marks?.map(mark => path("mark", `M${at(mark)}h0`, look(line.look), el("title", {}, mark[2]))),
    ])),
    y.ticks.map(([to, text]) => label("y", "bottom", to, text)),
    x.ticks.map(([to, text]) => label("x", "left", to, text)),
    ends.map(({ line, to }) => label("end", "bottom", to, line.label ?? key(line.look, true), look(line.look)))));
}

/** Bars of parts, with whiskers from the least to the most of several runs. */
function bars(title, rows) {
  const scale = SIZE / (greatest(rows.map(({ parts, most }) => Math.max(sum(parts.map(part => part.length)), most))) || 1);
  return figure(title, "bars", rows.map(({ number, label, value, parts, least, most }) => {
    let end = 0;
    const rects = parts.map(({ length, look: of }) =>
      el("rect", { x: (end += length) * scale - length * scale, width: length * scale, height: 10, style: look(of) }));
    return el("div", { class: "bar" },
      el("p", {}, el("span", {}, key(number, rows.length > 1), label), el("b", {}, value)),
      drawing(10, `${label}: ${value}`, rects,
        least < most && path("whisker", `M${least * scale} 2v6m0-3H${most * scale}m0-3v6`)),
      el("p", { class: "parts" }, parts.filter(part => part.name)
        .map(part => el("span", {}, el("i", { style: look(part.look) }), part.name))));
  }));
}

// A section is everything that was measured with one scenario; a series is a column of it with its runs.

const latencies = run => [run.latency_us, ...run.more_latencies_us ?? []].filter(latency => latency.count > 0);
const verdict = run => run.violations.length > 0 ? "violation" : run.verdict ?? "verified";
const metric = (one, of, name) => one.figures.find(found => found.of === of && found.name === name);

function prepare(section) {
  const of = section.reports[0][0].latency_us.of;
  const rate = run => (run[UNITS[of]] ?? run.events).per_second;
  const series = section.columns.map((column, number) => {
    const runs = section.reports[number], sorted = [...runs].sort((one, other) => rate(one) - rate(other));
    const { title, label, commit } = runs[0];
    const facets = unique([column.subject, ...title.split(", "), label, commit && `load test ${commit}`, column.file]);
    return { ...column, number, runs, median: sorted[(runs.length - 1) >> 1], facets };
  });
  // What all have in common stands once, above. What distinguishes a series is its label.
  const shared = series[0].facets.filter(facet => series.every(one => one.facets.includes(facet)));
  for (const one of series) one.label = one.facets.filter(facet => !shared.includes(facet)).join(" · ");
  const isClear = unique(series.map(one => one.label)).length === series.length;
  const told = one => isClear ? [] : one.options.map(option => option.join(" "));
  for (const one of series) one.label = unique([one.label, ...told(one)]).join(" · ");
  if (series.length === 1) series[0].label = shared.shift();
  return { ...section, series, shared, of, all: series.flatMap(one => one.runs) };
}

const lines = ({ series }, points) => series.flatMap(one =>
  one.runs.map(run => ({ one, run, look: one.number, isFaint: run !== one.median, points: points(run) })));
const heights = all => all.flatMap(line => line.points).filter(Boolean).map(point => point[1]);

function percentiles(section, of) {
  const curve = run => {
    const latency = latencies(run).find(found => found.of === of);
    if (!latency) return { points: [], marks: [] };
    // The greatest latency has the percentile above which only one lies.
    const { p50, p90, p99, p99_9, max, count } = latency, last = 100 * (1 - 1 / count);
    const named = [[50, p50, "p50"], [90, p90, "p90"], [99, p99, "p99"], [99.9, p99_9, "p99.9"]].filter(([at]) => at < last);
    const marks = [...named, [last, max, "max"]];
    return { marks, points: [...latency.percentiles.filter(([at]) => at < last), ...marks].sort((a, b) => a[0] - b[0]) };
  };
  const curves = lines(section, run => curve(run).points);
  for (const line of curves.filter(found => !found.isFaint)) {
    line.marks = curve(line.run).marks.map(([at, us, name]) => [at, us, `${name} of ${line.one.label}: ${short(us, MICROS)}`]);
  }
  const count = greatest(section.all.flatMap(latencies).filter(latency => latency.of === of).map(latency => latency.count));
  const y = logarithmic(heights(curves), MICROS);
  return plot(`${capital(of)} latency by percentile`, nines(count), y, curves, section.series.length > 1);
}

function overTime(section) {
  const isKeyed = section.series.length > 1;
  const timeline = value => lines(section, run => run.timeline.map((point, i) => {
    // The values of an interval are drawn at its middle.
    const found = value(point) ?? null, begin = i > 0 ? run.timeline[i - 1].at : 0;
    return found === null ? null : [(begin + point.at) / 2, found];
  }));
  const x = time(greatest(section.all.flatMap(run => run.timeline).map(point => point.at)));
  const draw = (title, found, axis) => {
    const values = heights(found);
    return values.length > 0 && plot(`${title}, over time`, x, axis(values), found, isKeyed);
  };
  const fromZero = units => values => linear(greatest(values), value => short(value, units));
  // An interval in which nothing ended has no latency. All latencies have the same axis, to be compared.
  const named = ["p50", "p99", "max"].map(name => [name, timeline(point => point[`${name}_us`] || null)]);
  const all = named.flatMap(([name, found], look) => isKeyed ? found : found.map(line => ({ ...line, look, label: name })));
  const micros = () => logarithmic(heights(all), MICROS), latency = `${capital(section.of)} latency`;
  return [
    draw(`${capital(UNITS[section.of])} per second`, timeline(point => point.per_second), fromZero(COUNT)),
    isKeyed ? named.map(([name, found]) => draw(`${latency} ${name}`, found, micros)) : draw(latency, all, micros),
    draw("Processors used by the server", timeline(point => point.server_processors), fromZero(COUNT)),
    draw("Memory held by the server", timeline(point => point.server_memory_bytes), fromZero(BYTES)),
  ];
}

/** A bar for each series that has this metric. */
function compared(title, { series }, of, name, unit, parts) {
  const rows = series.filter(one => metric(one, of, name)).map(one => {
    const { least, median, most } = metric(one, of, name);
    return { ...one, least, most, value: written(median) + unit, parts: parts(one, median) };
  });
  return rows.length > 0 && bars(title, rows);
}

function serverCpu(section) {
  const seen = section.series.map(one => one.median.server?.cpu_us_each_by_thread).filter(Boolean);
  const total = name => sum(seen.map(threads => threads[name] ?? 0));
  const names = unique(seen.flatMap(Object.keys)).sort((one, other) => total(other) - total(one));
  const title = `Server CPU per ${unitOf(section.of)}, by thread`;
  return compared(title, section, "server", "CPU", " µs", (one, median) => {
    const threads = one.median.server.cpu_us_each_by_thread, us = name => threads[name] ?? 0;
    const parts = [...names.slice(0, THREADS).map(name => [name, us(name)]), ["others", sum(names.slice(THREADS).map(us))]];
    // With as many digits as the sum: its digits mean something.
    const digits = (written(median).split(".")[1] ?? "").length;
    return parts.map(([name, length], i) =>
      ({ length, look: i, name: Number(length.toFixed(digits)) > 0 && `${name} ${length.toFixed(digits)}` }));
  });
}

function cell(found) {
  if (!found) return el("td", {}, "–");
  const { least, median, most, ratio, p_value: p } = found, range = unique([least, most].map(written)).join("–");
  const percent = `${ratio < 1 ? "−" : "+"}${Math.abs((ratio - 1) * 100).toFixed(1)} %`;
  const size = ratio === null ? "–" : ratio < 0.5 || ratio >= 2 ? `× ${written(ratio)}` : percent;
  const isEvident = p <= 0.05, change = `${size}, p ${p < 0.0001 ? "< 0.0001" : `= ${Number(p?.toPrecision(2))}`}`;
  return el("td", {}, written(median), range.includes("–") && el("small", {}, range),
    p !== undefined && el("small", { class: isEvident ? "change" : "" }, isEvident ? change : `(${change})`));
}

/** Every metric of every series; the series side by side while they are few. */
function table({ series, scenario }) {
  const name = found => JSON.stringify([found.of, found.name, found.unit]);
  const names = unique(series.flatMap(one => one.figures.map(name)));
  const head = (...content) => el("th", { scope: series.length > 4 ? "row" : "col" }, content);
  const state = one => {
    const all = one.runs.map(verdict), worst = ["violation", "not_exercised", "rate_missed"].find(bad => all.includes(bad));
    return el("td", { class: worst ? "bad" : "good" }, (worst ?? "verified").replace("_", " ").toUpperCase(),
      one.disturbed > 0 && el("small", { class: "bad" }, `DISTURBED: ${one.disturbed} of ${all.length}`));
  };
  const titles = names.map(text => JSON.parse(text))
    .map(([of, text, unit]) => head(text, el("small", {}, unique([of, unit]).join(", "))));
  const count = one => one.runs.length > 1 && el("small", {}, `${one.runs.length} runs`);
  const rows = [[el("td"), head("verdict"), ...titles], ...series.map(one => [
    head(key(one.number, series.length > 1), one.label, count(one)), state(one),
    ...names.map(wanted => cell(one.figures.find(found => name(found) === wanted))),
  ])];
  const shown = series.length > 4 ? rows : rows[0].map((_, i) => rows.map(row => row[i]));
  // It may be wider than a screen. Then it scrolls, also by keyboard.
  return el("div", { class: "table", tabindex: 0, role: "region", "aria-label": `${scenario}: metrics` },
    el("table", {}, shown.map(row => el("tr", {}, row))));
}

function remarks(section, one) {
  const texts = (object, gap) => Object.entries(object ?? {}).filter(([, value]) => value !== null)
    .map(([name, value]) => name + gap + (typeof value === "string" ? value : JSON.stringify(value))).join(" · ");
  const all = of => unique(one.runs.flatMap(of)), busy = one.median.processors_busy;
  const server = busy.server === null ? "" : `the server ${written(busy.server)}, `;
  const facts = {
    "limited by": all(run => run.limit),
    loop: all(run => run.loop === "open" ? "open: latency counts from when a request was due" :
      `closed: latency is what is in flight ÷ the rate${run.in_flight ? `; ${written(run.in_flight)} in flight` : ""}`),
    "asked for": all(run => run.asked && `${written(run.asked.per_second)} ${UNITS[run.asked.of]}/s`),
    exercised: all(run => (run.exercised ?? []).map(({ what, count }) => `${what}: ${written(count)}`)),
    notes: all(run => run.notes ?? []),
    "server says": all(run => run.server_warnings),
    processors: [`${written(busy.all)} of ${busy.processors} busy: ${server}this client ${written(busy.client)}`],
    "what differs": one.options.map(option => option.join(" ")),
    options: all(run => texts(run.options, " ")),
    settings: all(run => texts(run.server_settings, "=")),
    runs: one.runs.map(run => `${run.started_at}, ${run.seconds.toFixed(1)} s`),
  };
  const told = Object.entries(facts).filter(([, found]) => found.length > 0);
  return el("article", {}, el("h3", {}, key(one.number, section.series.length > 1), one.label),
    el("dl", {}, told.map(([name, found]) => [el("dt", {}, name), each("dd", found)])));
}

function draw(section, number) {
  const { series, shared } = section, kinds = unique(section.all.flatMap(latencies).map(latency => latency.of));
  const means = unique(series.map(one => `an acknowledgement means: ${one.acknowledged_means}`));
  const bad = series.flatMap(one => one.runs.flatMap(run => [
    ...run.violations.map(text => `VIOLATION: ${one.label}: ${text}`),
    ...(run.exercised ?? []).filter(({ count }) => count === 0).map(({ what }) => `NOT EXERCISED: ${one.label}: ${what}`),
  ]));
  const rates = kinds.map(of => compared(`${capital(UNITS[of])} per second`, section, "rate", UNITS[of], "/s",
    (one, median) => [{ length: median, look: one.number }]));
  return el("section", { id: `section-${number}` }, el("h2", {}, section.scenario),
    el("p", { class: "facts" }, each("span", [...shared, ...means])),
    each("p", bad, { class: "bad" }), table(section),
    el("p", { class: "legend" }, section.all.length > series.length &&
      "A metric is the median of the runs, with the range below it. The run of median rate is drawn in front. ",
    series.length > 1 && `Changes are since the first series. ${changes}`),
    // One bar alone would say nothing.
    el("div", { class: "charts" }, series.length > 1 && rates, serverCpu(section),
      kinds.map(of => percentiles(section, of)), section.all.some(run => run.timeline.length > 0) && overTime(section)),
    el("div", { class: "remarks" }, series.map(one => remarks(section, one))));
}

function header(prepared) {
  const runs = prepared.flatMap(section => section.all), failed = judgements.filter(judgement => judgement.failed);
  const times = runs.map(run => run.started_at.replace("T", " ").replace("Z", " UTC")).sort();
  const subjects = unique(runs.map(run => run.subject)), commits = runs.map(run => run.commit && `load test ${run.commit}`);
  const machines = sections.flatMap(section => section.columns.map(column => column.machine));
  const facts = [...machines, unique([times[0], times.at(-1)]).join(" to "), ...runs.map(run => run.label), ...commits];
  const such = (of, text) => runs.some(of) && `${text} (${runs.filter(of).length} of ${runs.length} runs)`;
  const bad = [
    runs.length === 0 && "No run was finished.",
    such(run => verdict(run) === "violation", "VIOLATION: a promise was broken"),
    such(run => verdict(run) === "not_exercised", "NOT EXERCISED: what the scenario is for did not happen"),
    such(run => verdict(run) === "rate_missed", "RATE MISSED: slower than asked for"),
    ...failed.map(({ condition, value, unit, scenario, subject, file }) =>
      `FAILED: ${unique([`${condition}: ${written(value)} ${unit}`, scenario, subject, file]).join(", ")}`),
    such(run => run.disturbed, "DISTURBED: other programs used the processors; measure again when they are gone"),
  ];
  const isGood = runs.length > 0 && runs.every(run => ["verified", "rate_missed"].includes(verdict(run)));
  const good = `Verified: ${runs.length === 1 ? "the run" : `all ${runs.length} runs`} kept every promise.`;
  return el("header", {},
    el("h1", {}, "Load test", el("span", {}, subjects.length > 2 ? `${subjects.length} servers` : subjects.join(", "))),
    el("p", { class: "facts" }, each("span", unique(facts))),
    each("p", unique(bad), { class: "bad" }), isGood && el("p", { class: "good" }, good),
    el("nav", {}, prepared.length > 1 && prepared.map(({ scenario }, i) => el("a", { href: `#section-${i}` }, scenario))));
}

const prepared = sections.map(prepare);
document.title = unique(["Load test", ...sections.map(section => section.scenario)]).join(" · ");
document.body.append(header(prepared), el("main", {}, prepared.map(draw)));
