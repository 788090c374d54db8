"use strict";
// The timeline of one step: a bar for each span, a row for each actor.

function drawTimeline(plot, run, step) {
  const rows = [...new Set(run.steps[step].map(([actor, , lane]) => `${run.actors[actor]}${lane ? ` · ${lane + 1}` : ""}`))].sort().reverse();
  const working = run.names.filter((name) => name !== "wait");
  const traces = run.names.map((name, number) => {
    const tone = name === "wait" ? "line" : `r${working.indexOf(name) % 8}`;
    const spans = run.steps[step].filter(([, kind]) => kind === number);
    return {
      type: "bar", orientation: "h", name, marker: { color: colour(tone), line: { width: 0 } },
      y: spans.map(([actor, , lane]) => `${run.actors[actor]}${lane ? ` · ${lane + 1}` : ""}`),
      x: spans.map(([, , , , length]) => length / 1000),
      base: spans.map(([, , , start]) => start / 1000),
      customdata: spans.map(([, , , start, length]) => [start / 1000, length / 1000]),
      hovertemplate: `${name}: %{customdata[1]:.2f} s from %{customdata[0]:.2f} s<extra></extra>`,
    };
  });
  plot.style.height = `${4 + 1.7 * rows.length}rem`;
  Plotly.react(plot, traces.filter((trace) => trace.x.length), layout({
    barmode: "overlay", bargap: 0.25, hovermode: "closest", showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
    margin: { l: 90, r: 8, t: 34, b: 34 },
    xaxis: { title: { text: "seconds" } }, yaxis: { categoryorder: "array", categoryarray: rows },
  }), OPTIONS);
}

function showTimeline(data, charts) {
  const plot = document.getElementById("timeline-plot");
  if (!plot) return;
  const get = (name) => document.getElementById(`t-${name}`);
  const having = data.timeline.map((run, number) => [String(number), data.curves.runs[number].name])
    .filter(([number]) => Object.keys(data.timeline[number].steps).length);
  fill(get("run"), having);
  const steps = () => {
    const known = Object.keys(data.timeline[Number(get("run").value)].steps);
    fill(get("step"), known.map((step) => [step, step]));
  };
  const draw = () => drawTimeline(plot, data.timeline[Number(get("run").value)], get("step").value);
  steps();
  if (Number(get("step").value) === Number(get("step").options[0].value) && get("step").options.length > 1) get("step").selectedIndex = 1;
  document.getElementById("timeline-filters").oninput = () => { steps(); draw(); };
  charts.add(plot, draw);
}
