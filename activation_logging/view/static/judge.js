"use strict";
// Labelling by keys, and claims marked by selecting them: with the mouse, or with Shift and arrows.

function typing(target) {
  return target.closest("input:not([type=hidden]), select, textarea") !== null;
}
// Once something is being saved, the next key or press is meant for the next answer, which is not
// here yet: it would be given to this one.
let saving = false;
document.addEventListener("submit", (event) => {
  if (saving) event.preventDefault();
  saving = true;
});
window.addEventListener("pageshow", () => { saving = false; });
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") saving = false;
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || typing(event.target)) return;
  const button = document.querySelector(`button[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
  if (!button) return;
  event.preventDefault();
  button.click();
});

const form = document.getElementById("span-form");
const said = document.querySelector("#answer .said");

// Characters of Unicode, as the store counts them, not the halves that JavaScript counts.
const length = (text) => [...text].length;

function place(node, offset) {
  const before = document.createRange();
  before.selectNodeContents(said);
  before.setEnd(node, offset);
  return length(before.toString());
}

// The token at which a selection with the keys began.
let anchor = null;

function chosenTokens() {
  const focused = document.activeElement.closest("#answer .token");
  if (!focused) return [];
  const tokens = [...said.querySelectorAll(".token")];
  const ends = [tokens.indexOf(anchor ?? focused), tokens.indexOf(focused)].sort((a, b) => a - b);
  return tokens.slice(ends[0], ends[1] + 1);
}

function selected() {
  const selection = window.getSelection();
  if (selection.rangeCount && !selection.isCollapsed) {
    const range = selection.getRangeAt(0);
    if (!said.contains(range.startContainer) || !said.contains(range.endContainer)) return null;
    const start = place(range.startContainer, range.startOffset);
    const end = place(range.endContainer, range.endOffset);
    return start < end ? { start, end } : null;
  }
  const tokens = chosenTokens();
  if (!tokens.length) return null;
  const end = tokens[tokens.length - 1];
  return { start: place(tokens[0], 0), end: place(end, end.childNodes.length) };
}

// Before the arrow moves the focus, so that the anchor is where it was.
document.addEventListener("keydown", (event) => {
  if (!event.key.startsWith("Arrow")) return;
  const token = event.target.closest("#answer .token");
  anchor = event.shiftKey && token ? (anchor ?? token) : null;
}, true);
document.addEventListener("focusin", () => {
  if (!said) return;
  const chosen = anchor ? chosenTokens() : [];
  for (const token of said.querySelectorAll(".token")) {
    token.classList.toggle("chosen", chosen.includes(token));
  }
});

if (form && said) {
  const field = form.elements.spans;
  const note = document.getElementById("span-note");
  // Where the tokens' texts are not the answer's, places in the page are none of the answer.
  const exact = length(said.textContent) === Number(said.dataset.length);
  const save = (spans) => {
    if (saving) return;
    field.value = JSON.stringify(spans);
    form.requestSubmit();
  };
  form.addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (!button) return;
    const spans = JSON.parse(field.value);
    if (button.dataset.span) {
      const range = selected();
      if (!exact) note.textContent = "The texts of this answer's tokens were not logged, so no place in it can be marked.";
      else if (!range) note.textContent = "Select a part of the answer first: with the mouse, or its tokens with Tab and Shift and the arrow keys.";
      else save([...spans, { ...range, label: button.dataset.span }]);
    } else if ("unspan" in button.dataset) {
      if (spans.length) save(spans.slice(0, -1));
      else note.textContent = "There is no mark of yours.";
    }
  });
}
