"use strict";
// The chat: sends a question to the page's own process, and shows the lines of its answer.
// Everything becomes text of an element: what a model wrote is never markup. The conversation stays
// in this tab's sessionStorage, as the lines that came, so a reload shows it again.

const form = document.getElementById("ask");
const talk = document.getElementById("talk");
const statusLine = document.getElementById("said-status");
const note = document.getElementById("server-note");
const field = form?.elements;
let server = null;
let probes = [];
let logs = false;
let learned = null;
let running = null;
// In order: {question, plain, answer} of this page, and {role, content} of an entry asked again.
let turns = [];

function make(kind, classes, text = "") {
  const made = document.createElement(kind);
  made.className = classes;
  made.textContent = text;
  return made;
}
function options(select, found) {
  const before = select.value;
  select.replaceChildren(...found.map(([value, text]) => new Option(text, value)));
  if (found.some(([value]) => value === before)) select.value = before;
}

// --- What the server has ---------------------------------------------------------------

const ofTokens = (probe) => probe.kind === "token";
const beforeAnswer = (probe) => ofTokens(probe) || probe.position === "prompt_last";

async function learn() {
  const again = document.getElementById("again");
  let found;
  try {
    const response = await fetch(form.action.replace(/say$/, "server"));
    found = response.status === 401
      ? { error: "these pages need their key again: reload the page" }
      : await response.json();
  } catch (error) {
    found = { error: `these pages do not answer: ${error.message}` };
  }
  again.hidden = !found.error;
  note.classList.toggle("failed", Boolean(found.error));
  if (found.error) {
    note.textContent = found.error;
    return;
  }
  const first = server === null;
  know(found);
  if (first) field.colour.value = probes.find(ofTokens)?.name ?? "logprob";
  for (const answer of answers()) answer.colour();
  note.textContent = probes.length
    ? `Its probes: ${probes.map(({ name, positive, negative }) => `${name} (${positive} or ${negative})`).join(", ")}.`
    : logs
      ? "The server has no probes, so tokens are coloured by log-probability. Start it with --activation-probe NAME=PATH."
      : "The server does not log activations: it has no probes, and no answer of it comes into the store.";
}

function know(found) {
  server = found;
  ({ probes, logs } = found);
  options(field.model, found.models.map((name) => [name, name]));
  options(field.colour, [
    ...probes.filter(ofTokens).map(({ name }) => [name, `probe ${name}`]),
    ["logprob", "log-probability"],
  ]);
  for (const option of field.stop.options) option.disabled = option.value !== "" && !probes.length;
  stopping();
}

function stopping() {
  const kind = field.stop.value;
  for (const label of form.querySelectorAll("[data-stops]")) {
    label.hidden = !label.dataset.stops.split(" ").includes(kind);
  }
  const able = probes.filter(kind === "prompt" ? beforeAnswer : ({ position }) => position !== "prompt_last");
  options(field.stop_probe, able.map(({ name }) => [name, name]));
}

// --- One answer ------------------------------------------------------------------------

class Answer {
  constructor(item, number) {
    this.told = [];
    this.tokens = [];
    this.text = "";
    this.card = make("article", "card answer");
    this.card.id = `said-${number}`;
    this.card.setAttribute("aria-busy", "true");
    this.card.setAttribute("aria-label", `Answer ${number}`);
    this.before = make("p", "facts");
    this.said = make("p", "said");
    this.said.dir = "auto";
    this.said.setAttribute("role", "group");
    this.said.setAttribute("aria-label", "The answer; arrow keys go from token to token");
    this.legend = make("ul", "legend");
    this.after = make("p", "facts");
    this.card.append(this.before, this.said, this.legend, this.after);
    item.append(this.card);
    this.colour();
  }
  take(told) {
    this.told.push(told);
    for (const one of told.tokens ?? []) this.add(one);
    for (const [name, found] of Object.entries(told.scores ?? {})) {
      for (const [at, score, shade] of found) this.score(name, at, score, shade);
    }
    if (told.prompt) this.gauges(this.before, "before the first word", told.prompt);
    if (told.answer) this.gauges(this.after, "the answer", told.answer);
    if (told.ended) this.ended(told.ended);
    if ("stored" in told) this.stored(told.stored);
    if (told.left) this.after.append(make("span", "", "ended by you"));
    if (told.error) this.failed(told.error);
  }
  add({ text, logprob, shade, more, thought }) {
    const token = make("span", "token", text);
    token.tabIndex = this.said.childElementCount ? -1 : 0;
    if (logprob !== null) token.dataset.logprob = logprob;
    if (more) token.dataset.more = more;
    token.shades = { logprob: shade };
    token.thought = Boolean(thought);
    if (!thought) this.text += text;
    this.tokens.push(token);
    this.paint(token);
    this.said.append(token);
  }
  score(name, at, score, shade) {
    const token = this.tokens[at];
    if (!token) return;
    token.shades[name] = shade;
    const line = `probe ${name}: ${score.toFixed(3)}`;
    token.dataset.more = token.dataset.more ? `${line}\n${token.dataset.more}` : line;
    this.paint(token);
  }
  paint(token) {
    token.className = `token ${token.shades[field.colour.value] ?? ""}${token.thought ? " thought" : ""}`.trim();
  }
  colour() {
    for (const token of this.tokens) this.paint(token);
    const by = probes.find(({ name }) => name === field.colour.value);
    const scale = make("span", by ? "scale" : "scale unlikely");
    const line = make("li", "");
    line.append(by ? by.negative : "likely", scale, by ? by.positive : "unlikely to the model itself");
    this.legend.replaceChildren(line);
  }
  gauges(place, title, found) {
    place.append(make("span", "", `${title}:`));
    for (const [name, [score, shade]] of Object.entries(found)) {
      const probe = probes.find((one) => one.name === name);
      const gauge = make("span", `gauge ${shade}`, `${name} ${score.toFixed(2)}`);
      if (probe) gauge.title = `the probability of ${probe.positive}, by the probe ${name}`;
      place.append(gauge);
    }
  }
  ended({ by, reason }) {
    const stop = String(reason ?? "");
    const probe = stop.startsWith("activation:") ? stop.slice("activation:".length) : null;
    this.how = probe !== null
      ? `ended by the probe ${probe}`
      : by === "length" ? "ended at the longest length" : `ended by ${by}`;
    this.after.append(make("span", probe === null ? "" : "ended-by", this.how));
    if (probe !== null && !this.tokens.length) this.said.append(make("span", "soft", "(no word)"));
  }
  stored(address) {
    if (address === null) {
      this.after.append(make("span", "", logs ? "the store of these pages does not have it" : "not logged"));
      return;
    }
    const link = make("a", "", "open it in the store");
    link.href = address;
    this.after.append(link);
  }
  failed(text) {
    const line = make("p", "failed", text);
    line.setAttribute("role", "alert");
    this.card.append(line);
  }
  done() {
    this.card.setAttribute("aria-busy", "false");
    if (!this.tokens.length) this.legend.hidden = true;
  }
}
const answers = () => turns.flatMap(({ answer }) => answer ?? []);

// --- Asking ----------------------------------------------------------------------------

function asked(text) {
  document.getElementById("first").hidden = true;
  const item = make("li", "");
  const card = make("article", "card asked");
  card.setAttribute("aria-label", "You asked");
  const said = make("p", "text", text);
  said.dir = "auto";
  card.append(said);
  item.append(card);
  talk.append(item);
  return item;
}

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

function toSend(conversation) {
  const sent = new FormData();
  for (const name of ["form_token", "model", "stop", "stop_probe", "above", "tokens", "max_tokens", "temperature", "seed"]) {
    sent.set(name, field[name].value);
  }
  if (field.plain.checked) sent.set("plain", "1");
  if (logs) sent.set("logs", "1");
  sent.set("probes", probes.map(({ name }) => name).join(","));
  const system = field.system.value ? [{ role: "system", content: field.system.value }] : [];
  sent.set("messages", JSON.stringify([...system, ...conversation]));
  return sent;
}

function conversation() {
  let messages = [];
  for (const { role, content, question, plain, answer } of turns) {
    if (role) messages.push({ role, content });
    // A question without an answer is not part of the conversation.
    else if (answer.tokens.length) {
      const both = [{ role: "user", content: question }, { role: "assistant", content: answer.text }];
      messages = plain ? both : [...messages, ...both];
    }
  }
  return messages;
}

// A question on the page, and the place of its answer.
function begun(question, plain) {
  const item = asked(question);
  const answer = new Answer(item, answers().length + 1);
  turns.push({ question, plain, answer });
  return [item, answer];
}

async function ask(text) {
  const plain = field.plain.checked;
  const earlier = plain ? [] : conversation();
  const [item, answer] = begun(text, plain);
  const own = running = new AbortController();
  busy(true);
  // The next question need not wait until the store has this answer.
  const done = () => {
    answer.done();
    if (running !== own) return;
    running = null;
    busy(false);
  };
  item.scrollIntoView({ block: "nearest" });
  try {
    // Who is quick asks before the server has said what it has.
    await learned;
    const sent = toSend([...earlier, { role: "user", content: text }]);
    const response = await fetch(form.action, { method: "POST", body: sent, signal: own.signal });
    if (response.headers.get("content-type")?.startsWith("application/x-ndjson")) {
      for await (const told of lines(response)) {
        if (told.error) throw new Error(told.error);
        const low = window.innerHeight + window.scrollY >= document.body.scrollHeight - 40;
        answer.take(told);
        if (low) window.scrollTo(0, document.body.scrollHeight);
        if (!told.ended) continue;
        statusLine.textContent = `The answer has ${answer.tokens.length} tokens; ${answer.how}.`;
        done();
      }
    } else {
      const said = await response.json().catch(() => ({}));
      throw new Error(said.error ?? `the page's process refuses this (HTTP ${response.status}): reload the page`);
    }
    if (!answer.how) statusLine.textContent = "The answer's end was not told.";
  } catch (error) {
    if (error.name === "AbortError") {
      answer.take({ left: true });
      statusLine.textContent = "You have ended the answer.";
    } else {
      answer.take({ error: error.message });
      if (!answer.tokens.length) field.question.value ||= text;
    }
  }
  done();
  keep();
}

function busy(is) {
  document.getElementById("send").disabled = is;
  document.getElementById("halt").disabled = !is;
  if (!is && document.activeElement === document.body) field.question.focus();
}

function anew() {
  running?.abort();
  turns = [];
  for (const item of talk.querySelectorAll("li:not(#first)")) item.remove();
  document.getElementById("first").hidden = false;
  statusLine.textContent = "";
  field.question.focus();
  keep();
}

// --- Kept over a reload ----------------------------------------------------------------

// Another store or server at this address has conversations of its own.
const place = () => `activations chat 1 ${talk.dataset.of} ${location.pathname}${location.search}`;
const settings = () => [...field].filter(({ name }) => name && name !== "form_token");

let leaving = false;

function keep() {
  // Once the page goes, the rest of an answer fails, which is no part of it.
  if (leaving) return;
  const fields = settings().map((one) => [one.name, one.type === "checkbox" ? one.checked : one.value]);
  const told = turns.map(({ answer, ...turn }) =>
    answer ? { ...turn, told: answer.told, left: answer.card.getAttribute("aria-busy") === "true" } : turn);
  const kept = { server, fields, turns: told, cut: false };
  // A browser keeps some megabytes: the oldest answers give way, and are in the store.
  for (; told.length; told.shift(), kept.cut = true) if (put(kept)) return;
  put(kept);
}
function put(kept) {
  try {
    sessionStorage.setItem(place(), JSON.stringify(kept));
    return true;
  } catch {
    return false;
  }
}
function recall() {
  // Who asks an entry's question again begins anew, and who reloads that page goes on.
  const fresh = performance.getEntriesByType("navigation")[0]?.type === "navigate";
  if (fresh && talk.dataset.earlier !== "[]") return null;
  try {
    return JSON.parse(sessionStorage.getItem(place()));
  } catch {
    return null;
  }
}

// Whether somebody was quicker than this script.
const typed = (one) =>
  one.type === "checkbox" ? one.checked !== one.defaultChecked : one.value !== (one.defaultValue ?? one.value);

function restore({ server: known, fields, turns: kept, cut }) {
  const meant = settings().filter(typed);
  if (known) know(known);
  for (const [name, value] of fields) {
    if (meant.includes(field[name])) continue;
    if (field[name].type === "checkbox") field[name].checked = value;
    else field[name].value = value;
    // It decides what can be chosen in the fields after it.
    if (name === "stop") stopping();
  }
  for (const { told, left, question, plain, ...earlier } of kept) {
    if (!told) before(earlier);
    else {
      const [, answer] = begun(question, plain);
      for (const one of told) answer.take(one);
      if (left) answer.take({ left });
      answer.done();
    }
  }
  const some = answers().length;
  if (some) statusLine.textContent = `${some === 1 ? "One answer" : `${some} answers`} of this tab, as before${cut ? "; older ones are in the store alone" : ""}.`;
}

function before(message) {
  asked(message.role === "user" ? message.content : `(answer) ${message.content}`);
  turns.push(message);
}

function begin() {
  const earlier = JSON.parse(talk.dataset.earlier);
  const system = earlier.filter(({ role }) => role === "system");
  field.system.value = system.map(({ content }) => content).join("\n");
  const rest = earlier.filter(({ role }) => role !== "system");
  const last = rest.at(-1)?.role === "user" ? rest.pop() : null;
  if (last) field.question.value ||= last.content;
  rest.forEach(before);
}

if (form) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = field.question.value;
    if (running || !text.trim()) return;
    field.question.value = "";
    ask(text);
  });
  field.question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
  document.getElementById("halt").addEventListener("click", () => running?.abort());
  document.getElementById("anew").addEventListener("click", anew);
  document.getElementById("again").addEventListener("click", () => { learned = learn(); });
  document.getElementById("examples").addEventListener("click", ({ target }) => {
    if (target.tagName !== "BUTTON" || running) return;
    field.question.value = target.textContent;
    form.requestSubmit();
  });
  field.colour.addEventListener("change", () => answers().forEach((answer) => answer.colour()));
  field.stop.addEventListener("change", stopping);
  window.addEventListener("pagehide", () => {
    keep();
    leaving = true;
  });
  const kept = recall();
  if (kept) restore(kept);
  else begin();
  document.getElementById("send").disabled = false;
  learned = learn();
}
