"use strict";
// The page begins here.

const charts = new Charts();

function show(data) {
  charts.clear();
  showCurves(data.curves, charts);
}

const DATA = JSON.parse(document.getElementById("data").textContent);
show(DATA);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.again());
matchMedia("print").addEventListener("change", (event) => { if (event.matches) charts.drawAll(); });
addEventListener("beforeprint", () => charts.drawAll());
