"use strict";
// The browser of pairs. Text by models and users becomes text nodes; nothing here writes markup.
const MOST = 200;
const LEFT_OUT = "(left out, to keep this page small; the command above prints it)";
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent); // iterations; a prompt is [id, text, entries, responses, comparisons]
const several = new Set(data.map((iteration) => iteration.folder)).size > 1;

const entries = data.flatMap((iteration) =>
  iteration.prompts.flatMap((prompt) =>
    prompt[2].map(([id, kind, outcome]) => {
      const key = several ? `${iteration.folder}:${id}` : id;
      return { iteration, prompt, id, kind, outcome, key };
    }),
  ),
);

function make(tag, name, ...children) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  node.append(...children.filter((child) => child !== ""));
  return node;
}

// All texts of an entry's prompt, for the search.
function searched({ prompt, key }) {
  prompt.all ??= prompt.flat(Infinity).join("\n").toLowerCase();
  return `${key}\n${prompt.all}`;
}

function chosen() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const [iteration, kind] = [byId("iteration").value, byId("kind").value];
  return entries.filter(
    (entry) =>
      (!iteration || entry.iteration.name === iteration) &&
      (!kind || entry.kind === kind) &&
      words.every((word) => searched(entry).includes(word)),
  );
}

function options(select, names) {
  const counts = new Map();
  for (const name of names) counts.set(name, (counts.get(name) || 0) + 1);
  const rows = [...counts].map(([name, count]) => new Option(`${name} (${count})`, name));
  select.replaceChildren(new Option(`All (${names.length})`, ""), ...rows);
}

function list() {
  const rows = chosen();
  const items = rows.slice(0, MOST).map((entry) => {
    const head = make("span", "head", (entry.prompt[1] ?? "").slice(0, 110));
    const link = make("a", "", make("b", "", entry.id), ` ${entry.outcome} `, several ? entry.iteration.name : "", head);
    link.href = "#" + encodeURIComponent(entry.key);
    if (entry === open()) link.setAttribute("aria-current", "true");
    return make("li", "", link);
  });
  const more = rows.length > MOST ? `; the first ${MOST} are listed` : "";
  byId("count").textContent = `${rows.length} of ${entries.length}${more}`;
  byId("entries").replaceChildren(...items);
}

function address() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return location.hash.slice(1); // a stray "%"
  }
}

const open = () => entries.find((entry) => entry.key === address());
const body = (text) => make("div", "text", text ?? LEFT_OUT);
const details = ([label, text, part, behind]) =>
  make("details", part, make("summary", "", label), body(text), ...behind.map(details));
const half = ([label, text, part]) => make("section", part, make("h4", "", label), body(text));
const quoted = (text) => (/^[\w./][\w./-]*$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

function show(entry) {
  const [id, text, own, responses, comparisons] = entry.prompt;
  const rows = entry.kind === "judge pair" ? responses.flatMap((row) => row[3]) : responses;
  const sides = entry.id.startsWith("none/") ? [] : rows.filter((row) => row[2]).sort((a, b) => (a[2] < b[2] ? -1 : 1));
  const asked = entry.id.startsWith("none/") ? `--why-not ${quoted(id)}` : quoted(entry.id);
  byId("pair").replaceChildren(
    make("h3", "", entry.id),
    make("p", "note", [entry.iteration.name, entry.kind, entry.outcome].filter(Boolean).join(" \u00b7 ")),
    make("p", "note", make("code", "", `python -m judging.trace ${quoted(entry.iteration.folder)} ${asked}`)),
    make("section", "", make("h4", "", "Prompt"), body(text)),
    make("div", "sides", ...sides.map(half)),
    make("h4", "", "Responses and their judgments"),
    ...responses.map(details),
    comparisons.length ? make("h4", "", "Comparisons of judgments") : "",
    ...comparisons.map(details),
  );
}

function follow() {
  const entry = open();
  // An address that is no pair's is a search.
  if (!entry && address() && !byId(address())) byId("search").value = address();
  list();
  if (!entry) return byId("pair").replaceChildren();
  show(entry);
  byId("pair").scrollIntoView();
}

options(byId("iteration"), entries.map((entry) => entry.iteration.name));
options(byId("kind"), entries.map((entry) => entry.kind).sort());
for (const name of ["search", "iteration", "kind"]) byId(name).addEventListener("input", list);
window.addEventListener("hashchange", follow);
follow();
