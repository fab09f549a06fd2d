"use strict";
// The browser of pairs. Text by models and users becomes text nodes; nothing here writes markup.
(() => {
  const PAGE = 50;
  const byId = (id) => document.getElementById(id);
  const report = JSON.parse(byId("report").textContent);
  const several = report.runs.length > 1;
  const inflated = new Map();
  let entries = [], texts = [], chosen = [], first = 0, words = [];

  async function inflate(node) {
    const characters = atob(node.textContent);
    const bytes = new Uint8Array(characters.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i); // many times faster than Uint8Array.from
    const stream = new DecompressionStream("deflate");
    const writer = stream.writable.getWriter();
    writer.write(bytes);
    writer.close();
    return JSON.parse(await new Response(stream.readable).text());
  }

  async function evidence(place) {
    const nodes = document.querySelectorAll("script.evidence");
    const chunk = Math.floor(place / report.chunk);
    if (!inflated.has(chunk)) inflated.set(chunk, await inflate(nodes[chunk]));
    return inflated.get(chunk)[place % report.chunk];
  }

  // An element with children: elements or texts; empty ones are left out.
  function make(tag, name, ...children) {
    const node = document.createElement(tag);
    if (name) node.className = name;
    node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
    return node;
  }

  // A text with the searched words marked.
  function marked(text) {
    if (!words.length) return [text];
    const pattern = new RegExp("(" + words.map((w) => w.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|") + ")", "gi");
    return text.split(pattern).map((part, i) => (i % 2 ? make("mark", "", part) : part));
  }

  const whole = (text) => (typeof text === "string" ? text : text[0]);

  // The beginning of a text, without half a surrogate pair at its end.
  const beginning = (text, most) => (text.length > most ? text.slice(0, most).replace(/[\ud800-\udbff]$/, "") + "…" : text);

  function body(text) {
    const shown = whole(text);
    const node = make("div", "text", ...(shown ? marked(shown) : [make("em", "", "empty")]));
    if (typeof text === "string") return node;
    return make("div", "", node, make("p", "note", `Cut: ${number([...shown].length)} of ${number(text[1])} characters.`));
  }

  const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 2 });
  const score = (value) => (value === null ? "no score" : number(value));
  // A word quoted for a shell.
  const quoted = (text) => (/^[\w./:@%+=,][\w./:@%+=,-]*$/.test(text) ? text : "'" + text.replaceAll("'", "'\\''") + "'");
  const spaced = (name) => name.replaceAll("_", " ").replace(/\belo\b/, "Elo");
  const signed = (value) => (Math.abs(value) < 0.005 ? "0.00" : value.toFixed(2).replace("-", "\u2212"));

  function key(entry) {
    return (several ? report.runs[entry.run].name + ":" : "") + entry.id;
  }

  // The name in the list; a prompt without a pair has its kind and id.
  const named = (entry) => entry.id.replace(/^none\//, "");

  const address = (entry) => "#" + encodeURIComponent(key(entry)).replaceAll("%2F", "/").replaceAll("%3A", ":");

  function decoded(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text; // a stray "%"
    }
  }

  function responseOf(entry, id) {
    return texts[entry.at].responses.find((row) => row[0] === id);
  }

  function searched(entry) {
    const prompt = texts[entry.at];
    const parts = [key(entry), whole(prompt.prompt)];
    if (entry.kind === "judge") parts.push(whole(prompt.sides[entry.chosen]), whole(prompt.sides[entry.rejected]));
    else if (entry.kind === "actor")
      parts.push(whole(responseOf(entry, entry.chosen)[3]), whole(responseOf(entry, entry.rejected)[3]));
    else for (const row of prompt.responses) if (row[3] !== null) parts.push(whole(row[3]));
    return parts.join("\n").toLowerCase();
  }

  function outcome(entry) {
    if (entry.kind === "none") return `no ${entry.of} pair: ${spaced(entry.reason)}`;
    if (entry.kind === "judge") return `Elo ${signed(entry.elo[0])} over ${signed(entry.elo[1])}`;
    return `${score(responseOf(entry, entry.chosen)[2])} over ${score(responseOf(entry, entry.rejected)[2])}`;
  }

  // ---- the list

  const kinds = {
    all: () => true,
    actor: (entry) => entry.kind === "actor",
    judge: (entry) => entry.kind === "judge",
  };

  function options(select, rows) {
    select.replaceChildren(...rows.map(([value, text]) => new Option(text, value)));
  }

  function fillFilters() {
    const numbers = [...new Set(entries.map((entry) => entry.iteration))].sort((a, b) => a - b);
    options(byId("iteration"), [["", "All"], ...numbers.map((n) => [n, n])]);
    if (several) options(byId("run"), [["", "All"], ...report.runs.map((run, i) => [i, run.name])]);
    const count = (test) => entries.filter(test).length;
    const rows = [["all", "All"]];
    rows.push(["actor", `Actor pairs (${count(kinds.actor)})`], ["judge", `Judge pairs (${count(kinds.judge)})`]);
    for (const kind of ["actor", "judge"]) {
      const without = entries.filter((entry) => entry.of === kind);
      if (!without.length) continue;
      kinds[`none/${kind}`] = (entry) => entry.of === kind;
      rows.push([`none/${kind}`, `No ${kind} pair (${without.length})`]);
      for (const reason of [...new Set(without.map((entry) => entry.reason))].sort()) {
        const test = (kinds[`none/${kind}/${reason}`] = (entry) => entry.of === kind && entry.reason === reason);
        rows.push([`none/${kind}/${reason}`, `No ${kind} pair: ${spaced(reason)} (${count(test)})`]);
      }
    }
    options(byId("kind"), rows);
  }

  function filter() {
    words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const run = several ? byId("run").value : "";
    const iteration = byId("iteration").value;
    const kind = kinds[byId("kind").value];
    chosen = entries.filter(
      (entry) =>
        kind(entry) &&
        (run === "" || entry.run === Number(run)) &&
        (iteration === "" || entry.iteration === Number(iteration)) &&
        words.every((word) => entry.text.includes(word)),
    );
    first = 0;
    draw();
    const open = current();
    if (open) show(open); // its marked words and its neighbours have changed
  }

  function draw() {
    const open = current();
    const items = chosen.slice(first, first + PAGE).map((entry) => {
      const prompt = whole(texts[entry.at].prompt);
      const link = make(
        "a",
        "",
        make("span", "id", several ? make("i", `swatch c${entry.run + 1}`) : null, ...marked(named(entry))),
        make("span", "outcome", outcome(entry)),
        make("span", "head", ...marked(beginning(prompt, 110))),
      );
      link.href = address(entry);
      if (entry === open) link.setAttribute("aria-current", "true");
      return make("li", entry.kind, link);
    });
    byId("entries").replaceChildren(...items);
    const last = Math.min(first + PAGE, chosen.length);
    byId("count").textContent = `${number(chosen.length)} of ${number(entries.length)}`;
    byId("pager").hidden = chosen.length <= PAGE;
    byId("page").textContent = `${number(first + 1)} to ${number(last)}`;
    byId("earlier").disabled = first === 0;
    byId("later").disabled = last >= chosen.length;
  }

  function turn(step) {
    first += step * PAGE;
    draw();
    byId("list").scrollTop = 0;
    if (byId("list").getBoundingClientRect().top < 0) byId("list").scrollIntoView();
  }

  // ---- one pair

  function current() {
    const wanted = decoded(location.hash.slice(1));
    return wanted.includes("/") ? entries.find((entry) => key(entry) === wanted) : undefined;
  }

  function judgmentList(rows, elo) {
    if (!rows || !rows.length) return null;
    const items = rows.map(([id, verdict, text]) => {
      const failed = typeof verdict === "string";
      const summary = make("summary", "", make("b", failed ? "failed" : "", failed ? spaced(verdict) : number(verdict)), ` ${id.split("/").pop()}`);
      if (elo[id]) summary.append(` · Elo ${signed(elo[id][0])} ± ${elo[id][1].toFixed(2)}, won ${elo[id][2]}, lost ${elo[id][3]}`);
      return make("details", "judgment", summary, body(text));
    });
    return make("div", "judgments", make("h5", "", `${rows.length} judgments`), ...items);
  }

  function side(title, name, text, facts, judgments) {
    return make("section", name, make("h4", "", title), facts ? make("p", "facts", facts) : null, body(text), judgments);
  }

  function responseSide(title, name, row, behind) {
    const facts = `${row[2] === null ? "no score" : "score " + number(row[2])} · ${number(row[1])} characters · ${row[0]}`;
    return side(title, name, row[3], facts, judgmentList(behind.judgments[row[0]], behind.elo));
  }

  function others(entry, shown) {
    const rows = texts[entry.at].responses.filter((row) => !shown.includes(row[0]));
    if (!rows.length) return null;
    const facts = rows.map((row) => `${row[0].split("/").pop()}: ${score(row[2])}, ${number(row[1])} characters`);
    return make("p", "facts", `Other responses – ${facts.join("; ")}`);
  }

  function judgePair(entry, behind) {
    const prompt = texts[entry.at];
    const rows = behind.judgments[entry.response] || [];
    const judged = responseOf(entry, entry.response);
    const half = (title, name) => {
      const id = entry[name];
      const [value, error, won, lost] = behind.elo[id];
      const judgment = rows.find((row) => row[0] === id);
      const facts = `score ${judgment ? judgment[1] : "–"} · Elo ${signed(value)} ± ${error.toFixed(2)} · won ${won}, lost ${lost} · ${id}`;
      return side(title, name, prompt.sides[id], facts, null);
    };
    const ranked = [...rows].sort((a, b) => (behind.elo[b[0]] || [-99])[0] - (behind.elo[a[0]] || [-99])[0]);
    return [
      side("Response", "judged", judged[3], `score ${score(judged[2])} · ${number(judged[1])} characters · ${judged[0]}`),
      make("div", "sides", half("Chosen judgment", "chosen"), half("Rejected judgment", "rejected")),
      judgmentList(ranked, behind.elo),
      contests(behind),
    ];
  }

  function contests(behind) {
    const rows = behind.comparisons;
    if (!rows.length) return null;
    const names = [...new Set(rows.flatMap((row) => [row[0], row[1]]))].sort((a, b) => a - b);
    const won = new Map(rows.map((row) => [`${row[0]},${row[1]}`, row[2]]));
    const signs = { first: "1", second: "2", tie: "=" };
    const cell = (a, b) => {
      const winner = won.get(`${a},${b}`);
      return make("td", winner in signs ? winner : "failed", winner === undefined ? "" : signs[winner] || "×");
    };
    const line = (a) => make("tr", "", make("th", "", `j${a}`), ...names.map((b) => cell(a, b)));
    const head = make("tr", "", make("th", "", ""), ...names.map((b) => make("th", "", `j${b}`)));
    const table = make("table", "matrix", make("thead", "", head), make("tbody", "", ...names.map(line)));
    const outcomes = { first: "the first wins", second: "the second wins", tie: "a tie" };
    const details = rows
      .filter((row) => row[3] !== null)
      .map(([a, b, winner, text]) =>
        make("details", "judgment", make("summary", "", `j${a} against j${b}: `, make("b", "", outcomes[winner] || spaced(winner))), body(text)),
      );
    return make(
      "div",
      "judgments",
      make("h5", "", `${rows.length} comparisons of judgments of ${behind.compared}`),
      make("p", "note", "The row's judgment was shown first, the column's second. 1: the first wins, 2: the second wins, =: a tie, ×: no verdict."),
      make("div", "box", table),
      details.length ? make("details", "outcomes", make("summary", "", "The meta-judge's texts"), ...details) : null,
    );
  }

  function noPair(entry, behind) {
    const rows = texts[entry.at].responses.filter((row) => row[3] !== null);
    return [
      make("p", "reason", `No ${entry.of} pair: ${report.reasons[entry.reason] || spaced(entry.reason)}.`),
      entry.of === "judge" ? contests(behind) : null,
      make("div", "sides", ...rows.map((row) => responseSide("Response", "", row, behind))),
    ];
  }

  async function show(entry) {
    const behind = await evidence(entry.at);
    if (entry !== current()) return; // another pair was opened meanwhile
    const at = chosen.indexOf(entry);
    const step = (to, text) => {
      const link = make("a", "", text);
      if (chosen[to]) link.href = address(chosen[to]);
      else link.setAttribute("aria-disabled", "true");
      return link;
    };
    const back = make("a", "back", "All pairs");
    back.href = "#browser";
    const walk = make("nav", "walk", back, at >= 0 ? step(at - 1, "Previous") : null, at >= 0 ? step(at + 1, "Next") : null);
    walk.setAttribute("aria-label", "Pairs");
    const where = `${several ? report.runs[entry.run].name + " · " : ""}iteration ${entry.iteration} · ${outcome(entry)}`;
    const parts =
      entry.kind === "judge"
        ? judgePair(entry, behind)
        : entry.kind === "actor"
          ? [
              make(
                "div",
                "sides",
                responseSide("Chosen", "chosen", responseOf(entry, entry.chosen), behind),
                responseSide("Rejected", "rejected", responseOf(entry, entry.rejected), behind),
              ),
              others(entry, [entry.chosen, entry.rejected]),
            ]
          : noPair(entry, behind);
    const asked = entry.kind === "none" ? "--why-not " + quoted(entry.id.split("/").slice(2).join("/")) : quoted(entry.id);
    const trace = `python -m judging.trace ${quoted(report.runs[entry.run].folder)} ${asked}`;
    byId("pair").replaceChildren(
      ...[
        walk,
        make("h3", "", ...marked(named(entry))),
        make("p", "facts", where),
        side("Prompt", "prompt", texts[entry.at].prompt, ""),
        ...parts,
        make("p", "note", "Everything, with seeds and weights: ", make("code", "", trace)),
      ].filter(Boolean),
    );
  }

  async function follow() {
    const entry = current();
    document.body.classList.toggle("reading", Boolean(entry));
    if (!entry) return byId("pair").replaceChildren();
    if (chosen.includes(entry)) first = Math.floor(chosen.indexOf(entry) / PAGE) * PAGE;
    draw();
    await show(entry);
    byId("pair").focus({ preventScroll: true });
    const top = byId("pair").getBoundingClientRect().top;
    if (top < 0 || top > innerHeight / 2) byId("panes").scrollIntoView();
  }

  function note() {
    const cuts = [];
    if (report.limits.text) cuts.push(`responses at ${number(report.limits.text)} characters`);
    if (report.limits.judgment) cuts.push(`judgments at ${number(report.limits.judgment)}`);
    const parts = [];
    if (cuts.length) parts.push(`texts are cut: ${cuts.join(", ")}`);
    if (report.outcomesOnly) parts.push("comparisons are shown without the meta-judge's texts");
    if (!parts.length) return;
    byId("cut").textContent = `To keep this page small, ${parts.join(", and ")}. The command below each pair prints everything.`;
    byId("cut").hidden = false;
  }

  async function start() {
    byId("count").textContent = "Loading…";
    if (!("DecompressionStream" in window)) {
      byId("count").textContent = "This browser is too old for the pairs (no DecompressionStream).";
      return;
    }
    entries = await inflate(byId("entries-data"));
    texts = (await Promise.all([...document.querySelectorAll("script.texts")].map(inflate))).flat();
    for (const entry of entries) entry.text = searched(entry);
    fillFilters();
    note();
    byId("filters").hidden = false;
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    for (const name of ["run", "iteration", "kind"]) byId(name)?.addEventListener("change", filter);
    byId("search").addEventListener("input", filter);
    byId("earlier").addEventListener("click", () => turn(-1));
    byId("later").addEventListener("click", () => turn(1));
    window.addEventListener("hashchange", follow);
    filter();
    await follow();
    performance.mark("ready");
    document.documentElement.dataset.ready = "yes";
  }

  start();
})();
