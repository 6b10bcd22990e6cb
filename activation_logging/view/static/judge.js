"use strict";
// Labelling by keys, and claims marked by selecting them with the mouse.

function typing(target) {
  return target.closest("input:not([type=hidden]), select, textarea") !== null;
}
document.addEventListener("keydown", (event) => {
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

function selected() {
  const selection = window.getSelection();
  if (!selection.rangeCount || selection.isCollapsed) return null;
  const range = selection.getRangeAt(0);
  if (!said.contains(range.startContainer) || !said.contains(range.endContainer)) return null;
  const start = place(range.startContainer, range.startOffset);
  const end = place(range.endContainer, range.endOffset);
  return start < end ? { start, end } : null;
}

if (form && said) {
  const field = form.elements.spans;
  const note = document.getElementById("span-note");
  // Where the tokens' texts are not the answer's, places in the page are none of the answer.
  const exact = length(said.textContent) === Number(said.dataset.length);
  const save = (spans) => {
    field.value = JSON.stringify(spans);
    form.submit();
  };
  form.addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (!button) return;
    const spans = JSON.parse(field.value);
    if (button.dataset.span) {
      const range = selected();
      if (!exact) note.textContent = "The texts of this answer's tokens were not logged, so no place in it can be marked.";
      else if (!range) note.textContent = "Select a part of the answer first.";
      else save([...spans, { ...range, label: button.dataset.span }]);
    } else if ("unspan" in button.dataset) {
      if (spans.length) save(spans.slice(0, -1));
      else note.textContent = "There is no mark of yours.";
    }
  });
}
