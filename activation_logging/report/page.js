// Draws the charts in the colours of the page's theme.

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

dark.addEventListener("change", drawAll);
drawAll();
