"use strict";
// Curves. What is drawn comes from cluster/report/curves.py; smoothing and colours are the page's own.

const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];

function make(tag, attributes = {}, ...children) {
  // An element. Texts become text nodes, never HTML: they come from models and data.
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function smoothed(values, weight) {
  // Exponential mean, divided by the weight that it has gathered (as Adam does), so that its start is not drawn to 0.
  let mean = 0, gathered = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    gathered = weight * gathered + (1 - weight);
    return mean / gathered;
  });
}

function layout(extra = {}) {
  const axis = { gridcolor: colour("line"), linecolor: colour("line"), zerolinecolor: colour("line"), automargin: true };
  return {
    margin: { l: 44, r: 8, t: 8, b: 30 },
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    font: { color: colour("quiet"), size: 11, family: "system-ui, sans-serif" },
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("text") } },
    hovermode: "x unified",
    showlegend: false,
    ...extra,
    xaxis: { ...axis, ...extra.xaxis },
    yaxis: { ...axis, ...extra.yaxis },
  };
}

const OPTIONS = { displaylogo: false, responsive: true, displayModeBar: false };

function drawCurves(plot, panel, runs, weight) {
  const labels = [...new Set(panel.traces.map((trace) => trace.label))];
  const alone = runs.length === 1;
  const traces = [];
  for (const trace of panel.traces) {
    const place = labels.indexOf(trace.label);
    const name = alone ? trace.label : labels.length === 1 ? runs[trace.run].name : `${runs[trace.run].name} ${trace.label}`;
    const line = { color: colour(`r${(alone ? place : trace.run) % 8}`), dash: alone ? "solid" : DASHES[place % 5] };
    const common = { x: runs[trace.run].steps, mode: "lines", type: "scatter", connectgaps: true, legendgroup: name };
    if (weight > 0) {
      traces.push({ ...common, y: trace.y, line: { ...line, width: 1 }, opacity: 0.28, hoverinfo: "skip", showlegend: false });
    }
    traces.push({ ...common, y: smoothed(trace.y, weight), name, line: { ...line, width: 2 } });
  }
  Plotly.react(plot, traces, layout({
    yaxis: { type: panel.form === "log" ? "log" : "linear", tickformat: panel.form === "percent" ? ".1~%" : undefined,
             exponentformat: "power" },
  }), OPTIONS);
}

function legend(panel, runs) {
  // Runs have their colours at the head of the page. Here stand the curves of one run, or the dashes of several.
  const labels = [...new Set(panel.traces.map((trace) => trace.label))];
  if (labels.length < 2) return "";
  const alone = runs.length === 1;
  return make("div", { class: "legend" }, ...labels.map((label, place) =>
    make("span", { class: `${alone ? `r${place % 8}` : "quiet"} ${alone ? "solid" : DASHES[place % 5]}` }, label)));
}

class Charts {
  // Plots are drawn when they come into view, and all of them before the page is printed.
  constructor() {
    this.drawn = new Map();
    this.waiting = new Map();
    this.observer = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) this.draw(entry.target);
    }, { rootMargin: "500px" });
  }

  add(plot, draw) {
    this.waiting.set(plot, draw);
    this.observer.observe(plot);
  }

  draw(plot) {
    const draw = this.waiting.get(plot);
    if (!draw) return;
    this.waiting.delete(plot);
    this.observer.unobserve(plot);
    this.drawn.set(plot, draw);
    draw();
  }

  drawAll() {
    for (const plot of [...this.waiting.keys()]) this.draw(plot);
  }

  again() {
    for (const draw of this.drawn.values()) draw();
  }

  clear() {
    for (const plot of this.drawn.keys()) Plotly.purge(plot);
    this.observer.disconnect();
    this.drawn.clear();
    this.waiting.clear();
  }
}

function showCurves(data, charts) {
  const place = document.getElementById("panels");
  const slider = document.getElementById("smoothing");
  place.replaceChildren();
  for (const [number, section] of data.sections.entries()) {
    const grid = make("div", { class: "panels" });
    for (const panel of section.panels) {
      const plot = make("div", { class: "plot" });
      grid.append(make("div", { class: "panel" }, make("h4", {}, panel.title, make("code", { title: panel.metric }, panel.metric)),
        make("div", { class: "hint" }, panel.hint), legend(panel, data.runs), plot));
      charts.add(plot, () => drawCurves(plot, panel, data.runs, Number(slider.value)));
    }
    const folded = number >= data.sections.length - 2 && number > 1;
    place.append(folded ? make("details", {}, make("summary", {}, `${section.title} (${section.panels.length} curves)`), grid)
      : make("div", {}, make("h3", {}, section.title), grid));
  }
  const flat = Object.entries(data.flat);
  if (flat.length) {
    const items = flat.map(([name, value]) => make("li", {}, make("code", {}, name), ` = ${value}`));
    place.append(make("details", {}, make("summary", {}, `${flat.length} metrics never changed`), make("ul", { class: "flat" }, ...items)));
  }
  const say = () => { document.getElementById("smoothing-value").textContent = Number(slider.value).toFixed(2); };
  slider.oninput = () => { say(); charts.again(); };
  say();
}
