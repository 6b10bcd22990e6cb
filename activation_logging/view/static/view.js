"use strict";
// On a narrow page the conditions are folded away, until someone asks for them.

const narrow = window.matchMedia("(max-width: 760px)");
function fold(within) {
  for (const facets of within.querySelectorAll("details.facets")) facets.open = !narrow.matches;
}
fold(document);
document.addEventListener("htmx:load", ({ detail: { elt } }) => {
  fold(elt);
  // Who was quicker than these scripts has changed a field that nothing listened to.
  for (const form of elt.querySelectorAll("form[hx-get]")) {
    if ([...form.elements].some(changed)) form.requestSubmit();
  }
});
function changed(field) {
  if (!field.options) return "defaultValue" in field && field.value !== field.defaultValue;
  const usual = [...field.options].find((option) => option.defaultSelected) ?? field.options[0];
  return field.selectedOptions[0] !== usual;
}

// What is being pressed is not replaced beneath the pointer: the press would be lost.
let pressed = false;
for (const event of ["pointerdown", "pointerup", "pointercancel"]) {
  document.addEventListener(event, () => { pressed = event === "pointerdown"; }, true);
}
document.addEventListener("htmx:beforeSwap", (event) => {
  if (pressed) event.detail.swapOverride = "outerHTML swap:2s";
});

// Who is not answered sees that what is shown may be old.
const unreachable = document.getElementById("unreachable");
document.addEventListener("htmx:sendError", () => { unreachable.hidden = false; });
document.addEventListener("htmx:afterOnLoad", () => { unreachable.hidden = true; });

// What a server refuses is shown too: its page says why, in place of the part that was asked for.
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.xhr.status >= 400) {
    event.detail.shouldSwap = true;
    event.detail.isError = false;
    event.detail.selectOverride = "#found";
  }
});
