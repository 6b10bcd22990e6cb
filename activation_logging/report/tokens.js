"use strict";
// Shows what a token hides, to the mouse and to the keys.

const tip = document.getElementById("tip");
function judgements(token) {
  const answer = token.closest(".answer");
  const numbers = token.dataset.spans ? token.dataset.spans.split(" ") : [];
  return numbers.map((number) => document.getElementById(`${answer.id}-${number}`));
}
function show(token) {
  const { score, logprob, more } = token.dataset;
  tip.textContent = "";
  // Text only: what a model wrote is never markup.
  const line = (text) => tip.appendChild(document.createElement("div")).append(text);
  line(JSON.stringify(token.textContent));
  if (score) line(`probe of tokens: contradicted ${Number(score).toFixed(3)}`);
  if (logprob) {
    line(`log-probability ${Number(logprob).toFixed(3)} (${(100 * Math.exp(logprob)).toFixed(1)} %)`);
  }
  for (const text of more ? more.split("\n") : []) line(text);
  for (const item of judgements(token)) {
    line(item.textContent.trim().replace(/\s+/g, " "));
    item.classList.add("shown");
  }
  tip.hidden = false;
  token.setAttribute("aria-describedby", "tip");
  const at = token.getBoundingClientRect();
  const left = Math.min(at.left + window.scrollX, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${at.bottom + window.scrollY + 6}px`;
}
function hide(token) {
  tip.hidden = true;
  token.removeAttribute("aria-describedby");
  for (const item of judgements(token)) item.classList.remove("shown");
}
// One token of an answer is reached by the tab key, its neighbours by the arrows.
function move(event, token) {
  const tokens = [...token.parentElement.querySelectorAll(".token")];
  const at = tokens.indexOf(token);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1 }[event.key];
  if (to === undefined || !tokens[to]) return;
  event.preventDefault();
  token.tabIndex = -1;
  tokens[to].tabIndex = 0;
  tokens[to].focus();
}
const listening = { mouseover: show, mouseout: hide, focusin: show, focusout: hide };
// On the document, since answers may come later.
for (const [event, act] of Object.entries(listening)) {
  document.addEventListener(event, ({ target }) => {
    const token = target.closest(".answer .token");
    if (token) act(token);
  });
}
document.addEventListener("keydown", (event) => {
  const token = event.target.closest(".answer .token");
  if (event.key === "Escape") tip.hidden = true;
  else if (token) move(event, token);
});
