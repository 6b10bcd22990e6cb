"use strict";
// On a narrow page the conditions are folded away, until someone asks for them.

const narrow = window.matchMedia("(max-width: 760px)");
function fold(within) {
  for (const facets of within.querySelectorAll("details.facets")) facets.open = !narrow.matches;
}
fold(document);
document.addEventListener("htmx:load", (event) => fold(event.detail.elt));

// What a server refuses is shown too: its page says why, in place of the part that was asked for.
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.xhr.status >= 400) {
    event.detail.shouldSwap = true;
    event.detail.isError = false;
    event.detail.selectOverride = "#found";
  }
});
