"use strict";
// The page begins here.

const charts = new Charts();

function showLooks() {
  // A warning's link chooses the utterances that it speaks of.
  for (const link of document.querySelectorAll("[data-look]")) {
    const kind = link.dataset.look.split(":")[1];
    if (!kind) continue;
    link.onclick = () => {
      const select = document.getElementById("f-kind");
      select.value = kind;
      document.getElementById("f-sort").value = kind === "doubted" ? "doubt" : "change";
      select.dispatchEvent(new Event("input", { bubbles: true }));
    };
  }
}

function show(data) {
  charts.clear();
  showCurves(data.curves, charts);
  showUtterances(data);
  showGroups(data);
  showTimeline(data, charts);
  showLooks();
}

const DATA = JSON.parse(document.getElementById("data").textContent);
show(DATA);
if (DATA.live) follow(DATA.live);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { charts.again(); repaint(); });
matchMedia("print").addEventListener("change", () => { charts.drawAll(); charts.again(); repaint(); }); // paper is light
addEventListener("beforeprint", () => charts.drawAll());
