"use strict";
// Shows one metric at a time; without a script all are there.

const metric = document.getElementById("metric");
function showMetric() {
  for (const table of document.querySelectorAll("[data-metric]")) {
    table.hidden = table.dataset.metric !== metric.value;
  }
}
metric.addEventListener("change", showMetric);
showMetric();
