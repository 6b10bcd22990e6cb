"use strict";
// Draws the charts in the colours of the page's theme, and shows what a token hides.

const charts = JSON.parse(document.getElementById("charts").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function themed(layout) {
  const css = getComputedStyle(document.documentElement);
  const colour = (name) => css.getPropertyValue(name).trim();
  const axis = (own) => ({
    gridcolor: colour("--line"), linecolor: colour("--line"), tickcolor: colour("--line"), ...own,
  });
  return {
    ...layout,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: css.getPropertyValue("font-family"), size: 13, color: colour("--ink") },
    hoverlabel: {
      bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") },
    },
    xaxis: axis(layout.xaxis),
    yaxis: axis(layout.yaxis),
  };
}

function draw(element) {
  const chart = charts[element.dataset.chart];
  // Zooming needs no buttons: drag to zoom in, double-click to see all again.
  const options = { responsive: true, displayModeBar: false };
  return Plotly.react(element, chart.data, themed(chart.layout), options).then(() => {
    element.dataset.drawn = "yes";
  });
}

function drawAll() {
  for (const element of document.querySelectorAll("[data-chart]")) draw(element);
}

const select = document.getElementById("which");
if (select) {
  select.addEventListener("change", () => {
    for (const kind of ["histogram", "calibration"]) {
      const element = document.getElementById(kind);
      element.dataset.chart = `${kind}/${select.value}`;
      draw(element);
    }
  });
}

const tip = document.getElementById("tip");
function show(token) {
  const { score, logprob } = token.dataset;
  tip.textContent = "";
  const line = (text) => tip.appendChild(document.createElement("div")).append(text);
  line(JSON.stringify(token.textContent));
  line(score ? `probe ${Number(score).toFixed(3)}` : "no state: the last sampled token");
  if (logprob) {
    line(`log-probability ${Number(logprob).toFixed(3)} (${(100 * Math.exp(logprob)).toFixed(1)} %)`);
  }
  tip.hidden = false;
  const at = token.getBoundingClientRect();
  const left = Math.min(at.left + window.scrollX, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${at.bottom + window.scrollY + 6}px`;
}
const answers = document.getElementById("answers");
if (answers) {
  for (const [on, off] of [["mouseover", "mouseout"], ["focusin", "focusout"]]) {
    answers.addEventListener(on, (event) => {
      const token = event.target.closest(".token");
      if (token) show(token);
    });
    answers.addEventListener(off, () => { tip.hidden = true; });
  }
}

dark.addEventListener("change", drawAll);
drawAll();
