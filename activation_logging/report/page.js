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

for (const select of document.querySelectorAll("select[data-shows]")) {
  select.addEventListener("change", () => {
    for (const kind of select.dataset.shows.split(" ")) {
      const element = document.getElementById(kind);
      element.dataset.chart = `${kind}/${select.value}`;
      draw(element);
    }
  });
}

const tip = document.getElementById("tip");
function judgements(token) {
  const answer = token.closest(".answer");
  const numbers = token.dataset.spans ? token.dataset.spans.split(" ") : [];
  return numbers.map((number) => document.getElementById(`${answer.id}-${number}`));
}
function show(token) {
  const { score, logprob } = token.dataset;
  tip.textContent = "";
  // Text only: what a model wrote is never markup.
  const line = (text) => tip.appendChild(document.createElement("div")).append(text);
  line(JSON.stringify(token.textContent));
  if (score) line(`probe of tokens: contradicted ${Number(score).toFixed(3)}`);
  if (logprob) {
    line(`log-probability ${Number(logprob).toFixed(3)} (${(100 * Math.exp(logprob)).toFixed(1)} %)`);
  }
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
for (const answer of document.querySelectorAll(".answer")) {
  for (const [event, act] of Object.entries(listening)) {
    answer.addEventListener(event, ({ target }) => {
      const token = target.closest(".token");
      if (token) act(token);
    });
  }
  answer.addEventListener("keydown", (event) => {
    const token = event.target.closest(".token");
    if (event.key === "Escape") tip.hidden = true;
    else if (token) move(event, token);
  });
}

dark.addEventListener("change", drawAll);
drawAll();
