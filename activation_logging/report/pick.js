"use strict";
// Of several tables, shows the one that is picked; without a script all are there.

for (const select of document.querySelectorAll("select[data-picks]")) {
  const pick = () => {
    for (const table of document.querySelectorAll(`[data-${select.dataset.picks}]`)) {
      table.hidden = table.dataset[select.dataset.picks] !== select.value;
    }
  };
  select.addEventListener("change", pick);
  pick();
}
